"""`make bench`: what the daemon costs over what it stands on, as ratios within one run.

    python tests/bench/run.py [--quick] [--only NAME ...] [--rounds N] [--seconds S] [--report FILE]

JSON lines on stdout, one a measure:
    {"measure", "value", "unit", "against", "baseline", "ratio" (or "difference"), "range": [low, high],
     "aim", "rounds", "cores", "cpu_us": {process: µs a signature}, "checked": signatures and receipts checked}
The table for people goes to stderr. Nothing here judges: a missed aim is reported, never an error.
Rounds are paired (ours, bare, ours, bare …); `ratio` is the median of the rounds' ratios, `range`
their lowest and highest (of the figures, where the aim is one for the figure itself), `value` and `baseline` medians of their own. CPU drifts on small machines:
differences under 15 % between runs are noise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_speed
from bench_site import BenchKey, Site
from log_scale import LARGE, QUICK, log_scale
from pool import pool
from report import Machine, page
from result import Result, aim_text, is_met
from rich.console import Console
from rich.table import Table
from slow_neighbour import SAMPLES, slow_neighbour

from deployment import Deployment

UNARY_CALLERS = 32
BATCH_CALLERS = 2
BATCH_SIZE = 256


class Bench:
    """Runs measures on one site."""

    def __init__(self, site: Site, rounds: int, seconds: float) -> None:
        self._site = site
        self._rounds = rounds
        self._seconds = seconds
        self._client = site.client()
        self._scale: tuple[Result, Result] | None = None

    def batch(self, measure: str, key: BenchKey, aim: float, *, verify: bool = False, factor: float = 1.0) -> Result:
        """Batches of 256 from two callers, against the bare token on as many threads as suit it best."""
        against = "bare sign and verify" if verify else "bare sign"
        result = Result(measure, "signatures/s", f"{against}, same token, python-pkcs11 threads", aim)
        bare, seconds = self._site.bare_token(key), self._seconds * factor
        task = {"key": key.label, "algorithm": key.algorithm, "digest_size": key.digest_size, "verify": verify}
        threads = self._best_threads(bare, key, task)
        ours = {
            "address": self._site.address,
            "key": key.resource,
            "pem": key.pem,
            "algorithm": key.algorithm,
            "digest_size": key.digest_size,
            "callers": BATCH_CALLERS,
            "size": BATCH_SIZE,
        }
        self._client.ask("batch", **ours, seconds=0.2)
        for _ in range(self._rounds):
            before = self._site.cpu()
            got = self._client.ask("batch", **ours, seconds=seconds)
            result.note_cpu(before, self._site.cpu(), got["cpu"], got["count"])
            result.ours.append(got["count"] / got["seconds"])
            result.checked += got["checked"]
            plain = bare.ask("sign", **task, threads=threads, seconds=seconds)
            result.bare.append(plain["count"] / plain["seconds"])
            result.cpu_us.setdefault("bare", []).append(1e6 * plain["cpu"] / plain["count"])
        bare.close()
        return result

    def _best_threads(self, bare: Any, key: BenchKey, task: dict[str, Any]) -> int:
        """The bare side gets the number of threads at which it is fastest; a device, one for each session."""
        if key.device:
            bare.ask("sign", **task, threads=10, seconds=0.2)
            return 10
        speeds = {}
        for threads in sorted({1, os.cpu_count() or 1}):
            got = bare.ask("sign", **task, threads=threads, seconds=0.3)
            speeds[threads] = got["count"] / got["seconds"]
        return max(speeds, key=speeds.__getitem__)

    def unary_32(self) -> Result:
        """Unary calls from 32 callers, against an echo of the same messages over the same mTLS."""
        result = Result("unary-32", "calls/s", "grpc.aio echo of the same messages, mTLS, uvloop", 0.28)
        key = self._site.keys["p256"]
        with _Echo(self._site, self._client, key) as echo:
            task = {"key": key.resource, "pem": key.pem, "callers": UNARY_CALLERS}
            for address in (self._site.address, echo):
                self._client.ask("unary", address=address, **task, check=False, seconds=0.3)
            for _ in range(self._rounds):
                before = self._site.cpu()
                got = self._client.ask("unary", address=self._site.address, **task, check=True, seconds=self._seconds)
                result.note_cpu(before, self._site.cpu(), got["cpu"], got["count"])
                result.ours.append(got["count"] / got["seconds"])
                result.checked += got["checked"]
                plain = self._client.ask("unary", address=echo, **task, check=False, seconds=self._seconds)
                result.bare.append(plain["count"] / plain["seconds"])
        return result

    def unary_idle(self) -> Result:
        """One caller's median latency, against the sum of its parts, each measured in the same round."""
        against = "echo + bare sign + bare verify + two bare SQLite commits (FULL), all as far apart as ours"
        result = Result("unary-idle", "ms", against, 1.5, difference=True)
        key, count = self._site.keys["p256"], max(50, int(120 * self._seconds))
        bare, store = self._site.bare_token(key), self._site.bare_store()
        with _Echo(self._site, self._client, key) as echo:
            task = {"key": key.resource, "pem": key.pem, "callers": 1}
            for _ in range(self._rounds):
                before = self._site.cpu()
                got = self._client.ask("unary", address=self._site.address, **task, check=True, count=count)
                result.note_cpu(before, self._site.cpu(), got["cpu"], got["count"])
                result.checked += got["checked"]
                plain = self._client.ask("unary", address=echo, **task, check=False, count=count)
                once = {"key": key.label, "algorithm": key.algorithm, "digest_size": 32, "count": count}
                token = bare.ask("time", **once, pause=got["p50_ms"] / 1e3)
                busy = bare.ask("time", **once, pause=0)
                commit = store.ask("commit", count=count, size=800, pause=got["p50_ms"] / 2e3)["commit_ms"]
                packed = store.ask("commit", count=count, size=800, pause=0)["commit_ms"]
                parts = {
                    "echo": plain["p50_ms"],
                    "sign": token["sign_ms"],
                    "verify": token["verify_ms"],
                    "two commits": 2 * commit,
                }
                for name, value in parts.items():
                    result.parts.setdefault(name, []).append(value)
                together = busy["sign_ms"] + busy["verify_ms"] + 2 * packed
                result.parts.setdefault("all but the echo back to back", []).append(together)
                result.ours.append(got["p50_ms"])
                result.bare.append(sum(parts.values()))
        bare.close()
        store.close()
        return result

    def slow_neighbour(self) -> Result:
        """The 99th percentile of a fast token's caller beside a slow token that is busy, against beside an idle one."""
        samples = SAMPLES if self._seconds >= 1 else SAMPLES // 10
        with tempfile.TemporaryDirectory(prefix="greatseal-bench-") as directory:
            return slow_neighbour(Path(directory), self._rounds, samples)

    def pool(self) -> Result:
        """Ten YubiKeys that hold one key, against one of them."""
        with tempfile.TemporaryDirectory(prefix="greatseal-bench-") as directory:
            return pool(Path(directory), self._rounds, self._seconds)

    def audit_append(self) -> Result:
        """Records of 64 waiting callers through the log, against a bare loop of tree, note, commit and sync."""
        against = "bare loop: same rows, statements, tree, notes and anchor writes, in groups as large, nobody waiting"
        result = Result("audit-append", "records/s", against, 0.8)
        with tempfile.TemporaryDirectory(prefix="greatseal-bench-") as directory:
            worker = self._site.start("audit_append.py", str(Deployment.create(Path(directory)).config))
            for _ in range(self._rounds):
                got = worker.ask("ours", seconds=0.6 * self._seconds)
                shape = {"group": got["group"], "notes": got["notes"]}
                plain = worker.ask("bare", seconds=0.6 * self._seconds, **shape)
                result.note(got["count"] / got["seconds"], plain["count"] / plain["seconds"])
                result.checked += got["checked"]
                for name, side in (("log", got), ("bare", plain)):
                    result.cpu_us.setdefault(name, []).append(1e6 * side["cpu"] / side["count"])
            worker.close()
        return result

    def model_1gib(self) -> Result:
        return model_speed.model_1gib(
            self._rounds, self._site.deployment.profile, self._site.directory / "keys" / "release.pem"
        )

    def model_10k(self) -> Result:
        return model_speed.model_10k(
            self._rounds, self._site.deployment.profile, self._site.directory / "keys" / "release.pem"
        )

    def hashing(self) -> Result:
        return model_speed.hashing(self._rounds)

    def log_verify(self, side: str) -> Result:
        """Entries a second of CPU through the offline verifier: `semantic` as a whole, or `hashes` only."""
        name, aim = ("log-verify", 80_000) if side == "semantic" else ("log-verify-hashes", 200_000)
        against = "SHA-256 of the same bundles, nothing else"
        result = Result(name, "entries/s of CPU", against, aim, absolute=True)
        worker = self._site.start("log_verify.py")
        count = worker.ask("make", entries=max(10_000, int(25_000 * self._seconds)))["count"]
        for _ in range(self._rounds):
            got, plain = worker.ask(side), worker.ask("bare")
            result.note(count / got["cpu"], count / plain["cpu"])
            result.checked += got["checked"]
            for which, answer in (("verifier", got), ("bare", plain)):
                result.cpu_us.setdefault(which, []).append(1e6 * answer["cpu"] / count)
        worker.close()
        return result

    def log_scale(self, which: int) -> Result:
        """Start-up (0) or memory (1) of a daemon with a long log; both are measured at once, and once."""
        if self._scale is None:
            whole = self._seconds >= 1
            with tempfile.TemporaryDirectory(prefix="greatseal-bench-") as directory:
                self._scale = log_scale(Path(directory), self._rounds if whole else 1, LARGE if whole else QUICK)
        return self._scale[which]


