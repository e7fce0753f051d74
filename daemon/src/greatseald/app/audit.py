"""The audit log as the rest of the daemon sees it: write and wait, read, prove.

    placed = await log.open_intents(entries, requests)         # durable before the token is called
    proven = await log.close_intents(outcomes, intents)        # durable, signed, anchored before release

Reads see committed entries only. Any checkpoint that leaves the daemon passes the writer's thread,
so that the anchor knows of it first.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import structlog

from greatseald.app.gathering import Gathering
from greatseald.app.recovery import CLOSE_AT_ONCE, unknown_outcomes
from greatseald.app.writer import ABSENT, SignedHead, Work
from greatseald.domain import entries as entry_format
from greatseald.domain.errors import ArgumentInvalid, DiskReserveReached, EntryNotFound, LogUnavailable
from greatseald.domain.tree import TreeDisagrees
from greatseald.ports.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greatseald.app.writer import LogWriter
    from greatseald.domain.tree import Tree
    from greatseald.ports.reserve import Reserve
    from greatseald.ports.store import Attempt, RequestKey, Store


_log = structlog.get_logger("greatseald.log")
_T = TypeVar("_T")


class Placed(NamedTuple):
    """Where an intent stands: its place in the log and its leaf hash (32 bytes)."""

    place: int
    leaf_hash: bytes


@dataclass(frozen=True, slots=True)
class Proven:
    """Entries under one released checkpoint.

    `indexes` are those of the outcomes written, None where another front had closed the intent;
    `proofs` the (intent's, outcome's) inclusion proofs of those that were written and then of the
    further pairs asked for, each the concatenation of 32-byte hashes.
    """

    head: SignedHead
    indexes: list[int | None]
    proofs: list[tuple[bytes, bytes]]


class AuditLog:
    """The log of one boot."""

    def __init__(
        self,
        *,
        writer: LogWriter,
        store: Store,
        tree: Tree,
        reserve: Reserve,
        origin: str,
        instance: str,
        clock: Callable[[], float],
        shared: bool = False,
    ) -> None:
        """Stand before a writer. `shared` says that other fronts write to the same store."""
        self._writer = writer
        self._gathering = Gathering(writer)
        self._store = store
        self._tree = tree
        self._reserve = reserve
        self.origin = origin
        self.instance = instance
        self.clock = clock
        self._shared = shared
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def name(self) -> str:
        """The log's name in resource names: the last part of its origin."""
        return self.origin.rsplit("/", 1)[-1]

    @property
    def size(self) -> int:
        """Committed entries."""
        return self._writer.size

    @property
    def open_count(self) -> int:
        """Intents of this boot that have no outcome yet."""
        return self._writer.open_intents

    def start(self) -> None:
        """Begin to write, from the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._writer.start(self._loop)

    def stop(self) -> None:
        """Write what is queued and end the writer's thread. Blocks."""
        self._gathering.hand_over()
        self._writer.stop()

    def require_writable(self) -> None:
        """Refuse anything new while the log is broken or its volume nearly full.

        Raises:
            LogUnavailable: it is broken.
            DiskReserveReached: the reserve is reached.
        """
        if self._writer.broken:
            message = "the audit log cannot be written, so nothing is signed"
            raise LogUnavailable(message)
        shortage = self._reserve.shortage()
        if shortage is not None:
            message = f"nothing new is signed while the audit log's volume is nearly full: {shortage}"
            raise DiskReserveReached(message)

    async def open_intents(
        self, entries: list[bytes], requests: list[tuple[RequestKey, bytes]], *, alone: bool = False
    ) -> list[Placed | None]:
        """Commit intents and their fences; None where the attempt is on record already.

        `alone` says that nothing else is under way (`gathering.py`).

        Raises:
            LogUnavailable: the log broke; whether they are on disk is for recovery to say.
        """
        done = await self._gathering.submit(Work(self._future(), entries, requests), alone=alone)
        return [
            None if index == ABSENT else Placed(index, leaf)
            for index, leaf in zip(done.indexes, done.leaves, strict=True)
        ]

    async def close_intents(
        self, entries: list[bytes], intents: list[int], also: Sequence[tuple[int, int]] = (), *, alone: bool = False
    ) -> Proven:
        """Commit outcomes, release a checkpoint over them and prove them, and `also` further pairs under it.

        `alone` is as in `open_intents`.
        """
        work = Work(self._future(), entries, closes=intents, prove=also, released=True)
        return _proven(await self._gathering.submit(work, alone=alone))

    async def prove(self, pairs: Sequence[tuple[int, int]]) -> Proven:
        """Prove pairs of committed entries (intent, outcome) under the newest checkpoint."""
        return _proven(await self._gathering.submit(Work(self._future(), prove=pairs, released=True)))

    async def record(self, entry: entry_format.Entry) -> int:
        """Commit an entry that opens and closes nothing; return its index."""
        done = await self._gathering.submit(Work(self._future(), [entry_format.encode(entry)]))
        return done.indexes[0]

    async def record_admin(self, what: str, **info: str | int | list[str]) -> int:
        """Commit an entry about the daemon itself: start, stop, reload, key, token."""
        now = entry_format.timestamp(self.clock())
        return await self.record(
            entry_format.Admin(info=dict(info), inst=self.instance, log=self.origin, ts=now, what=what)
        )

    async def checkpoint(self) -> SignedHead:
        """Release the newest checkpoint."""
        return (await self.prove(())).head

    async def follow(self) -> None:
        """Take in what other fronts have committed, and prove that this one still counts as alive."""
        await self._gathering.submit(Work(self._future()))

    async def close_dead_intents(self) -> int:
        """Close what other fronts left open when they died, so that its callers may ask again; return how many.

        Raises:
            LogRefused: the fences or the entries are not what a front wrote.
        """
        found = (await asyncio.to_thread(self._store.open_intents))[:CLOSE_AT_ONCE]
        if not found:
            return 0
        await self.follow()
        make = functools.partial(unknown_outcomes, instance=self.instance, origin=self.origin, now=self.clock())
        entries = await asyncio.to_thread(make, self._store, self._tree, found)
        closes = [intent.intent for intent in found]
        done = await self._gathering.submit(Work(self._future(), entries, closes=closes, of_the_dead=True))
        return sum(index != ABSENT for index in done.indexes)

    async def forget_requests(self, before: float) -> int:
        """Forget request ids older than `before` (Unix seconds), a bounded number; return how many."""
        return (await self._gathering.submit(Work(self._future(), forget_before_ms=int(before * 1000)))).forgotten

    def attempts(self, key: RequestKey) -> list[Attempt]:
        """Return what is on record of a request, first attempt to last. Reads the store: not for the event loop."""
        return self._store.attempts(key.caller, key.request_id)

    def recorded(self, index: int) -> bytes:
        """Return the exact bytes of an entry that an attempt names, whichever front wrote it. Reads the store."""
        return self._store.entries(index, index + 1)[0]

    def entry(self, index: int) -> bytes:
        """Return the exact bytes of one committed entry. Reads the store: not for the event loop where that is remote.

        Raises:
            EntryNotFound: the log, as far as this front knows it (`size_for`), is not that long.
            LogUnavailable: it cannot be read, or is missing.
        """
        if not 0 <= index < self.size:
            message = f"the log has {self.size} entries, and none with index {index}"
            raise EntryNotFound(message)
        return self.read(index, index + 1)[0]

    async def entries(self, start: int, end: int) -> list[bytes]:
        """Return the exact bytes of committed entries `start` to `end` (excluded), clipped to the log.

        Raises:
            LogUnavailable: they cannot be read, or some are missing.
        """
        return await asyncio.to_thread(self.read, max(start, 0), min(end, self.size))

    def root(self, size: int) -> bytes:
        """Return the root of the first `size` entries (32 bytes). Reads the store: not for the event loop.

        Raises:
            LogUnavailable: it cannot be read.
        """
        try:
            return self._tree.prover(size).root()
        except (StoreError, TreeDisagrees) as error:
            raise _unreadable(error) from error

    def read(self, start: int, end: int) -> list[bytes]:
        """As `entries`, of indexes within the log. Reads the store: not for the event loop."""
        try:
            found = self._store.entries(start, end)
        except StoreError as error:
            raise _unreadable(error) from error
        if len(found) != max(0, end - start):
            message = f"of the entries {start} to {end - 1} the database has {len(found)}: it was altered"
            raise LogUnavailable(message)
        return found

    async def inclusion(self, index: int, size: int = 0) -> tuple[int, list[bytes]]:
        """Return the tree size (the newest for 0) and the inclusion proof of an entry in it.

        Raises:
            ArgumentInvalid: the index is not below the size, or the size beyond the log.
        """
        size = await self._tree_size(size or await self.size_for(index + 1))
        if not 0 <= index < size:
            message = f"index {index} is not in a tree of {size} entries"
            raise ArgumentInvalid(message, field="index")
        proof = await _read(lambda: self._tree.prover(size).inclusion(index))
        return size, [proof[offset : offset + 32] for offset in range(0, len(proof), 32)]

    async def consistency(self, old: int, new: int = 0) -> tuple[int, list[bytes]]:
        """Return the later size (the newest for 0) and the proof that the tree of `old` is its beginning.

        Raises:
            ArgumentInvalid: the sizes are out of order or beyond the log.
        """
        new = await self._tree_size(new or await self.size_for(old))
        if not 1 <= old <= new:
            message = f"old_size must be from 1 to {new}, not {old}"
            raise ArgumentInvalid(message, field="old_size")
        return new, await _read(lambda: self._tree.prover(new).consistency(old, new))

    async def _tree_size(self, asked: int) -> int:
        size = await self.size_for(asked)
        if asked > size:
            message = f"the log has {size} entries, not {asked}"
            raise ArgumentInvalid(message, field="tree_size", log_size=str(size))
        return asked

    async def size_for(self, wanted: int) -> int:
        """Return the log's size; where more entries are wanted than this front knows of, others may have written them."""
        if wanted > self.size and self._shared:
            await self.follow()
        return self.size

    def _future(self) -> asyncio.Future[Work]:
        assert self._loop is not None  # noqa: S101 - start() set it
        return self._loop.create_future()


async def _read(read: Callable[[], _T]) -> _T:
    """Read off the event loop. What cannot be read now is the log's business, and no fault of the daemon."""
    try:
        return await asyncio.to_thread(read)
    except (StoreError, TreeDisagrees) as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> LogUnavailable:
    _log.error("log_unreadable", why=str(error))
    return LogUnavailable("the audit log cannot be read now; the daemon's own log says why")


def _proven(work: Work) -> Proven:
    assert work.head is not None  # noqa: S101 - the writer fills it in for released work
    assert work.proofs is not None  # noqa: S101 - and this too
    return Proven(work.head, [None if index == ABSENT else index for index in work.indexes], work.proofs)
