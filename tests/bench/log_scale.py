"""log-scale-start, log-scale-memory: a daemon whose log has ten million entries, against one with a thousand.

Both are installations of their own. The log is grown as the daemon grows it, tiles included, through the
store, in large commits of small entries: neither figure depends on what an entry says. Start-up is the time
until the daemon says that it is ready, token and all. Memory is the front's resident set after one more
signature, whose receipt has been verified.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from result import Result

from deployment import Deployment
from greatseald.domain import entries as entry_format
from grown_log import grow

SMALL: Final = 1_000
LARGE: Final = 10_000_000
QUICK: Final = 200_000
AIM: Final = 1.5
_RESIDENT: Final = re.compile(r"VmRSS:\s+(\d+) kB")


def filler(origin: str, start: int, end: int) -> Iterator[bytes]:
    """Entries about nothing, by their index."""
    sample = entry_format.encode(
        entry_format.Admin(
            info={"n": 0}, inst=str(uuid.uuid4()), log=origin, ts="2026-01-02T03:04:05.678901Z", what="reload"
        )
    )
    before, after = sample.split(b'"n":0')
    return (before + b'"n":%d' % number + after for number in range(start, end))


def log_scale(directory: Path, rounds: int, large: int) -> tuple[Result, Result]:
    """Both measures, from the same starts."""
    against = f"the same daemon with {SMALL:,} entries; ours has {large:,}"
    start = Result("log-scale-start", "s until ready", against, AIM, at_most=True)
    memory = Result("log-scale-memory", "MiB resident", against, AIM, at_most=True)
    sites = [Deployment.create(directory, name=name) for name in ("large", "small")]
    for site, size in zip(sites, (large, SMALL), strict=True):
        grow(site, filler("greatseal.local/log", 0, size))
        if rounds > 1:
            _run(site, start)  # what a first start leaves behind is not measured
    for _ in range(rounds):
        (ours, ours_mib), (bare, bare_mib) = (_run(site, start) for site in sites)
        start.note(ours, bare)
        memory.note(ours_mib, bare_mib)
    memory.checked = start.checked
    return start, memory


def _run(site: Deployment, result: Result) -> tuple[float, float]:
    """Start, sign once, stop; seconds until it was ready, and MiB of the front."""
    begun = time.perf_counter()
    try:
        site.start()
        seconds = time.perf_counter() - begun
        digest = hashlib.sha256(os.urandom(8)).hexdigest()
        done = site.client("sign", "digest", "--sha256", digest, "--key", "keys/scratch")
        assert done.returncode == 0, done.stderr
        result.checked += 1
        assert site.process is not None
        found = _RESIDENT.search(Path(f"/proc/{site.process.pid}/status").read_text())
        assert found is not None
        site.stop()
        return seconds, int(found[1]) / 1024
    finally:
        site.close()
