"""`make soak`: hours of mixed load on a real daemon, and whether anything grows.

    python tests/bench/soak.py [--minutes M] [--sample S]         SOAK_MINUTES (60) and 10 s by default

The load: single callers, batches, statements, replays of earlier requests, readers of log and keys, callers
who are refused, and a reload every twenty seconds. JSON lines on stdout, {"at": seconds, ...}: every
sample has resident memory (MiB), open files and threads of the front and of its hosts, and the calls
since; every minute, latency of single signatures. The last line is the verdict, in words on stderr too:

- memory of the front and of the hosts is flat: the slope of a line through the samples of the last three
  quarters, over an hour, is below 5 % of their median (2 MiB at least: an allocator breathes);
- latency is flat: the same for the 99th percentile of the minutes, below 25 % (there are that many seconds
  in which a shared machine does something else);
- files and threads end at most 2 above what they were after the first quarter;
- no answer was one that callers must not get, no intent is open after the drain, and the whole log verifies.

The exit code is 1 unless all of them hold. Caches fill first: 64 MiB of SQLite's pages and the tree's newest
leaves in the front, the ledger's newest 65,536 records in the host, which takes some minutes. So memory and
latency are judged from 30 minutes on; of a shorter run their figures are told and nothing is concluded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from workers import children

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from deployment import Deployment
from greatseal.ids import new_request_id
from greatseal.v1 import audit_pb2, audit_pb2_grpc, key_pb2, key_pb2_grpc, signing_pb2, signing_pb2_grpc
from log_oracle import NoteVerifier
from sample_log import as_json, oms_document

MEMORY_SLOPE, LATENCY_SLOPE = 0.05, 0.25
MEMORY_FLOOR_MIB = 2.0
JUDGED_SECONDS = 1790.0
RELOAD_SECONDS = 20.0
STATEMENT = as_json(oms_document([f"part-{number:03}" for number in range(40)]))
# What callers are told in this load: those who may not, and those who come while there is no room.
REFUSALS = {"PERMISSION_DENIED", "UNAVAILABLE", "INVALID_ARGUMENT", "ALREADY_EXISTS"}


class Load:
    """Callers of every kind on one channel; each pauses a little, so that a small machine keeps its head."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._rng = random.Random(1)
        self._recent: deque[signing_pb2.SignDigestRequest] = deque(maxlen=2000)
        self.calls: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.faults: list[str] = []
        self.latencies: list[float] = []

    async def run(self, until: float) -> None:
        pki = self._deployment.directory / "pki"
        parts = ((pki / name).read_bytes() for name in ("ca.pem", "pipeline.key", "pipeline.pem"))
        credentials = grpc.ssl_channel_credentials(*parts)
        async with grpc.aio.secure_channel(self._deployment.address, credentials) as channel:
            self._signing = signing_pb2_grpc.SigningServiceStub(channel)
            self._audit = audit_pb2_grpc.AuditServiceStub(channel)
            self._keys = key_pb2_grpc.KeyServiceStub(channel)
            kinds: list[tuple[Callable[[], Awaitable[Any]], int, float]] = [
                (self._unary, 4, 0.02),
                (self._batch, 1, 0.25),
                (self._statement, 2, 0.05),
                (self._replay, 1, 0.05),
                (self._read, 1, 0.1),
                (self._refused, 1, 0.1),
            ]
            callers = [self._caller(kind, pause, until) for kind, count, pause in kinds for _ in range(count)]
            await asyncio.gather(self._reloads(until), *callers)

    async def _caller(self, kind: Callable[[], Awaitable[Any]], pause: float, until: float) -> None:
        while time.monotonic() < until:
            name = kind.__name__.strip("_")
            try:
                await kind()
                self.calls[name] += 1
            except grpc.RpcError as error:
                code = error.code().name
                self.refusals[f"{name} {code}"] += 1
                if code not in REFUSALS or (code == "PERMISSION_DENIED") != (name == "refused"):
                    self.faults.append(f"{name}: {code} {error.details()}")
            await asyncio.sleep(pause * self._rng.uniform(0.5, 1.5))

    async def _unary(self) -> None:
        request = self._digest()
        begun = time.perf_counter()
        answer = await self._signing.SignDigest(request, timeout=30)
        self.latencies.append(1e3 * (time.perf_counter() - begun))
        self._recent.append(request)
        if answer.digest != request.digest.sha256:
            self.faults.append("unary: another digest was signed")

    async def _batch(self) -> None:
        request = signing_pb2.BatchSignRequest()
        for _ in range(16):
            request.items.add().digest.CopyFrom(self._digest())
        answer = await self._signing.BatchSign(request, timeout=30)
        if any(result.HasField("error") for result in answer.results):
            self.faults.append("batch: an item was refused")

    async def _statement(self) -> None:
        request = signing_pb2.SignStatementRequest(key="keys/release", request_id=new_request_id())
        request.payload_type, request.payload = "application/vnd.in-toto+json", STATEMENT
        await self._signing.SignStatement(request, timeout=30)

    async def _replay(self) -> None:
        if self._recent:
            answer = await self._signing.SignDigest(self._rng.choice(self._recent), timeout=30)
            if not answer.replayed:
                self.faults.append("replay: an answered request was signed again")

    async def _read(self) -> None:
        head = await self._audit.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=30)
        start = self._rng.randrange(head.size)
        await self._audit.ListEntries(audit_pb2.ListEntriesRequest(start_index=start, page_size=50), timeout=30)
        proof = audit_pb2.GetInclusionProofRequest(index=start, tree_size=head.size)
        await self._audit.GetInclusionProof(proof, timeout=30)
        await self._keys.ListKeys(key_pb2.ListKeysRequest(), timeout=30)

    async def _refused(self) -> None:
        request = self._digest()
        request.key = self._rng.choice(["keys/release", "keys/nobody-has-this"])
        await self._signing.SignDigest(request, timeout=30)
        self.faults.append("refused: a caller who may not was answered")

    def _digest(self) -> signing_pb2.SignDigestRequest:
        request = signing_pb2.SignDigestRequest(key="keys/scratch", request_id=new_request_id())
        request.digest.sha256 = os.urandom(32)
        return request

    async def _reloads(self, until: float) -> None:
        while time.monotonic() + RELOAD_SECONDS < until:
            await asyncio.sleep(RELOAD_SECONDS)
            await asyncio.to_thread(self._deployment.reload)
            self.calls["reload"] += 1


