"""YubiKeys of one pool are pulled, put back and their hosts killed at random under load: no intent is lost, nothing signed twice.

GREATSEAL_CYCLES says how often (`make cycles`: 1,000 times); GREATSEAL_FAULT_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from yubikey_pool import YubiKeyPool
from yubikeys import YubiKeyRig

from fault_history import Auditor, Load, host_ledger
from fault_processes import children

CYCLES = int(os.environ.get("GREATSEAL_CYCLES", "16"))
SERIALS = [41_000_000 + number for number in range(4)]
CALLERS = 4
HOST_SECONDS = 2.0

pytestmark = [pytest.mark.yubikey, pytest.mark.softhsm, pytest.mark.shim, pytest.mark.timeout(120 + 6 * CYCLES)]


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[YubiKeyPool]:
    with YubiKeyRig([{"serial": serial} for serial in SERIALS]) as rig:
        made = YubiKeyPool(rig, tmp_path, SERIALS, sign_seconds=0.005)
        yield made
        made.close()


class Storm:
    """What happens to the devices and their hosts while they are used."""

    def __init__(self, pool: YubiKeyPool, rng: random.Random) -> None:
        self.pool, self.rng = pool, rng
        self.out: set[int] = set()
        self.did: Counter[str] = Counter()
        self._since: dict[int, float] = {}
        self._rig = asyncio.Lock()  # its commands go over one connection

    async def blow(self, cycles: int) -> None:
        """Each cycle is one device pulled and put back, or one host killed; several are under way at once."""
        under_way: set[asyncio.Task[None]] = set()
        for _ in range(cycles):
            await asyncio.sleep(self.rng.uniform(0.1, 0.7))
            inside = [serial for serial in SERIALS if serial not in self.out]
            if (self.rng.random() < 0.5 and self._kill()) or len(inside) < 2:
                continue
            serial = self.rng.choice(inside)
            self.out.add(serial)
            task = asyncio.create_task(self._pull(serial))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)

    async def _pull(self, serial: int) -> None:
        self.did["unplugged and put back"] += 1
        async with self._rig:
            await asyncio.to_thread(self.pool.rig.eject, serial)
        await asyncio.sleep(self.rng.uniform(1.2, 2.5))  # no hand is faster, and pcscd takes a sooner one for none
        async with self._rig:
            await asyncio.to_thread(self.pool.rig.insert, serial)
        self.out.discard(serial)

    def _kill(self) -> bool:
        """Kill a host that has been there for some seconds, so that it had the time to work; whether there was one."""
        now, hosts = time.monotonic(), children(self.pool.daemon_pid)
        self._since = {pid: self._since.get(pid, now) for pid in hosts}
        old = [pid for pid in hosts if now - self._since[pid] > HOST_SECONDS]
        if not old:
            return False
        self.did["host killed"] += 1
        with suppress(ProcessLookupError):
            os.kill(self.rng.choice(old), signal.SIGKILL)
        return True


async def scene(pool: YubiKeyPool, load: Load, storm: Storm, cycles: int) -> None:
    until = asyncio.Event()
    callers = asyncio.create_task(load.run(until, CALLERS))
    await storm.blow(cycles)
    until.set()
    await callers


def recoveries(stderr: str) -> list[float]:
    """Seconds from the end of a host that was killed until its token was ready, where nothing else came between."""
    since: dict[str, datetime] = {}
    found: list[float] = []
    for line in stderr.splitlines():
        with suppress(ValueError):
            event = json.loads(line)
            name, kind = event.get("token", ""), event.get("event", "")
            if kind == "token_ready" and name in since:
                found.append((datetime.fromisoformat(event["ts"]) - since.pop(name)).total_seconds())
            elif kind == "token_starting" and "ended by SIGKILL" in event.get("why", ""):
                since[name] = datetime.fromisoformat(event["ts"])
            elif kind.startswith("token_"):
                since.pop(name, None)
    return found


def test_a_pool_loses_no_intent_however_often_its_devices_come_and_go(pool: YubiKeyPool) -> None:
    seed = int(os.environ.get("GREATSEAL_FAULT_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"GREATSEAL_FAULT_SEED={seed}")
    rng = random.Random(seed)
    pool.deployment.start()
    load, auditor, storm = Load(pool, rng, keys=("pool",)), Auditor(pool), Storm(pool, rng)
    begun, left = time.monotonic(), CYCLES
    while left:
        asyncio.run(scene(pool, load, storm, min(left, 50)))
        left = CYCLES - sum(storm.did.values())
        with pool.wire() as wire:
            wire.sign_until_it_works("pool", 60)
            auditor.read(wire)
        auditor.check_all_closed()
    with pool.wire() as wire:
        load.ask_again(wire, 40)
        auditor.read(wire)
    auditor.check_all_closed()
    auditor.compare(load, tokens=pool.tokens)
    signed = Counter(outcome["hsm"]["serial"] for outcome in auditor.outcomes.values() if outcome["res"] == "signed")
    for serial, token in zip(SERIALS, pool.tokens, strict=True):
        made = pool.rig.look(serial)["signatures"]
        assert signed[str(serial)] <= made <= len(list(host_ledger(pool.state_dir(token)))), token
    ends = Counter(outcome["res"] for outcome in auditor.outcomes.values())
    took = sorted(recoveries(pool.deployment.stderr))
    print(
        f"{CYCLES} cycles in {time.monotonic() - begun:.0f} s: {dict(storm.did)}; {len(auditor.intents)} intents: {dict(ends)}; "
        f"callers were told {dict(load.refusals)}"
    )
    if took:
        middle, late = statistics.median(took), took[int(len(took) * 0.99)]
        print(
            f"{len(took)} killed hosts were back after {middle:.2f} s (median), {late:.2f} s (p99), {took[-1]:.2f} s (worst)"
        )
    assert load.acknowledged > CYCLES, f"too little was signed to show anything: {load.acknowledged}"
    assert pool.deployment.stop() == 0
