"""A tiny front in a process of its own: it writes, or recovers, until it is done, killed or broken.

    store_driver.py write URL NAME COMMITS ENTRIES BYTES    `acked SIZE` after each commit
    store_driver.py hold URL NAME COMMITS ENTRIES BYTES     writes, then keeps the store until its stdin ends
    store_driver.py recover URL NAME COMMITS                closes what dead boots left; `closed INTENT` for each

Each opens the store, says `ready`, and begins when it is sent a line.
Exits with 70 when the store broke, 71 when it could not be opened; the reason is on stderr.
"""

from __future__ import annotations

import os
import random
import sys
from contextlib import closing

from greatseald.adapters import logs
from greatseald.adapters.store.opening import open_store
from greatseald.ports.store import FencesLost, RequestKey, Store, StoreBroken, StoreUnusable
from store_writing import StoreWriter

BROKEN, UNUSABLE = 70, 71


def write(store: Store, boot: bytes, name: str, commits: int, entries: int, size: int) -> None:
    writer = StoreWriter(store, boot)
    requests = random.Random(name)
    open_from: int | None = None
    for commit in range(commits):
        batch = [f"{name} {commit} {number} ".encode().ljust(size, b".") for number in range(entries)]
        if open_from is None:
            keys = [RequestKey(requests.randbytes(16), b"c" * 16, 1) for _ in batch]
            open_from = writer.write(batch, opens=True, requests=keys)
        else:
            writer.write(batch, closes=range(open_from, open_from + entries))
            open_from = None
        print("acked", writer.tree.size, flush=True)


def recover(store: Store, boot: bytes, name: str, commits: int) -> None:
    writer = StoreWriter(store, boot)
    pick = random.Random(name)
    for _ in range(commits):
        there = [intent.intent for intent in store.open_intents()]
        if not there:
            return
        chosen = pick.sample(there, min(len(there), pick.randint(1, 4)))
        try:
            writer.write([b"unknown: %d by %s" % (intent, name.encode()) for intent in chosen], closes=chosen)
        except FencesLost:
            continue
        print(*(f"closed {intent}" for intent in chosen), sep="\n", flush=True)


def main(what: str, url: str, *arguments: str) -> int:
    boot = os.urandom(16)
    logs.configure("warning")
    try:
        store = open_store(url, boot)
    except StoreUnusable as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    name, *numbers = arguments
    try:
        with closing(store):
            print("ready", flush=True)
            sys.stdin.readline()
            if what == "recover":
                recover(store, boot, name, *map(int, numbers))
            else:
                write(store, boot, name, *map(int, numbers))
            if what == "hold":
                sys.stdin.read()
    except StoreBroken as error:
        print(error, file=sys.stderr)
        return BROKEN
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
