"""What the store's append costs: µs for each signature over its two appends (intent, outcome).

    store_append.py [URL]        default: an SQLite database in a temporary directory

With intents, fences, outcomes and requests in place over 300,000 rows, in batches of 256 and of 1,
quiet and beside a thread that keeps the interpreter busy, as an event loop under load does. One JSON
line for each on stdout, a table on stderr.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from greatseald.adapters.store.opening import open_store
from greatseald.ports.store import Append, Closing, Head, NewRequest, RequestKey, Store, Tile

ROWS = 300_000
ENTRY_BYTES = 700
BATCH_OF_ROWS = 2_000


class Signatures:
    """Makes the two appends of a group of signatures; the entries' content does not matter to the store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        head = store.head()
        self.size = head.size if head else 0
        self._boot = os.urandom(16)
        self._caller = os.urandom(16)
        self._entries = [os.urandom(ENTRY_BYTES // 2).hex().encode() for _ in range(BATCH_OF_ROWS)]

    def appends(self, count: int) -> tuple[Append, Append]:
        size, now = self.size, time.time_ns() // 1_000_000
        intents = range(size, size + count)
        hashes = os.urandom(32)
        # UUIDv7: milliseconds, then random.
        keys = [RequestKey(now.to_bytes(6, "big") + os.urandom(10), self._caller, 1) for _ in intents]
        requests = [NewRequest(key, hashes, intent) for key, intent in zip(keys, intents, strict=True)]
        closings = [Closing(intent, intent + count) for intent in intents]
        entries = self._entries[:count]
        self.size += 2 * count
        return (
            self._append(size, entries, now, opened=list(intents), requests=requests),
            self._append(size + count, entries, now, closed=closings),
        )

    def _append(self, size: int, entries: list[bytes], now: int, **more: object) -> Append:
        end = size + len(entries)
        full = range(size // 256, end // 256)
        tiles = [Tile(0, number, bytes(8192)) for number in full]
        head = Head(end, bytes(32), bytes(32 * end.bit_count()), bytes(32))
        return Append(size, entries, head, self._boot, now, tiles, **more)  # type: ignore[arg-type]

    def measure(self, count: int, seconds: float) -> tuple[list[float], list[float], float]:
        """Return µs for each signature of its intent and its outcome, by round, and the CPU µs of both."""
        intents, outcomes, done = [], [], 0
        end = time.perf_counter() + seconds
        cpu = 0.0
        while time.perf_counter() < end:
            intent, outcome = self.appends(count)
            begun, cpu_begun = time.perf_counter(), time.thread_time()
            self.store.append(intent)
            between = time.perf_counter()
            self.store.append(outcome)
            ended = time.perf_counter()
            cpu += time.thread_time() - cpu_begun
            intents.append((between - begun) * 1e6 / count)
            outcomes.append((ended - between) * 1e6 / count)
            done += count
        return intents, outcomes, cpu * 1e6 / done


@contextmanager
def busy_interpreter() -> Iterator[None]:
    """A thread that gives the interpreter lock up only when it is made to."""
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def quiet() -> Iterator[None]:
    yield


def main(url: str) -> None:
    store = open_store(url, os.urandom(16))
    signatures = Signatures(store)
    while signatures.size < 2 * ROWS:
        for append in signatures.appends(BATCH_OF_ROWS):
            store.append(append)
    print(f"{'':22}{'intent':>10}{'outcome':>10}{'both, mean':>12}{'CPU':>8}   µs a signature", file=sys.stderr)
    for name, count, beside in (
        ("batch of 256", 256, quiet),
        ("batch of 256, busy", 256, busy_interpreter),
        ("one", 1, quiet),
        ("one, busy", 1, busy_interpreter),
    ):
        with beside():
            intents, outcomes, cpu = signatures.measure(count, 6)
        row = {
            "measure": f"store-append {name}",
            "unit": "us/signature",
            "value": round(statistics.median(intents) + statistics.median(outcomes), 2),
            "intent_p50": round(statistics.median(intents), 2),
            "outcome_p50": round(statistics.median(outcomes), 2),
            "mean": round(statistics.mean(intents) + statistics.mean(outcomes), 2),
            "cpu": round(cpu, 2),
            "requests_on_record": signatures.size // 2,
        }
        print(json.dumps(row), flush=True)
        cells = f"{row['intent_p50']:>10}{row['outcome_p50']:>10}{row['mean']:>12}{row['cpu']:>8}"
        print(f"{name:22}{cells}", file=sys.stderr)
    store.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory(prefix="greatseal-bench-") as directory:
            main(f"sqlite://{directory}/log.db")
