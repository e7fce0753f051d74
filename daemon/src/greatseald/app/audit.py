"""The audit log as the rest of the daemon sees it: write and wait, read, prove.

    placed = await log.open_intents(entries, requests)         # durable before the token is called
    proven = await log.close_intents(outcomes, intents)        # durable, signed, anchored before release

Reads see committed entries only. Any checkpoint that leaves the daemon passes the writer's thread,
so that the anchor knows of it first.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from greatseald.app.gathering import Gathering
from greatseald.app.writer import ABSENT, SignedHead, Work
from greatseald.domain import entries as entry_format
from greatseald.domain.errors import ArgumentInvalid, DiskReserveReached, EntryNotFound, LogUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greatseald.app.writer import LogWriter
    from greatseald.domain.tree import Tree
    from greatseald.ports.reserve import Reserve
    from greatseald.ports.store import Attempt, RequestKey, Store


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
    ) -> None:
        self._writer = writer
        self._gathering = Gathering(writer)
        self._store = store
        self._tree = tree
        self._reserve = reserve
        self.origin = origin
        self.instance = instance
        self.clock = clock
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
        """Return the exact bytes of one committed entry. Reads the store: not for the event loop.

        Raises:
            EntryNotFound: the log is not that long.
        """
        if not 0 <= index < self.size:
            message = f"the log has {self.size} entries, and none with index {index}"
            raise EntryNotFound(message)
        return self._store.entries(index, index + 1)[0]

    async def entries(self, start: int, end: int) -> list[bytes]:
        """Return the exact bytes of committed entries `start` to `end` (excluded), clipped to the log."""
        return await asyncio.to_thread(self._store.entries, max(start, 0), min(end, self.size))

    async def inclusion(self, index: int, size: int = 0) -> tuple[int, list[bytes]]:
        """Return the tree size (the newest for 0) and the inclusion proof of an entry in it.

        Raises:
            ArgumentInvalid: the index is not below the size, or the size beyond the log.
        """
        size = self._tree_size(size)
        if not 0 <= index < size:
            message = f"index {index} is not in a tree of {size} entries"
            raise ArgumentInvalid(message, field="index")
        proof = await asyncio.to_thread(lambda: self._tree.prover(size).inclusion(index))
        return size, [proof[offset : offset + 32] for offset in range(0, len(proof), 32)]

    async def consistency(self, old: int, new: int = 0) -> tuple[int, list[bytes]]:
        """Return the later size (the newest for 0) and the proof that the tree of `old` is its beginning.

        Raises:
            ArgumentInvalid: the sizes are out of order or beyond the log.
        """
        new = self._tree_size(new)
        if not 1 <= old <= new:
            message = f"old_size must be from 1 to {new}, not {old}"
            raise ArgumentInvalid(message, field="old_size")
        return new, await asyncio.to_thread(lambda: self._tree.prover(new).consistency(old, new))

    def _tree_size(self, asked: int) -> int:
        size = self.size
        if asked > size:
            message = f"the log has {size} entries, not {asked}"
            raise ArgumentInvalid(message, field="tree_size", log_size=str(size))
        return asked or size

    def _future(self) -> asyncio.Future[Work]:
        assert self._loop is not None  # noqa: S101 - start() set it
        return self._loop.create_future()


def _proven(work: Work) -> Proven:
    assert work.head is not None  # noqa: S101 - the writer fills it in for released work
    assert work.proofs is not None  # noqa: S101 - and this too
    return Proven(work.head, [None if index == ABSENT else index for index in work.indexes], work.proofs)
