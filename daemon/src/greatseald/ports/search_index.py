"""The port to the search index: derived data, which says where to look and never what is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from greatseald.domain.entry_query import EntryQuery


class Covered(NamedTuple):
    """What an index covers: entries from `first` (included) to `size` (excluded) of the log whose beginning has `root`."""

    first: int
    size: int
    root: bytes


class IndexUnusable(Exception):
    """The index is damaged or cannot be written. It is dropped and built anew; nothing is lost."""


class SearchIndex(Protocol):
    """An index of one log. Any thread, one call at a time within each of reading and writing."""

    def covered(self) -> Covered:
        """Return what it covers; an empty one covers nothing from 0 to 0. Raises IndexUnusable."""
        ...

    def add(self, start: int, entries: Sequence[bytes], root: bytes) -> None:
        """Take in the entries from `start` on, where it ends; `root` is of the log with them. Raises IndexUnusable."""
        ...

    def candidates(self, query: EntryQuery, low: int, high: int, count: int, *, descending: bool) -> list[int] | None:
        """Return up to `count` indexes, in order, of entries that may match: all that do are among them.

        None where the query asks for nothing that it tells apart. Raises IndexUnusable.
        """
        ...

    def reset(self, first: int) -> None:
        """Drop everything and begin anew with the entry at `first`. Raises IndexUnusable."""
        ...

    def close(self) -> None:
        """Release the file. Idempotent."""
        ...
