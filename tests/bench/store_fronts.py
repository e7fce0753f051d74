"""Records a second that several writers put into one PostgreSQL log: tree, MAC's worth of hashing, tiles, fences, requests, COMMIT.

    store_fronts.py [WRITERS] [BATCH] [SECONDS]      default: 3 256 10

Starts a server of its own (fsync on) and each writer in a process of its own. Every other commit opens intents
with their requests and the next closes them, as signing does. One JSON line on stdout; `cpu_us` is the CPU time of
writers and server for each record, which depends less on what else the machine does than the rate.
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


def cpu_seconds(pids: list[int]) -> float:
    """What the processes have used so far (proc(5), fields 14 and 15 of stat)."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


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
        watched = [writer.pid for writer in running] + server.processes()
        used = cpu_seconds(watched)
        begun, before = time.monotonic(), server.run("SELECT size FROM greatseal.head", "log")[0][0]
        load = os.getloadavg()[0]
        time.sleep(seconds)
        after, ended = server.run("SELECT size FROM greatseal.head", "log")[0][0], time.monotonic()
        used = cpu_seconds(watched) - used
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
                "load": load,
                "cpu_us": round(used * 1e6 / (after - before), 1),
            }
        )
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
