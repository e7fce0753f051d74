"""The ports to RFC 3161 timestamps: who gives them, and where they are kept."""

from __future__ import annotations

from typing import Protocol

from greatseal.timestamps import Stamped


class StampsUnusable(Exception):
    """The file of timestamps cannot be read or written; the message says where and why."""


class Authority(Protocol):
    """Says when data existed (RFC 3161)."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        ...

    def stamp(self, data: bytes) -> bytes:
        """Return a TimeStampResp over `data` (DER), verified up to the configured roots. Blocks, within its time-out.

        Raises:
            OutsideUnreachable: there is none, or none that verifies.
        """
        ...


class Stamps(Protocol):
    """Keeps timestamps in the order in which they came. Any thread."""

    def append(self, stamped: Stamped) -> None:
        """Keep one durably. Raises StampsUnusable."""
        ...

    def page(self, start: int, limit: int) -> tuple[list[Stamped], int]:
        """Return up to `limit` timestamps from place `start` (0, or what the last call returned), and the next place.

        The place is 0 where none follow. Raises StampsUnusable; ValueError where `start` is no place.
        """
        ...

    def newest(self) -> dict[str, int]:
        """Return the size of the newest checkpoint that each authority has stamped. Raises StampsUnusable."""
        ...
