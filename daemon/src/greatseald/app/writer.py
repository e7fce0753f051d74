"""The one thread that writes the audit log: group commit, checkpoint, anchor, proofs.

Whatever queued while the last commit was syncing is the next one; there is no timer. The order
within a round is the log's promise: commit, then sign the checkpoint, then advance the anchor, then
hand the results over. Nothing uncommitted is ever signed, and nothing is released that the anchor
does not know.

The thread owns the tree and is the only caller of `Store.append`, with one exception: on a local disk
that was fast so far, a small round is run on the event loop (`gathering.py`), because handing it to a
thread and back takes as long as the commit itself. A lock keeps rounds apart. The thread hands over
to the event loop once a round. Any exception here ends the daemon: a log that cannot be written stops
everything.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from greatseald.domain.errors import LogUnavailable
from greatseald.domain.heads import NO_AUTHORITY
from greatseald.domain.tree import leaf_hash
from greatseald.ports.anchor import Anchored, AnchorError
from greatseald.ports.store import (
    Append,
    Closing,
    FencesLost,
    Head,
    HeadMoved,
    NewRequest,
    RequestKey,
    RequestsKnown,
    Tile,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from greatseald.domain.heads import HeadSeal
    from greatseald.domain.tree import Tree
    from greatseald.ports.anchor import Anchor
    from greatseald.ports.metrics import Metrics
    from greatseald.ports.store import Store

_log = structlog.get_logger("greatseald.log")

_MAX_ROUND_ENTRIES: Final = 4096
"""Bounds the memory and the pause of one commit; what is over goes into the next."""

_FAST_ROUND_SECONDS: Final = 0.005
"""Rounds that take no longer on average, but for their entries' own cost, may hold up the event loop."""

_ENTRY_SECONDS: Final = 20e-6
"""What an entry costs in a round, beyond the round itself."""

FORGET_AT_ONCE: Final = 1000
"""Requests forgotten in one round: few enough that nobody waits for it."""

