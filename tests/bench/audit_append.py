"""audit-append: records a second through the daemon's log with 64 waiting callers, against a bare loop.

    audit_append.py CONFIG        commands: ours{seconds}, bare{seconds} → {count, seconds, checked}

Ours is what the daemon opens, with everything on: each of 64 callers commits an intent (fence and
request id with it), waits, commits its outcome, waits for checkpoint and proofs, and goes on. The bare
loop does what such a log cannot do without, 64 records a round: leaf hashes, the same tree and its
tiles, the root, the note's signature, one SQLite commit in WAL mode with synchronous=FULL, and one
synchronous write for the anchor where the round releases something, as every second one does.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import apsw
import uvloop
from workers import serve

from greatseal.checkpoint import Checkpoint
from greatseal.note import NoteSigner
from greatseal.tlog import split_hashes, verify_inclusion
from greatseald.adapters.metrics import PrometheusMetrics
from greatseald.bootstrap.compose import open_log, read_settings
from greatseald.config import read_log_key
from greatseald.domain.tree import Tree, leaf_hash
from greatseald.ports.store import RequestKey

CALLERS = 64
ENTRY_BYTES = 700


class Ours:
    """The daemon's own log, opened as the daemon opens it."""

    def __init__(self, config: Path) -> None:
        self._settings = read_settings(config, {})
        self._scope = os.urandom(16)

    def run(self, seconds: float) -> dict[str, float]:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._run(seconds))

    async def _run(self, seconds: float) -> dict[str, float]:
        opened = open_log(self._settings, PrometheusMetrics("bench"), _broken)
        log, done = opened.log, 0
        last: Any = None
        log.start()
        cpu, begun = time.process_time(), time.perf_counter()

        async def caller() -> None:
            nonlocal done, last
            while time.perf_counter() - begun < seconds:
                intent, outcome = (os.urandom(ENTRY_BYTES // 2).hex().encode() for _ in range(2))
                request = RequestKey(uuid.uuid4().bytes, self._scope, 1)
                (placed,) = await log.open_intents([intent], [(request, bytes(32))])
                assert placed is not None
                proven = await log.close_intents([outcome], [placed.place])
                done += 2
                last = (placed, proven, outcome)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        elapsed, cpu = time.perf_counter() - begun, time.process_time() - cpu
        _check(*last)
        assert log.size >= done
        await asyncio.to_thread(log.stop)
        opened.anchor.close()
        opened.store.close()
        return {"count": done, "seconds": elapsed, "cpu": cpu, "checked": 2}


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
        self._tiles: dict[tuple[int, int], bytes] = {}
        self._tree = Tree(lambda level, index: self._tiles.get((level, index)))
        self._database = apsw.Connection(str(directory / "bare-append.db"))
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            list(self._database.execute(f"PRAGMA {pragma}"))
        self._database.execute("CREATE TABLE rounds (size INTEGER PRIMARY KEY, data BLOB, note TEXT) STRICT")
        self._anchor = os.open(directory / "bare-anchor", os.O_WRONLY | os.O_CREAT | os.O_DSYNC, 0o600)

    def run(self, seconds: float) -> dict[str, float]:
        done, released = 0, False
        cpu, begun = time.process_time(), time.perf_counter()
        while time.perf_counter() - begun < seconds:
            entries = [os.urandom(ENTRY_BYTES // 2).hex().encode() for _ in range(CALLERS)]
            self._tree.mark()
            for level, index, data in self._tree.append([leaf_hash(entry) for entry in entries]):
                self._tiles[level, index] = data
            size, root = self._tree.size, self._tree.root()
            note = Checkpoint(self._origin, size, root).sign(self._signer)
            self._database.execute("INSERT INTO rounds VALUES (?, ?, ?)", (size, b"".join(entries), note))
            if released:
                os.pwrite(self._anchor, note.encode()[:300], 4096)
            released = not released
            done += CALLERS
        elapsed, cpu = time.perf_counter() - begun, time.process_time() - cpu
        return {"count": done, "seconds": elapsed, "cpu": cpu, "checked": 0}


def main() -> None:
    sides: dict[str, Any] = {"ours": Ours(Path(sys.argv[1])), "bare": Bare(Path(sys.argv[1]))}
    serve(lambda command, arguments: sides[command].run(**arguments))


if __name__ == "__main__":
    main()