def sizes(pid: int) -> dict[str, float]:
    """Resident memory in MiB, open files, threads."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return {"rss": int(status["VmRSS"].split()[0]) / 1024, "fds": files, "threads": int(status["Threads"])}


def sample(daemon: int, load: Load, begun: float) -> dict[str, Any]:
    hosts = [sizes(pid) for pid in children(daemon)]
    line: dict[str, Any] = {"at": round(time.monotonic() - begun, 1), "front": sizes(daemon)}
    line["hosts"] = {name: sum(host[name] for host in hosts) for name in ("rss", "fds", "threads")}
    return line | {"calls": dict(load.calls), "refusals": dict(load.refusals)}


def slope(points: list[tuple[float, float]]) -> float:
    """Change of the line through the points over an hour, as a part of their median."""
    if len(points) < 3:
        return 0.0
    line = statistics.linear_regression([at for at, _ in points], [value for _, value in points])
    return 3600 * line.slope / statistics.median(value for _, value in points)


def judge(samples: list[dict[str, Any]], minutes: list[dict[str, Any]]) -> dict[str, Any]:
    """What the samples say: each criterion with its figure and whether it holds."""
    last = samples[-1]["at"]
    settled = [each for each in samples if each["at"] >= last / 4]
    judged = last >= JUDGED_SECONDS
    verdict: dict[str, Any] = {}
    for who in ("front", "hosts"):
        points = [(each["at"], each[who]["rss"]) for each in settled]
        change, median = slope(points), statistics.median(value for _, value in points)
        # Over a short run an hour's slope is an extrapolation: what really changed counts as well.
        really = abs(change) * median * (last - settled[0]["at"]) / 3600
        flat = not judged or abs(change) < MEMORY_SLOPE or really < MEMORY_FLOOR_MIB
        verdict[f"{who}_memory"] = {
            "mib": round(median, 1),
            "slope_per_hour": round(change, 4),
            "judged": judged,
            "holds": flat,
        }
        for what in ("fds", "threads"):
            grown = samples[-1][who][what] - settled[0][who][what]
            verdict[f"{who}_{what}"] = {"value": samples[-1][who][what], "grown": grown, "holds": grown <= 2}
    points = [(each["at"], each["p99_ms"]) for each in minutes if each["at"] >= last / 4]
    change = slope(points)
    p99 = statistics.median(value for _, value in points) if points else 0.0
    verdict["p99"] = {
        "ms": round(p99, 2),
        "slope_per_hour": round(change, 3),
        "judged": judged,
        "holds": not judged or change < LATENCY_SLOPE,
    }
    return verdict


async def soak(deployment: Deployment, minutes: float, every: float) -> tuple[list[Any], list[Any], Load]:
    load, begun = Load(deployment), time.monotonic()
    assert deployment.process is not None
    running = asyncio.create_task(load.run(begun + 60 * minutes))
    samples: list[dict[str, Any]] = []
    by_minute: list[dict[str, Any]] = []
    minute = begun + min(60.0, 15 * minutes)
    while not running.done():
        await asyncio.wait([running], timeout=every)
        samples.append(sample(deployment.process.pid, load, begun))
        print(json.dumps(samples[-1]), flush=True)
        if time.monotonic() >= minute and load.latencies:
            ordered = sorted(load.latencies)
            load.latencies = []
            line = {"at": samples[-1]["at"], "p50_ms": ordered[len(ordered) // 2]}
            by_minute.append(line | {"p99_ms": ordered[(99 * len(ordered) - 1) // 100], "count": len(ordered)})
            print(json.dumps(by_minute[-1]), flush=True)
            minute += min(60.0, 15 * minutes)
    await running
    return samples, by_minute, load


def check_log(deployment: Deployment) -> dict[str, Any]:
    """After a drain and a new start: every intent closed, nothing left to recover, the log whole."""
    from greatseal.logcheck import LogCheck

    if deployment.stop():
        return {"holds": False, "why": "the daemon did not end cleanly"}
    deployment.start()
    notes = NoteVerifier(deployment.log_vkey.read_text())
    check = LogCheck(notes.origin)
    pki = deployment.directory / "pki"
    parts = ((pki / name).read_bytes() for name in ("ca.pem", "pipeline.key", "pipeline.pem"))
    with grpc.secure_channel(deployment.address, grpc.ssl_channel_credentials(*parts)) as channel:
        audit = audit_pb2_grpc.AuditServiceStub(channel)
        head = notes.open(audit.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=30).note)
        while check.size < head.size:
            wanted = audit_pb2.ListEntriesRequest(start_index=check.size, page_size=1000)
            for entry in audit.ListEntries(wanted, timeout=60).entries:
                if entry.index < head.size:
                    check.add(entry.index, entry.data)
    deployment.stop()
    unknown = check.counts.get("outcome unknown", 0) + check.counts.get("outcome aborted", 0)
    good = check.problem is None and check.root() == head.root and not check.open_intents and not unknown
    answer = {"entries": check.size, "open_intents": len(check.open_intents), "unknown": unknown}
    return answer | {"counts": check.counts, "problem": str(check.problem or ""), "holds": good}


def main() -> int:
    parser = argparse.ArgumentParser(description="Mixed load for a long time; says whether anything grows.")
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("SOAK_MINUTES", "60")))
    parser.add_argument("--sample", type=float, default=10.0, metavar="SECONDS")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="greatseal-soak-") as directory:
        deployment = Deployment.create(Path(directory))
        try:
            deployment.start()
            samples, by_minute, load = asyncio.run(soak(deployment, arguments.minutes, arguments.sample))
            verdict = judge(samples, by_minute)
            verdict["answers"] = {"wrong": len(load.faults), "first": load.faults[:3], "holds": not load.faults}
            verdict["log"] = check_log(deployment)
        finally:
            deployment.close()
    good = all(each["holds"] for each in verdict.values())
    print(json.dumps({"verdict": verdict, "minutes": arguments.minutes, "good": good}), flush=True)
    for name, each in verdict.items():
        said = ", ".join(f"{what} {value}" for what, value in each.items() if what != "holds")
        mark = "FAILED" if not each["holds"] else "ok    " if each.get("judged", True) else "told  "
        print(f"  {mark}  {name}: {said}", file=sys.stderr)
    print(f"soak of {arguments.minutes:g} minutes: {'all holds' if good else 'see above'}", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
