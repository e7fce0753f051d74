"""Three fronts on one PostgreSQL, killed, cut off and restarted at random under load: one history, and nothing released is lost.

GREATSEAL_FRONTS_SECONDS says for how long (`make fronts`: ten minutes); GREATSEAL_FAULT_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from deployment import DeploymentError
from fault_history import Auditor, Load
from fault_site import FaultSite, Wire
from greatseal.tlog import verify_consistency
from postgres_server import PostgresServer
from shared_site import close_all, make_fronts

SECONDS = float(os.environ.get("GREATSEAL_FRONTS_SECONDS", "30"))

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.shim,
    pytest.mark.softhsm,
    pytest.mark.slow,
    pytest.mark.timeout(SECONDS + 300),
]


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer.start() as running:
        yield running


@pytest.fixture
def fronts(tmp_path: Path, server: PostgresServer) -> Iterator[list[FaultSite]]:
    made = make_fronts(tmp_path, server.empty_database(), 3)
    yield made
    close_all(made)


class Storm:
    """What happens to the fronts while they are used."""

    def __init__(self, fronts: list[FaultSite], server: PostgresServer, rng: random.Random) -> None:
        self.fronts, self.server, self.rng = fronts, server, rng
        first = Load(fronts[0], rng)
        self.loads = [first, *(Load(site, rng, asked=first.asked, heads=first.heads) for site in fronts[1:])]
        self.did: dict[str, int] = {}
        self.over = asyncio.Event()

    async def blow(self, seconds: float) -> None:
        users = [asyncio.create_task(self._use(number)) for number in range(len(self.fronts))]
        end = time.monotonic() + seconds
        half = time.monotonic() + seconds / 2
        crashed = False
        while time.monotonic() < end:
            await asyncio.sleep(self.rng.uniform(0.3, 2.5))
            if not crashed and time.monotonic() > half:
                crashed = True
                self._restart_the_server()
            else:
                await self._harm(self.rng.choice(self.fronts))
        self.over.set()
        await asyncio.gather(*users)

    async def _use(self, number: int) -> None:
        """Keep a front up and loaded: whoever finds it down starts it, as a service manager would."""
        site, load = self.fronts[number], self.loads[number]
        while not self.over.is_set():
            try:
                await asyncio.to_thread(self._start, site)
            except DeploymentError:
                await asyncio.sleep(0.2)
                continue
            down = asyncio.Event()
            callers = asyncio.create_task(load.run(down, callers=3))
            while site.deployment.process.poll() is None and not self.over.is_set():  # type: ignore[union-attr]
                await asyncio.sleep(0.05)
            down.set()
            await callers

    def _start(self, site: FaultSite) -> None:
        process = site.deployment.process
        if process is None or process.poll() is not None:
            site.deployment.start()

    async def _harm(self, site: FaultSite) -> None:
        how = self.rng.choice(["kill", "kill", "term", "cut"])
        process = site.deployment.process
        if process is None or process.poll() is not None:
            return
        self.did[how] = self.did.get(how, 0) + 1
        if how == "kill":
            process.kill()
        elif how == "term":
            process.terminate()
        else:
            await asyncio.to_thread(
                self.server.run,
                "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity "
                "WHERE application_name = 'greatseald' ORDER BY random() LIMIT 1) AS one",
            )

    def _restart_the_server(self) -> None:
        """Not in a thread: the server ends with the thread that started it."""
        self.did["crash"] = 1
        self.server.down(signal.SIGQUIT)
        self.server.up()


def test_fronts_that_die_at_random_write_one_history(fronts: list[FaultSite], server: PostgresServer) -> None:
    seed = int(os.environ.get("GREATSEAL_FAULT_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"GREATSEAL_FAULT_SEED={seed}")

    async def scene() -> Storm:
        storm = Storm(fronts, server, random.Random(seed))
        await storm.blow(SECONDS)
        return storm

    storm = asyncio.run(scene())
    print(
        f"{storm.did}, {storm.loads[0].acknowledged} acknowledged, refusals {[dict(load.refusals) for load in storm.loads]}"
    )
    for site in fronts:
        if site.deployment.process.poll() is not None:  # type: ignore[union-attr]
            site.deployment.start()
        else:
            site.deployment.wait_ready()
    auditors = []
    for site, load in zip(fronts, storm.loads, strict=True):
        with site.wire() as wire:
            wait_until_closed(wire, load)
            auditors.append(auditor := Auditor(site))
            auditor.read(wire)
            auditor.check_all_closed()
            auditor.compare(load, *(front.soft for front in fronts), sites=tuple(fronts))
            check_consistency(wire, load, auditor)
    # Every front tells the same history; they differ only in how long it was when they were asked.
    shortest = min(auditor.tree.size for auditor in auditors)
    assert len({auditor.roots[shortest] for auditor in auditors}) == 1
    assert storm.did["crash"] == 1
    assert sum(storm.did.values()) >= 3, storm.did
    assert storm.loads[0].acknowledged > 50, "too little was signed to show anything"


def wait_until_closed(wire: Wire, load: Load) -> None:
    """The living close what the dead left open; then every request can be asked for again."""
    deadline = time.monotonic() + 40
    while True:
        auditor = Auditor(load.site)
        auditor.read(wire)
        if not set(auditor.intents) - set(auditor.outcomes):
            break
        assert time.monotonic() < deadline, "intents of dead fronts stay open"
        time.sleep(0.5)
    load.ask_again(wire, 15)


def check_consistency(wire: Wire, load: Load, auditor: Auditor) -> None:
    """`compare` has held every checkpoint seen against the one log; the front's own proofs say the same."""
    sizes = sorted(load.heads)
    for old, new in list(pairwise(sizes))[:: max(1, len(sizes) // 50)]:
        verify_consistency(old, new, wire.consistency(old, new), load.heads[old].root, load.heads[new].root)
    assert auditor.roots[sizes[-1]] == load.heads[sizes[-1]].root
