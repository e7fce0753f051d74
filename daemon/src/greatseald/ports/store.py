"""The port to the audit log's store: compare and swap on the head, nothing clever.

The store keeps bytes and enforces three things within one durable transaction: that the log still
has the size the writer thinks it has, that each fence (an open intent) is closed exactly once, and
that no attempt of a request is recorded twice. What the bytes mean, and whether a head is genuine,
is decided above it (`app/audit.py`).

`append` is called by one thread at a time. Every other method may be called from any thread, at any
time, and sees only committed data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Head:
    """The newest tree head. `root` is 32 bytes; `frontier` the concatenated roots of the perfect
    subtrees of `size`, largest first, 32 bytes each; `authority` the index of the newest entry that
    gives authority, -1 for none, None in heads of before there was any; `mac` authenticates all of it
    (32 bytes).
    """

    size: int
    root: bytes
    frontier: bytes
    mac: bytes
    authority: int | None = None


class Tile(NamedTuple):
    """A full hash tile of C2SP tlog-tiles: 256 hashes of 32 bytes at `level` (0 = leaves), counted by `number`."""

    level: int
    number: int
    data: bytes


class RequestKey(NamedTuple):
    """Names one attempt at one request: the UUID's 16 bytes, 16 bytes of the caller's digest, counted from 1."""

    request_id: bytes
    caller: bytes
    attempt: int


class NewRequest(NamedTuple):
    """An attempt that an append records: `request_hash` (32 bytes) tells what was asked, `intent` its index."""

    key: RequestKey
    request_hash: bytes
    intent: int


class Attempt(NamedTuple):
    """An attempt on record; `outcome` is the index of the entry that closed it, None while it is open."""

    attempt: int
    request_hash: bytes
    intent: int
    outcome: int | None


class OpenIntent(NamedTuple):
    """A fence: the index of an intent without outcome, and the boot (16 bytes) that opened it."""

    intent: int
    boot: bytes


class Closing(NamedTuple):
    """The fence that an append closes, and the index of the outcome that closes it."""

    intent: int
    outcome: int


@dataclass(slots=True)
class Append:
    """One group commit: `entries` follow the `expected_size` entries already there, `head` is the head after them.

    `opened` and the `intent` and `outcome` indexes below refer to entries of this append, but for
    `closed[].intent`, which refers to earlier ones. `time_ms` is Unix time in milliseconds.
    """

    expected_size: int
    entries: list[bytes]
    head: Head
    boot: bytes
    time_ms: int
    tiles: list[Tile] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    closed: list[Closing] = field(default_factory=list)
    requests: list[NewRequest] = field(default_factory=list)


class StoreError(Exception):
    """The store could not do what was asked."""


class HeadMoved(StoreError):
    """Another front has extended the log; nothing was written.

    Read the head again, rebuild, and append again at once: a shared store keeps the others waiting for it.
    """


class FencesLost(StoreError):
    """Some intents were closed by others; nothing was written. `intents` lists them."""

    def __init__(self, intents: list[int]) -> None:
        super().__init__(f"{len(intents)} intents are closed already")
        self.intents = intents


class RequestsKnown(StoreError):
    """Some attempts are on record already; nothing was written. `keys` lists them."""

    def __init__(self, keys: list[RequestKey]) -> None:
        super().__init__(f"{len(keys)} requests are on record already")
        self.keys = keys


class StoreUnusable(StoreError):
    """The database cannot be opened as it is: locked by another daemon, newer schema, corrupt, unwritable.

    The message says which, where, and what to do.
    """


class StoreBroken(StoreError):
    """A write failed in a way after which nothing the store says can be trusted (I/O error, corruption,
    commit fate unknown). The daemon must end; a restart recovers.
    """


class Store(Protocol):
    """Durable storage of the log's entries, head, tiles, fences and requests."""

    def check_alive(self) -> None:
        """Let go of what a refused append holds, and prove that this boot still counts as alive.

        Called by the writer's thread, now and then and whenever no append follows a HeadMoved.

        Raises:
            StoreBroken: others may have closed this boot's intents; the process must end.
        """
        ...

    def head(self) -> Head | None:
        """Return the newest head, or None for an empty log."""
        ...

    def append(self, batch: Append) -> None:
        """Commit `batch` durably (fsync'd when this returns), or write nothing and raise.

        Raises:
            HeadMoved: the log's size is not `batch.expected_size`.
            FencesLost: an intent in `batch.closed` is not open.
            RequestsKnown: an attempt in `batch.requests` is on record.
            StoreBroken: I/O error, corruption, full disk or unknown fate; the process must end.
        """
        ...

    def entries(self, start: int, end: int) -> list[bytes]:
        """Return the exact bytes of entries `start` (included) to `end` (excluded), clipped to the log."""
        ...

    def tile(self, level: int, index: int) -> bytes | None:
        """Return a full hash tile (8,192 bytes), or None if it is not stored."""
        ...

    def open_intents(self) -> list[OpenIntent]:
        """Return every intent without an outcome whose boot is dead, in order.

        A boot is dead when it can prove to be: always, for a store that one process owns; when its
        session lock can be taken, for a shared one. The caller's own boot is never dead.
        """
        ...

    def attempts(self, caller: bytes, request_id: bytes) -> list[Attempt]:
        """Return the attempts at one request of one caller, first to last."""
        ...

    def forget_requests(self, before_time_ms: int, limit: int) -> int:
        """Forget up to `limit` requests of appends older than `before_time_ms`; return how many. Open ones stay.

        Called by the writer's thread.
        """
        ...

    def backup(self, path: str) -> None:
        """Write a consistent copy to `path`, which must not exist. Raises StoreError if it cannot."""
        ...

    def close(self) -> None:
        """Release files, locks and connections. Idempotent."""
        ...
