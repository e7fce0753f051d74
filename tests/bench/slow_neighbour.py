"""slow-neighbour: the 99th percentile of a fast token's callers while another token is slow and busy.

An installation of its own, with two tokens of SoftHSM behind the shim. The slow one takes 100 ms an
operation in each of two sessions, 20 operations a second, and always has more callers than that.
Both sides of a pair are the same 2,000 unary calls of one caller on the fast token; only the other
token's load differs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from result import Result
from workers import Worker

from fault_site import FaultSite

SLOW_MS = 100
SLOW_CALLERS = 4
SAMPLES = 2000
AIM = 1.2


def slow_neighbour(directory: Path, pairs: int, samples: int) -> Result:
    result = Result("slow-neighbour", "ms, p99", "the same calls with the slow token idle", AIM, at_most=True)
    site = FaultSite(directory, two_tokens=True)
    workers: list[Worker] = []
    try:
        site.other.rule("C_Sign", "delay", SLOW_MS)
        site.deployment.start()
        arguments = (str(site.directory / "pki"), str(site.deployment.log_vkey))
        workers += [Worker("load_client.py", *arguments) for _ in range(2)]
        fast, slow = workers
        pem = (site.directory / "keys" / "scratch.pem").read_text()
        task = {"address": site.deployment.address, "key": "keys/scratch", "pem": pem, "callers": 1, "check": True}
        neighbour = task | {"key": "keys/steady", "callers": SLOW_CALLERS}
        fast.ask("unary", **task, count=samples // 4)
        for number in range(pairs):
            # Which comes first alternates: the log grows, and what drifts must not look like the neighbour.
            figures = {}
            for busy in (True, False) if number % 2 else (False, True):
                with _busy(slow, neighbour, result) if busy else _nothing():
                    got = fast.ask("unary", **task, count=samples)
                figures[busy] = got["p99_ms"]
                result.checked += got["checked"]
            result.note(figures[True], figures[False])
    finally:
        for worker in workers:
            worker.close()
        site.close()
    return result


@contextmanager
def _busy(slow: Worker, task: dict[str, object], result: Result) -> Iterator[None]:
    """Keep the slow token's callers at it in the block."""
    stop = threading.Event()
    begun = threading.Event()

    def load() -> None:
        while not stop.is_set():
            begun.set()
            got = slow.ask("unary", **task, seconds=0.5)
            result.checked += got["checked"]
            result.parts.setdefault("slow token's p50", []).append(got["p50_ms"])

    thread = threading.Thread(target=load)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _nothing() -> Iterator[None]:
    yield
