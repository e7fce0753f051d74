"""The port to anchors: places outside the store that remember how far the log was released."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Anchored(NamedTuple):
    """A released tree head: its size in entries and its root (32 bytes)."""

    size: int
    root: bytes


class AnchorError(Exception):
    """The anchor cannot be read or written; the message says where and why."""


class Anchor(Protocol):
    """Remembers the last released head, on another volume where the operator provides one."""

    @property
    def name(self) -> str:
        """What an operator would look for: a path."""
        ...

    def read(self) -> Anchored | None:
        """Return the last head advanced to, or None if there never was one. Raises AnchorError."""
        ...

    def advance(self, head: Anchored) -> None:
        """Remember `head` durably (fsync'd when this returns). Raises AnchorError."""
        ...
