"""model-1gib, model-10k and hashing: whole commands against upstream's, and hashing against OpenSSL's.

model-1gib is one file of 1 GiB, model-10k 10,000 files of 4 KiB. Both sides are a process each, from
its start to its end, that signs with P-256 and writes an OMS bundle: `greatseal sign model` through the
running daemon, durable log and all, and `model_signing sign key` with a key in a file. Files are in the
page cache on both sides. Afterwards both bundles have to name the same digests, and verify.

hashing is the client's hashing of several large files, against the number of cores times the rate of
`openssl dgst -sha256` over one of them: what nobody reaches where cores share their speed.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from result import Result

from greatseal.oms.bundle import read_bundle
from greatseal.oms.hashing import hash_files
from greatseal.oms.listing import IgnoredPaths, list_model
from greatseal.oms.verify import Trust, verify_bundle

MIB = 1 << 20
BIG_BYTES = 1024 * MIB
SMALL_FILES, SMALL_BYTES = 10_000, 4096
PART_BYTES = 256 * MIB
_Done = TypeVar("_Done")
NAMES = ("model-1gib", "model-10k", "hashing")


def model_1gib(rounds: int, profile: Path, public: Path) -> Result:
    with _model([BIG_BYTES]) as model:
        return _against_upstream("model-1gib", "MiB/s", BIG_BYTES / MIB, model, rounds, profile, public)


def model_10k(rounds: int, profile: Path, public: Path) -> Result:
    with _model([SMALL_BYTES] * SMALL_FILES) as model:
        return _against_upstream("model-10k", "files/s", SMALL_FILES, model, rounds, profile, public)


def hashing(rounds: int) -> Result:
    cores = len(os.sched_getaffinity(0))
    result = Result("hashing", "MiB/s", f"{cores} cores x openssl dgst -sha256 of one file", 0.9)
    with _model([PART_BYTES] * max(2, cores)) as model:
        files = list_model(model, IgnoredPaths.of([])).files
        size = sum(file.stamp.size for file in files) / MIB
        openssl = [["openssl", "dgst", "-r", "-sha256", os.fsdecode(file.path)] for file in files]
        for _ in range(rounds):
            before = time.process_time()
            ours, digests = _timed(lambda: hash_files(files))
            result.cpu_us.setdefault("ours, a MiB", []).append(1e6 * (time.process_time() - before) / size)
            alone, printed = _timed(lambda: _run(openssl[0]))
            assert printed.split()[0] == digests[files[0].name].hex()
            result.checked += 1
            result.note(size / ours, cores * files[0].stamp.size / MIB / alone)
            # What the cores really give when all are asked at once: says how much of a miss is the machine's.
            together, _ = _timed(lambda: _run_at_once(openssl))
            for name, seconds in (("ours", ours), ("openssl, one a core at once", together)):
                result.parts.setdefault(name, []).append(1e3 * seconds)
    return result


def _against_upstream(
    measure: str, unit: str, amount: float, model: Path, rounds: int, profile: Path, public: Path
) -> Result:
    result = Result(measure, unit, "model_signing sign key, P-256 in a file", 1.0)
    private = model.parent / "key.pem"
    _run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)])
    theirs_pem = _run(["openssl", "ec", "-in", str(private), "-pubout"]).encode()
    ours, theirs = model.parent / "ours.sig", model.parent / "theirs.sig"
    greatseal = [str(Path(sys.executable).with_name("greatseal")), "--profile", str(profile)]
    our_command = [*greatseal, "sign", "model", str(model), "--signature", str(ours)]
    upstream = [sys.executable, "-m", "model_signing", "sign", "key", str(model)]
    their_command = [*upstream, "--signature", str(theirs), "--private_key", str(private)]
    for command in (our_command, their_command):  # bytecode and files into the caches
        _run(command)
    for _ in range(rounds):
        seconds = {}
        for name, command in (("client", our_command), ("upstream", their_command)):
            before = _children_cpu()
            seconds[name], _ = _timed(lambda command=command: _run(command))
            result.cpu_us.setdefault(name, []).append(1e6 * (_children_cpu() - before))
            result.parts.setdefault(name, []).append(1e3 * seconds[name])
        result.note(amount / seconds["client"], amount / seconds["upstream"])
        signed = [
            verify_bundle(read_bundle(bundle), Trust.in_key(pem)).manifest.resources
            for bundle, pem in ((ours, public.read_bytes()), (theirs, theirs_pem))
        ]
        assert sorted(signed[0]) == sorted(signed[1])
        result.checked += len(signed)
    return result


@contextmanager
def _model(sizes: Sequence[int]) -> Iterator[Path]:
    """A model with files of these sizes, no two alike, in 20 directories; gone afterwards."""
    with TemporaryDirectory(prefix="greatseal-bench-") as directory:
        model = Path(directory) / "model"
        block = os.urandom(MIB)
        for number, size in enumerate(sizes):
            path = model / f"{number % 20:02}" / f"{number:05}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for start in range(0, size, MIB):
                    mark = f"{number}:{start}".encode()
                    file.write((mark + block[len(mark) :])[: min(MIB, size - start)])
        yield model


def _timed(act: Callable[[], _Done]) -> tuple[float, _Done]:
    began = time.perf_counter()
    done = act()
    return time.perf_counter() - began, done


def _children_cpu() -> float:
    """CPU seconds of the processes that were waited for: the daemon's are not among them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _run_at_once(commands: Sequence[Sequence[str]]) -> None:
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    assert all(process.wait() == 0 for process in running)