ABSENT: Final = -1
"""Stands in `Work.indexes` where an entry was not written."""


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A checkpoint: the tree head and its C2SP signed note."""

    size: int
    root: bytes
    note: str


@dataclass(slots=True, eq=False)
class Work:
    """What one caller waits for: entries to write, pairs of entries to prove, or both.

    Intents carry `requests`, outcomes carry `closes` (the intents' indexes), each parallel to
    `entries`. After the round `indexes` and `leaves` are parallel to `entries`, with `ABSENT` where
    an attempt was on record already or another front had closed the intent; and where `released`
    was asked for, `head` is the checkpoint and `proofs` has one (intent's, outcome's) pair for each
    of `closes` that was written and then for each of `prove`. With `forget_before_ms`, a bounded
    number of requests on record from before that time (Unix, milliseconds) is forgotten. `of_the_dead`
    says that `closes` are intents of other boots. `also` is something else to be done to the store, by this
    thread because it writes; its result is in `answer`.
    """

    future: asyncio.Future[Work]
    entries: list[bytes] = field(default_factory=list)
    requests: list[tuple[RequestKey, bytes]] | None = None
    closes: Sequence[int] | None = None
    prove: Sequence[tuple[int, int]] = ()
    released: bool = False
    of_the_dead: bool = False
    forget_before_ms: int | None = None
    forgotten: int = 0
    also: Callable[[], object] | None = None
    answer: object = None
    leaves: Sequence[bytes] = ()
    indexes: Sequence[int] = ()
    refused: frozenset[int] = frozenset()
    head: SignedHead | None = None
    proofs: list[tuple[bytes, bytes]] | None = None

    def finish(self) -> None:
        """Tell whoever waits that it is written."""
        if not self.future.done():
            self.future.set_result(self)

    def fail(self, error: LogUnavailable) -> None:
        """Tell whoever waits that it may not be."""
        if not self.future.done():
            self.future.set_exception(error)


class LogWriter:
    """Owns the tree, the store's write side and the log's key."""

    def __init__(
        self,
        *,
        store: Store,
        tree: Tree,
        seal: HeadSeal,
        sign_head: Callable[[int, bytes], str],
        anchor: Anchor,
        anchored: int,
        boot: bytes,
        clock: Callable[[], float],
        metrics: Metrics,
        on_broken: Callable[[BaseException], None],
        local: bool = False,
    ) -> None:
        """Take over the log. `local` says that the store is on this machine's disk, where the event loop may wait for it."""
        self._store = store
        self._tree = tree
        self._seal = seal
        self._sign_head = sign_head
        self._anchor = anchor
        self._anchored = anchored
        self._boot = boot
        self._clock = clock
        self._metrics = metrics
        self._on_broken = on_broken
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = 0
        self._head: SignedHead | None = None
        self._local = local
        self._committed = local
        self._rounds = threading.Lock()
        self._round_seconds = 1.0
        self.size = tree.size
        """Committed entries; read from any thread."""
        self.authority = NO_AUTHORITY
        """Index of the newest committed entry that gives authority; read from any thread."""
        self.broken = False
        if store.head() is not None:
            self._follow()
            self.size = tree.size

    @property
    def open_intents(self) -> int:
        """Intents of this boot that have no outcome yet."""
        return self._open

    @property
    def fast(self) -> bool:
        """Whether the event loop may wait for a small round itself."""
        return self._local and self._round_seconds <= _FAST_ROUND_SECONDS

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to write; results are handed over on `loop`."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """Write what is queued and end the thread. Blocks; idempotent."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def submit(self, work: Work) -> None:
        """Queue work for the next round.

        Raises:
            LogUnavailable: the log is broken.
        """
        if self.broken:
            raise LogUnavailable(_BROKEN)
        self._queue.put(work)

    def run_here(self, works: list[Work]) -> bool:
        """Run a round on the caller's thread, if the log is fast and nobody else is writing; whether it was done.

        The works are then complete, and their futures untouched.

        Raises:
            LogUnavailable: the log is broken.
        """
        if self.broken:
            raise LogUnavailable(_BROKEN)
        if not self.fast or not self._rounds.acquire(blocking=False):
            return False
        try:
            self._round(works)
        except BaseException as error:
            self.broken = True
            self._on_broken(error)
            raise LogUnavailable(_BROKEN) from error
        finally:
            self._rounds.release()
        return True

    def _run(self) -> None:
        works: list[Work] = []
        try:
            while True:
                works, stopping = self._next_round()
                if works:
                    with self._rounds:
                        self._round(works)
                    self._hand_over(works)
                if stopping:
                    return
        except BaseException as error:  # noqa: BLE001 - whatever it is, the log is no longer written
            self.broken = True
            self._on_broken(error)
            self._fail(works)

    def _next_round(self) -> tuple[list[Work], bool]:
        first = self._queue.get()
        if first is None:
            return [], True
        # No timer: only the interpreter lock is offered once, so that the event loop can finish putting
        # in what it has in hand. Rounds of single entries cost as much as rounds of thirty.
        time.sleep(0)
        works = [first]
        entries = len(first.entries)
        while entries < _MAX_ROUND_ENTRIES:
            try:
                work = self._queue.get_nowait()
            except queue.Empty:
                break
            if work is None:
                return works, True
            works.append(work)
            entries += len(work.entries)
        return works, False

    def _round(self, works: list[Work]) -> None:
        started = time.perf_counter()
        count = self._commit(works)
        if any(work.released for work in works):
            self._release(works)
        for work in works:
            if work.forget_before_ms is not None:
                work.forgotten = self._store.forget_requests(work.forget_before_ms, FORGET_AT_ONCE)
            if work.also is not None:
                work.answer = work.also()
        if count:
            seconds = time.perf_counter() - started
            self._round_seconds += (seconds - count * _ENTRY_SECONDS - self._round_seconds) / 8
            self._metrics.committed(count, seconds)
            self._metrics.log_size(self.size, self._open)

    def _commit(self, works: list[Work]) -> int:
        """Append every entry of the round in one transaction; what the store refuses is left out and marked."""
        while True:
            mark = self._tree.mark()
            batch = self._assemble(works)
            if not batch.entries:
                self._catch_up()
                return 0
            try:
                self._store.append(batch)
            except HeadMoved:
                self._tree.rewind(mark)
                self._follow()
            except FencesLost as lost:
                self._tree.rewind(mark)
                _refuse_closed(works, set(lost.intents))
            except RequestsKnown as known:
                self._tree.rewind(mark)
                _refuse_known(works, set(known.keys))
            else:
                self.size = self._tree.size
                self.authority = NO_AUTHORITY if batch.head.authority is None else batch.head.authority
                self._committed = True
                self._open += len(batch.opened) - len(batch.closed) + _closed_for_the_dead(works)
                return len(batch.entries)

    def _assemble(self, works: list[Work]) -> Append:
        size = index = self._tree.size
        authority = self.authority
        entries: list[bytes] = []
        leaves: list[bytes] = []
        opened: list[int] = []
        closed: list[Closing] = []
        requests: list[NewRequest] = []
        for work in works:
            if not work.leaves:
                work.leaves = [leaf_hash(entry) for entry in work.entries]
            # Most works, written out: what they cost is what a call costs.
            if len(work.entries) == 1 and not work.refused:
                work.indexes = (index,)
                entries.append(work.entries[0])
                leaves.append(work.leaves[0])
                if work.requests is not None:
                    requests.append(NewRequest(*work.requests[0], index))
                    opened.append(index)
                elif work.closes is not None:
                    closed.append(Closing(work.closes[0], index))
                index += 1
                continue
            if work.refused:
                index = _take_rest(work, index, entries, leaves)
            else:
                end = index + len(work.entries)
                work.indexes = range(index, end)
                entries += work.entries
                leaves += work.leaves
                index = end
            if work.requests is not None:
                written = zip(work.requests, work.indexes, strict=True)
                requests += [NewRequest(key, digest, at) for (key, digest), at in written if at != ABSENT]
                opened += [at for at in work.indexes if at != ABSENT]
            elif work.closes is not None:
                closed += [Closing(*pair) for pair in zip(work.closes, work.indexes, strict=True) if pair[1] != ABSENT]
        tiles = [Tile(*tile) for tile in self._tree.append(leaves)] if leaves else []
        root, frontier = self._tree.root(), self._tree.frontier()
        head = Head(index, root, frontier, self._seal.mac(index, root, frontier, authority), authority)
        time_ms = int(self._clock() * 1000)
        return Append(size, entries, head, self._boot, time_ms, tiles, opened, closed, requests)

    def _catch_up(self) -> None:
        """Take in what other fronts have written, so that a checkpoint asked for here is the log's newest."""
        self._store.check_alive()
        head = self._store.head()
        if (head.size if head is not None else 0) != self._tree.size:
            self._follow()
            self.size = self._tree.size

    def _follow(self) -> None:
        """Extend the tree by what another front has written, if its head is genuine."""
        head = self._store.head()
        if head is None or head.size < self._tree.size:
            message = f"the log has gone back from {self._tree.size} entries to {head.size if head else 0}"
            raise LogUnavailable(message)
        self._seal.check(head.size, head.root, head.frontier, head.mac, head.authority)
        while self._tree.size < head.size:
            entries = self._store.entries(self._tree.size, min(head.size, self._tree.size + _MAX_ROUND_ENTRIES))
            if not entries:
                break
            self._tree.mark()  # what others have committed is never undone
            self._tree.append([leaf_hash(entry) for entry in entries])
        if self._tree.size != head.size or self._tree.root() != head.root:
            message = f"the entries of the log up to {head.size} do not have the root that its head row says"
            raise LogUnavailable(message)
        authority = NO_AUTHORITY if head.authority is None else head.authority
        if authority < self.authority:
            message = f"the newest entry that gives authority has gone back from {self.authority} to {authority}"
            raise LogUnavailable(message)
        self.authority = authority

    def _release(self, works: list[Work]) -> None:
        """Sign the checkpoint, advance the anchor, make the proofs."""
        head = self._signed_head()
        if head.size > self._anchored:
            try:
                self._anchor.advance(Anchored(head.size, head.root))
                self._anchored = head.size
            except AnchorError as error:
                self._metrics.anchor_failed()
                _log.error("anchor_unreachable", anchor=self._anchor.name, size=head.size, error=str(error))
        inclusion = self._tree.prover(head.size).inclusion
        for work in works:
            if not work.released:
                continue
            work.head = head
            written = zip(work.closes or (), work.indexes if work.closes else (), strict=True)
            work.proofs = [
                (inclusion(intent), inclusion(outcome))
                for intent, outcome in written
                if outcome != ABSENT and intent is not None
            ]
            if work.prove:
                work.proofs += [(inclusion(intent), inclusion(outcome)) for intent, outcome in work.prove]

    def _signed_head(self) -> SignedHead:
        if not self._committed:
            # On a shared store a commit that is visible may still be lost in a failover; one of our own confirms it.
            message = "no checkpoint is signed before this boot has committed an entry"
            raise LogUnavailable(message)
        if self._head is None or self._head.size != self._tree.size:
            root = self._tree.root()
            self._head = SignedHead(self._tree.size, root, self._sign_head(self._tree.size, root))
        return self._head

    def _hand_over(self, works: list[Work]) -> None:
        assert self._loop is not None  # noqa: S101 - start() set it
        self._loop.call_soon_threadsafe(_deliver, works)

    def _fail(self, works: list[Work]) -> None:
        waiting = list(works)
        while not self._queue.empty():
            work = self._queue.get_nowait()
            if work is not None:
                waiting.append(work)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_refuse, waiting)