class _Echo:
    """The echo server, fed with an answer that the daemon really gave."""

    def __init__(self, site: Site, client: Any, key: BenchKey) -> None:
        sample = site.directory.parent / "sample.bin"
        client.ask("sample", address=site.address, key=key.resource, path=str(sample))
        self._process, self._address = site.echo(sample)

    def __enter__(self) -> str:
        return self._address

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


def measures(bench: Bench, site: Site) -> dict[str, Callable[[], Result]]:
    keys = site.keys
    return {
        "batch-p256": lambda: bench.batch("batch-p256", keys["p256"], 0.4),
        # A batch of RSA takes most of a second on two cores: a window has to hold several.
        "batch-rsa3072": lambda: bench.batch("batch-rsa3072", keys["rsa3072"], 0.9, factor=1.5),
        "batch-p384": lambda: bench.batch("batch-p384", keys["p384"], 0.8, verify=True),
        "batch-device": lambda: bench.batch("batch-device", keys["device"], 0.95),
        "unary-32": bench.unary_32,
        "unary-idle": bench.unary_idle,
        "slow-neighbour": bench.slow_neighbour,
        "pool": bench.pool,
        "audit-append": bench.audit_append,
        "model-1gib": bench.model_1gib,
        "model-10k": bench.model_10k,
        "hashing": bench.hashing,
        "log-verify": lambda: bench.log_verify("semantic"),
        "log-verify-hashes": lambda: bench.log_verify("hashes"),
        "log-scale-start": lambda: bench.log_scale(0),
        "log-scale-memory": lambda: bench.log_scale(1),
    }


