"""Records a second that several writers put into one PostgreSQL log: tree, MAC's worth of hashing, tiles, fences, requests, COMMIT.

    store_fronts.py [WRITERS] [BATCH] [SECONDS]      default: 3 256 10

Starts a server of its own (fsync on) and each writer in a process of its own. Every other commit opens intents
with their requests and the next closes them, as signing does. One JSON line on stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from postgres_server import PostgresServer

DRIVER = Path(__file__).parents[1] / "store_driver.py"


def main(writers: int = 3, batch: int = 256, seconds: int = 10) -> None:
    with PostgresServer.start() as server:
        url = server.empty_database()
        line = [sys.executable, str(DRIVER), "write", url]
        running = [
            subprocess.Popen(
                [*line, f"w{number}", "1000000", str(batch), "700"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(writers)
        ]
        for writer in running:
            assert writer.stdout is not None
            assert writer.stdin is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in running:
            print("go", file=writer.stdin, flush=True)
        time.sleep(1)
        begun, before = time.monotonic(), server.run("SELECT size FROM greatseal.head", "log")[0][0]
        load = os.getloadavg()[0]
        time.sleep(seconds)
        after, ended = server.run("SELECT size FROM greatseal.head", "log")[0][0], time.monotonic()
        commits = server.run("SELECT count(*) FROM greatseal.commits", "log")[0][0]
        for writer in running:
            writer.kill()
            writer.communicate()
    assert isinstance(before, int)
    assert isinstance(after, int)
    print(
        json.dumps(
            {
                "measure": "postgres-append",
                "value": round((after - before) / (ended - begun)),
                "unit": "records/s",
                "writers": writers,
                "batch": batch,
                "commits": commits,
                "load_before": load,
            }
        )
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