_BROKEN: Final = "the audit log cannot be written, so nothing is signed; the daemon is ending, its own log says why"


def _deliver(works: list[Work]) -> None:
    for work in works:
        work.finish()


def _refuse(works: list[Work]) -> None:
    for work in works:
        work.fail(LogUnavailable(_BROKEN))


def _take_rest(work: Work, index: int, entries: list[bytes], leaves: list[bytes]) -> int:
    """Take from `index` on those entries of a work that were not refused; return the index after them."""
    indexes = [ABSENT] * len(work.entries)
    for position, (entry, leaf) in enumerate(zip(work.entries, work.leaves, strict=True)):
        if position not in work.refused:
            indexes[position] = index
            entries.append(entry)
            leaves.append(leaf)
            index += 1
    work.indexes = indexes
    return index


def _closed_for_the_dead(works: list[Work]) -> int:
    return sum(len(work.indexes) - work.indexes.count(ABSENT) for work in works if work.of_the_dead)


def _refuse_closed(works: list[Work], lost: set[int]) -> None:
    for work in works:
        if work.closes is not None:
            work.refused |= {position for position, intent in enumerate(work.closes) if intent in lost}


def _refuse_known(works: list[Work], known: set[RequestKey]) -> None:
    for work in works:
        if work.requests is not None:
            work.refused |= {position for position, (key, _) in enumerate(work.requests) if key in known}
