"""kill -9 under load: nothing acknowledged is lost, nothing is signed twice, every intent is closed.

Each run keeps one database through its cycles and prints its seed; GREATSEAL_FAULT_SEED repeats it.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fault_history import Auditor, Load
from fault_site import FaultSite

pytestmark = [pytest.mark.shim, pytest.mark.softhsm, pytest.mark.slow, pytest.mark.timeout(420)]

RUNS = 4
CYCLES = 25


def load_until_killed(site: FaultSite, load: Load, kill: Callable[[], object], seconds: float) -> None:
    """Put load on the daemon and end it after `seconds`; returns when every caller knows."""

    async def scene() -> None:
        until = asyncio.Event()
        callers = asyncio.create_task(load.run(until))
        await asyncio.sleep(seconds)
        await asyncio.to_thread(kill)
        until.set()
        await callers

    asyncio.run(scene())


@pytest.mark.parametrize("run", range(RUNS))
def test_kill_nine_loses_nothing_that_was_acknowledged(run: int, new_site: Callable[..., FaultSite]) -> None:
    seed = int(os.environ.get("GREATSEAL_FAULT_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"GREATSEAL_FAULT_SEED={seed}")
    rng, site = random.Random(seed), new_site()
    load, auditor = Load(site, rng), Auditor(site)
    for cycle in range(CYCLES):
        site.deployment.start(wait=False)
        if cycle and rng.random() < 0.12:  # die on the way up, wherever that is
            time.sleep(rng.uniform(0.0, 1.5))
            site.deployment.kill()
            continue
        site.deployment.wait_ready()
        with site.wire() as wire:
            auditor.read(wire)
            auditor.check_all_closed()
            load.ask_again(wire, 3)
        load_until_killed(site, load, site.deployment.kill, rng.uniform(0.02, 0.6))
    site.deployment.start()
    with site.wire() as wire:
        load.ask_again(wire, 40)
        auditor.read(wire)
    auditor.check_all_closed()
    auditor.compare(load, site.soft)
    assert load.acknowledged > 20 * CYCLES / 2, f"too little was signed to show anything: {load.acknowledged}"
    assert site.deployment.stop() == 0


@pytest.mark.parametrize("syscall", ["fdatasync", "fsync", "pwrite64", "write", "rename", "renameat", "renameat2"])
def test_kill_at_a_storage_syscall(syscall: str, site: FaultSite, tmp_path: Path) -> None:
    """SIGKILL on entry to a storage system call of the running daemon, at its first, third and tenth."""
    load, auditor = Load(site, random.Random(7)), Auditor(site)
    for when in (1, 3, 10):
        site.deployment.start()
        with site.wire() as wire:
            auditor.read(wire)
            auditor.check_all_closed()
            load.ask_again(wire, 3)
        tracer = trace(site, tmp_path, f"inject={syscall}:signal=SIGKILL:when={when}", syscall)

        def killed_or_not() -> None:
            try:
                site.deployment.process.wait(0.01)  # type: ignore[union-attr]
            except subprocess.TimeoutExpired:  # the daemon does not use this one, or the token host alone does
                site.deployment.kill()

        load_until_killed(site, load, killed_or_not, 0.5)
        tracer.wait(20)
    site.deployment.start()
    with site.wire() as wire:
        load.ask_again(wire, 40)
        auditor.read(wire)
    auditor.check_all_closed()
    auditor.compare(load, site.soft)


def trace(site: FaultSite, tmp_path: Path, inject: str, *syscalls: str) -> subprocess.Popen[bytes]:
    """Attach strace with one injection to the daemon and all its threads; returns when it has."""
    output = tmp_path / f"strace-{time.monotonic_ns()}"
    command = ["strace", "-f", "-o", str(output), "-e", f"trace={','.join(syscalls)}", "-e", inject]
    tracer = subprocess.Popen([*command, "-p", str(site.daemon_pid)], stderr=subprocess.PIPE)
    assert tracer.stderr is not None
    assert b"attached" in tracer.stderr.readline()
    tracer.stderr.close()
    return tracer


@pytest.mark.parametrize("who", ["host", "both"])
def test_killed_token_host(who: str, site: FaultSite) -> None:
    """The host alone dies: the daemon goes on with a fresh one. Both die: a restart goes on."""
    from fault_processes import token_hosts

    load, auditor = Load(site, random.Random(11)), Auditor(site)
    site.deployment.start()
    for _ in range(4):

        def kill() -> None:
            for pid in token_hosts(site.daemon_pid):
                os.kill(pid, 9)
            if who == "both":
                site.deployment.kill()

        load_until_killed(site, load, kill, 0.3)
        if who == "both":
            site.deployment.start()
        with site.wire() as wire:
            wire.sign_until_it_works("scratch")
    with site.wire() as wire:
        load.ask_again(wire, 40)
        auditor.read(wire)
    auditor.check_all_closed()
    auditor.compare(load, site.soft)


def test_sigterm_under_load_leaves_no_open_intent(site: FaultSite) -> None:
    """A drained daemon closes what it began, exits 0, and the next one has nothing to recover."""
    load, auditor = Load(site, random.Random(13)), Auditor(site)
    for _ in range(4):
        site.deployment.start()
        load_until_killed(site, load, site.deployment.stop, 0.4)
        assert site.deployment.process is not None
        assert site.deployment.process.returncode == 0, site.deployment.stderr[-2000:]
        site.deployment.start()
        with site.wire() as wire:
            load.ask_again(wire, 5)
            auditor.read(wire)
        auditor.check_all_closed()
        recovered = [outcome for outcome in auditor.outcomes.values() if outcome["res"] != "signed"]
        assert recovered == [], "a drained daemon left something to recover"
        assert site.deployment.stop() == 0
    auditor.compare(load, site.soft)
