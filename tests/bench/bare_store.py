"""Bare commits: what two durable SQLite transactions cost on this disk with nothing around them.

bare_store.py DIRECTORY       command: commit{count, size, pause} → {commit_ms: p50}

`pause` seconds lie between commits: a disk that was idle for a millisecond answers up to twice as slowly
as one that is kept busy, so whoever compares with commits that come now and then has to pause as long.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import apsw
from workers import serve


def main() -> None:
    path = Path(sys.argv[1]) / "bare.db"
    database = apsw.Connection(str(path))
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        list(database.execute(f"PRAGMA {pragma}"))
    database.execute("CREATE TABLE IF NOT EXISTS entries (start INTEGER PRIMARY KEY, data BLOB NOT NULL)")

    def commit(_command: str, arguments: dict[str, Any]) -> dict[str, float]:
        blobs = [os.urandom(arguments["size"]) for _ in range(arguments["count"])]
        times = []
        for blob in blobs:
            begun = time.perf_counter()
            database.execute("INSERT INTO entries (data) VALUES (?)", (blob,))
            times.append(time.perf_counter() - begun)
            if arguments["pause"]:
                time.sleep(arguments["pause"])
        return {"commit_ms": 1e3 * statistics.median(times)}

    serve(commit)


if __name__ == "__main__":
    main()