NAMES = (
    "batch-p256",
    "batch-rsa3072",
    "batch-p384",
    "batch-device",
    "unary-32",
    "unary-idle",
    "slow-neighbour",
    "pool",
    "audit-append",
    *model_speed.NAMES,
    "log-verify",
    "log-verify-hashes",
    "log-scale-start",
    "log-scale-memory",
)


def table(lines: list[dict[str, Any]]) -> Table:
    shown = Table(title=f"greatseald on {os.cpu_count()} cores", title_justify="left")
    for heading in ("measure", "ours", "bare", "ratio", "range", "aim", "CPU µs a signature", "checked"):
        shown.add_column(heading, justify="left" if heading.startswith(("measure", "CPU")) else "right")
    for line in lines:
        difference = "difference" in line
        shown.add_row(
            line["measure"],
            f"{line['value']} {line['unit']}",
            str(line["baseline"]),
            f"[{'green' if is_met(line) else 'yellow'}]"
            + (f"+{line['difference']} ms" if difference else str(line["ratio"])),
            f"{line['range'][0]} to {line['range'][1]}",
            aim_text(line),
            ", ".join(f"{name} {value}" for name, value in line["cpu_us"].items()),
            str(line["checked"]),
        )
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the daemon against what it stands on.")
    parser.add_argument("--quick", action="store_true", help="under a minute; wider ranges")
    parser.add_argument("--only", action="append", choices=NAMES, help="this measure (may be repeated)")
    parser.add_argument("--rounds", type=int, help="pairs of rounds for each measure (5; quick: 3)")
    parser.add_argument("--seconds", type=float, help="length of a round's side (2.5; quick: 0.5)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the page for docs/, of a whole run")
    parser.add_argument("--daemon-env", action="append", default=[], metavar="NAME=VALUE", help="for profiling")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    seconds = arguments.seconds or (0.5 if arguments.quick else 2.5)
    if arguments.report and (arguments.only or arguments.quick):
        parser.error("--report is for a whole run: leave --only and --quick out")
    # Their sizes are their names, so a quick run leaves them out unless they are asked for.
    left_out = model_speed.NAMES if arguments.quick and arguments.only is None else ()
    machine = Machine.now()
    begun, lines = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="greatseal-bench-") as directory:
        site = Site(Path(directory), daemon_env=dict(item.split("=", 1) for item in arguments.daemon_env))
        try:
            bench = Bench(site, rounds, seconds)
            for name, measure in measures(bench, site).items():
                if name in (arguments.only or NAMES) and name not in left_out:
                    lines.append(measure().line())
                    print(json.dumps(lines[-1], ensure_ascii=False), flush=True)
        except BaseException:
            sys.stderr.write(site.deployment.stderr[-4000:])
            raise
        finally:
            site.close()
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 170)
    console.print(table(lines))
    for line in lines:
        if line["parts_ms"]:
            console.print(f"{line['measure']} parts: " + ", ".join(f"{k} {v} ms" for k, v in line["parts_ms"].items()))
    if left_out:
        console.print(f"not in a quick run: {', '.join(left_out)}; `make bench`, or name them with --only")
    if arguments.report:
        arguments.report.write_text(page(lines, machine))
        console.print(f"wrote {arguments.report}")
    console.print(f"{len(lines)} measures in {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
