"""audit-append: records a second through the daemon's log with 64 waiting callers, against a bare loop.

    audit_append.py CONFIG        commands: ours{seconds}, bare{seconds, group, notes} → {count, seconds, checked, …}

Ours is what the daemon opens, with everything on: each of 64 callers commits an intent (fence and
request id with it), waits, commits its outcome, waits for checkpoint and proofs, and goes on. The bare
loop commits the same rows through the same statements with the same durability, in one thread and with
nobody waiting: groups as large as ours came out, intents and outcomes in turn, each with its leaf hashes,
tiles, root and sealed head, and as many signed notes and synchronous anchor writes as ours made. What is
left between the two is the machinery: callers, gathering, hand-overs between threads, checks, inclusion
proofs and metrics.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any

import uvloop
from workers import serve

from greatseal.checkpoint import Checkpoint
from greatseal.note import NoteSigner
from greatseal.tlog import split_hashes, verify_inclusion
from greatseald.adapters.metrics import PrometheusMetrics
from greatseald.adapters.store.opening import open_store
from greatseald.app.recovery import open_tree
from greatseald.bootstrap.compose import open_log, read_settings
from greatseald.config import read_head_mac_key, read_log_key
from greatseald.domain.heads import HeadSeal
from greatseald.domain.tree import leaf_hash
from greatseald.ports.store import Append, Closing, Head, NewRequest, RequestKey, Tile

CALLERS = 64
ENTRY_BYTES = 700
_SCOPE = bytes(16)


class _Rows:
    """Entries and request ids, none twice and as cheap as can be: neither side is measured by its random numbers."""

    def __init__(self) -> None:
        self._filler = os.urandom(ENTRY_BYTES // 2).hex().encode()[:-16]
        self._numbers = itertools.count()

    def entry(self) -> bytes:
        return self._filler + b"%016d" % next(self._numbers)

    def request(self) -> RequestKey:
        """A request id as UUIDv7 has it: in the order of time."""
        moment = time.time_ns() // 1_000_000
        return RequestKey(moment.to_bytes(6, "big") + next(self._numbers).to_bytes(10, "big"), _SCOPE, 1)


class _Rounds(PrometheusMetrics):
    """The daemon's metrics, and how many rounds there were."""

    rounds = 0

    def committed(self, entries: int, seconds: float) -> None:
        self.rounds += 1
        super().committed(entries, seconds)


class Ours:
    """The daemon's own log, opened as the daemon opens it."""

    def __init__(self, config: Path) -> None:
        self._settings = read_settings(config, {})
        self._rows = _Rows()

    def run(self, seconds: float) -> dict[str, float]:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._run(seconds))

    async def _run(self, seconds: float) -> dict[str, float]:
        metrics = _Rounds("bench")
        opened = open_log(self._settings, metrics, _broken)
        log, rows, done = opened.log, self._rows, 0
        last: Any = None
        notes: set[int] = set()
        log.start()
        cpu, begun = time.process_time(), time.perf_counter()

        async def caller() -> None:
            nonlocal done, last
            while time.perf_counter() - begun < seconds:
                intent, outcome = rows.entry(), rows.entry()
                (placed,) = await log.open_intents([intent], [(rows.request(), bytes(32))])
                assert placed is not None
                proven = await log.close_intents([outcome], [placed.place])
                notes.add(proven.head.size)
                done += 2
                last = (placed, proven, outcome)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        elapsed, cpu = time.perf_counter() - begun, time.process_time() - cpu
        _check(*last)
        assert log.size >= done
        await asyncio.to_thread(log.stop)
        opened.anchor.close()
        opened.store.close()
        shape = {"group": done / metrics.rounds, "notes": len(notes) / metrics.rounds}
        return {"count": done, "seconds": elapsed, "cpu": cpu, "checked": 2, **shape}


def _check(placed: Any, proven: Any, outcome: bytes) -> None:
    for index, leaf, proof in (
        (placed.place, placed.leaf_hash, proven.proofs[0][0]),
        (proven.indexes[0], leaf_hash(outcome), proven.proofs[0][1]),
    ):
        verify_inclusion(index, proven.head.size, leaf, split_hashes(proof), proven.head.root)


def _broken(error: BaseException) -> None:
    raise SystemExit(f"the log broke: {error}")


class Bare:
    """What has to be done, in one thread, with nothing around it."""

    def __init__(self, config: Path) -> None:
        table = read_settings(config, {}).log
        directory = config.parent / "data"
        self._signer = NoteSigner(table.origin, read_log_key(table.key_file))
        self._origin = table.origin
        self._seal = HeadSeal(read_head_mac_key(table.head_mac_key_file))
        self._boot = os.urandom(16)
        self._store = open_store(f"sqlite://{directory / 'bare-append.db'}", self._boot)
        self._tree = open_tree(self._store, self._seal)
        self._anchor = os.open(directory / "bare-anchor", os.O_WRONLY | os.O_CREAT | os.O_DSYNC, 0o600)
        self._rows = _Rows()

    def run(self, seconds: float, group: float, notes: float) -> dict[str, float]:
        """Commit for so many seconds: `group` rows a commit, `notes` signed for each commit, both as ours were."""
        size, done, due = max(1, round(group)), 0, 0.0
        intents: list[int] = []
        cpu, begun = time.process_time(), time.perf_counter()
        while time.perf_counter() - begun < seconds or intents:
            entries = [self._rows.entry() for _ in range(size)]
            start = self._tree.size
            if intents:
                closed = [Closing(intent, start + place) for place, intent in enumerate(intents)]
                self._commit(entries, [], closed, [])
                intents = []
            else:
                intents = list(range(start, start + size))
                requests = [NewRequest(self._rows.request(), bytes(32), intent) for intent in intents]
                self._commit(entries, intents, [], requests)
            due += notes
            while due >= 1:
                due -= 1
                note = Checkpoint(self._origin, self._tree.size, self._tree.root()).sign(self._signer)
                os.pwrite(self._anchor, note.encode()[:300], 4096)
            done += size
        elapsed, cpu = time.perf_counter() - begun, time.process_time() - cpu
        return {"count": done, "seconds": elapsed, "cpu": cpu, "checked": 0}

    def _commit(
        self, entries: list[bytes], opened: list[int], closed: list[Closing], requests: list[NewRequest]
    ) -> None:
        tree, start = self._tree, self._tree.size
        tree.mark()
        tiles = [Tile(*tile) for tile in tree.append([leaf_hash(entry) for entry in entries])]
        root, frontier = tree.root(), tree.frontier()
        head = Head(tree.size, root, frontier, self._seal.mac(tree.size, root, frontier))
        now = time.time_ns() // 1_000_000
        self._store.append(Append(start, entries, head, self._boot, now, tiles, opened, closed, requests))


def main() -> None:
    sides: dict[str, Any] = {"ours": Ours(Path(sys.argv[1])), "bare": Bare(Path(sys.argv[1]))}
    serve(lambda command, arguments: sides[command].run(**arguments))


if __name__ == "__main__":
    main()
