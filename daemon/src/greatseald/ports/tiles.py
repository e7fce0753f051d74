"""The port to a place where the log is published as C2SP tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from greatseald.ports.anchor import Anchored

ReadEntries = Callable[[int, int], Sequence[bytes]]


class TilesUnavailable(Exception):
    """The place cannot be read or written now; the message says where and why. Trying again may help."""


class TilesDisagree(Exception):
    """The place holds another history than this log, or was changed: nothing is published over it."""


class TilePlace(Protocol):
    """One place, which other fronts may publish to as well. Everything here blocks."""

    @property
    def name(self) -> str:
        """What an operator would look for: a directory."""
        ...

    def read(self) -> Anchored | None:
        """Return the tree head that is published there, or None where nothing is.

        Raises:
            TilesUnavailable: it cannot be read.
            TilesDisagree: what is there was not signed with this log's key.
        """
        ...

    def publish(self, head: Anchored, note: str, entries: ReadEntries, root_of: Callable[[int], bytes]) -> int:
        """Write tiles and entries up to `head`, then its checkpoint `note`, durably; return the size published.

        That may be larger than the head's, where another front was faster. `entries(start, end)` reads the
        log, `root_of(size)` computes the root of its beginning.

        Raises:
            TilesUnavailable: a file cannot be read or written, or another process is writing.
            TilesDisagree: what is there is not the beginning of this log.
        """
        ...
