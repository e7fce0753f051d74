"""The port to sinks: where the outbox delivers the log's entries, for a SIEM to read.

A sink may be handed an entry twice (after a crash, a cut connection, a restart), never none at all: the
entry's index is what a receiver removes duplicates by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Record:
    """One entry, formatted: its index, one line of UTF-8 JSON without a newline, when, and whether it is bad news."""

    index: int
    line: bytes
    time: str
    notable: bool


class SinkError(Exception):
    """The records were not taken, or it is not known whether they were; the message says where and why."""


class Sink(Protocol):
    """Takes records in order."""

    async def deliver(self, records: Sequence[Record]) -> None:
        """Deliver; when this returns, the receiver has them as safely as its protocol can say.

        Raises:
            SinkError: some may not have arrived; all of them are delivered again later.
        """
        ...

    async def close(self) -> None:
        """Let connections and files go."""
        ...


class Cursor(Protocol):
    """Remembers how far a sink has taken the log."""

    def read(self) -> int:
        """Return the index of the first entry that was not delivered; 0 if nothing is remembered. Raises SinkError."""
        ...

    def write(self, index: int) -> None:
        """Remember it durably. Raises SinkError."""
        ...


class Format(Protocol):
    """Turns an entry into the line that a sink is given."""

    def __call__(self, index: int, entry: bytes, intent: bytes | None) -> Record:
        """Format entry `index`; `intent` is the entry that an outcome closes, where there is one."""
        ...
