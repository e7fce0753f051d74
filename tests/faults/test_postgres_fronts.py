"""Daemons over one PostgreSQL log, and what becomes of them and of it: reliability.md's rows about the database."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from deployment import Deployment
from fault_history import Auditor, Load
from fault_site import FaultSite, RefusedError
from greatseal.ids import new_request_id
from postgres_proxy import CommitCutter
from postgres_server import PostgresServer
from shared_site import close_all, make_fronts

pytestmark = [pytest.mark.postgres, pytest.mark.shim, pytest.mark.softhsm]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer.start() as running:
        yield running


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installation that all fronts are copies of."""
    return Deployment.create(tmp_path_factory.mktemp("base")).directory


@pytest.fixture
def new_fronts(tmp_path: Path, base: Path, server: PostgresServer) -> Iterator[Callable[..., list[FaultSite]]]:
    made: list[FaultSite] = []

    def make(count: int, url: str = "") -> list[FaultSite]:
        empty = server.empty_database()
        made.extend(make_fronts(tmp_path, url or empty, count, base))
        return made

    yield make
    close_all(made)


@pytest.fixture
def pair(new_fronts: Callable[..., list[FaultSite]]) -> list[FaultSite]:
    """Two fronts, running."""
    fronts = new_fronts(2)
    for front in fronts:
        front.deployment.start(wait=False)
    for front in fronts:
        front.deployment.wait_ready()
    return fronts


def judge(fronts: list[FaultSite]) -> Auditor:
    """The first front's log is whole, every intent closed, and fits what the modules and hosts say."""
    auditor = Auditor(fronts[0])
    with fronts[0].wire() as wire:
        auditor.read(wire)
    auditor.check_all_closed()
    auditor.compare(Load(fronts[0], random.Random(0)), *(front.soft for front in fronts), sites=tuple(fronts))
    return auditor


def ended(front: FaultSite, says: str, code: int = 1) -> None:
    """The daemon ends by itself with this code and a first line that says so."""
    assert front.deployment.wait_exit(20) == code, front.deployment.stderr[-2000:]
    said = [
        line
        for line in front.deployment.stderr.splitlines()
        if line.startswith(("greatseald: ", "error: ")) or says in line
    ]
    assert said, front.deployment.stderr[-2000:]
    assert says in said[0]


def refused_start(front: FaultSite, says: str, code: int) -> None:
    front.deployment.start(wait=False)
    ended(front, says, code)


# ------------------------------------------------------------------------------------- one log


def test_what_one_front_wrote_another_tells_at_once(pair: list[FaultSite]) -> None:
    """By index without waiting, since receipts name indexes; and the newest entries within a second or so."""
    first, second = pair
    with first.wire() as one, second.wire() as other:
        other.checkpoint()
        made = one.sign()
        index = made.receipt.outcome_index
        shown = second.deployment.client("audit", "show", str(index))
        assert shown.returncode == 0, shown.stderr
        assert other.consistency(1, index + 1)
        one.sign()
        newest = one.checkpoint().size
        deadline = time.monotonic() + 15
        while len(other.entries(newest - 1)) != 1:
            assert time.monotonic() < deadline
        with pytest.raises(RefusedError, match="the log has"):
            other.consistency(1, newest + 1000)


def test_the_living_close_what_a_dead_front_left_and_its_callers_go_on(
    pair: list[FaultSite], server: PostgresServer
) -> None:
    first, second = pair
    digest, request_id = os.urandom(32), new_request_id()
    first.soft.rule("C_Sign", "hang", digest=digest)
    with first.wire() as one, second.wire() as other, ThreadPoolExecutor(1) as pool:
        lost = pool.submit(one.sign, "scratch", digest, request_id)
        deadline = time.monotonic() + 20
        while not server.run("SELECT 1 FROM greatseal.open_intents", "log"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(RefusedError) as caught:
            other.sign("scratch", digest, request_id)
        assert caught.value.reason == "REQUEST_IN_FLIGHT"
        first.deployment.kill()
        with pytest.raises(RefusedError):
            lost.result(30)
        made = None
        while made is None:
            try:
                made = other.sign("scratch", digest, request_id)
            except RefusedError as refused:
                if refused.reason != "REQUEST_IN_FLIGHT" or time.monotonic() > deadline + 20:
                    raise
                time.sleep(0.2)
        assert not made.replayed
    assert '"closed_for_a_dead_front"' in second.deployment.stderr
    auditor = judge([second, first])
    results = [outcome["res"] for outcome in auditor.outcomes.values() if outcome["tbs"] == digest.hex()]
    assert results == ["unknown", "signed"]


def test_a_rolling_restart_under_load_loses_nothing_and_leaves_nothing_open(
    new_fronts: Callable[..., list[FaultSite]],
) -> None:
    fronts = new_fronts(2)
    for front in fronts:
        front.deployment.start()
    first = Load(fronts[0], random.Random(5))
    loads = [first, Load(fronts[1], random.Random(6), asked=first.asked, heads=first.heads)]

    async def scene() -> None:
        for restarted, load in enumerate(loads):
            over, down = asyncio.Event(), asyncio.Event()
            staying = asyncio.create_task(loads[1 - restarted].run(over, callers=1))
            leaving = asyncio.create_task(load.run(down, callers=2))
            await asyncio.sleep(0.5)
            assert await asyncio.to_thread(load.site.deployment.stop) == 0
            down.set()
            await leaving
            await asyncio.to_thread(load.site.deployment.start)
            over.set()
            await staying

    asyncio.run(scene())
    with fronts[0].wire() as wire:
        first.ask_again(wire, 20)
    auditor = judge(fronts)
    auditor.compare(first, *(front.soft for front in fronts), sites=tuple(fronts))
    assert {outcome["res"] for outcome in auditor.outcomes.values()} == {"signed"}
    assert first.acknowledged > 50


# ------------------------------------------------------------------------------- fate unknown


@pytest.mark.parametrize(("after", "skip"), [(True, 0), (True, 1), (False, 1)])
def test_a_front_cut_at_commit_ends_and_a_retry_gets_one_signature(
    after: bool, skip: int, new_fronts: Callable[..., list[FaultSite]], server: PostgresServer
) -> None:
    """At the intent's COMMIT or at the outcome's, before the server carried it out or after."""
    with CommitCutter(server) as proxy:
        [front] = new_fronts(1, proxy.url("log"))
        front.deployment.start()
        request_id, digest = new_request_id(), os.urandom(32)
        with front.wire() as wire:
            wire.sign()
            proxy.cut_next(after=after, skip=skip)
            with pytest.raises(RefusedError) as caught:
                wire.sign("scratch", digest, request_id)
            assert caught.value.code == "UNAVAILABLE"
        ended(front, "COMMIT, and whether it was committed is not known")
        front.deployment.start()
        with front.wire() as wire:
            made = wire.sign("scratch", digest, request_id)
            assert wire.sign("scratch", digest, request_id).signature == made.signature
        auditor = judge([front])
    results = [outcome["res"] for outcome in auditor.outcomes.values() if outcome["tbs"] == digest.hex()]
    # What of it was committed decides: nothing, the intent, or the outcome too.
    committed = skip + after
    assert made.replayed is (committed == 2)
    assert results == (["unknown", "signed"] if committed == 1 else ["signed"])


def test_fronts_outlive_a_server_that_dies_by_being_started_again(
    pair: list[FaultSite], server: PostgresServer
) -> None:
    with pair[0].wire() as wire:
        made = wire.sign()
    server.down(signal.SIGQUIT)
    for front in pair:
        ended(front, "nothing more is signed")
    # They wait for the server that comes up.
    for front in pair:
        front.deployment.start(wait=False)
    time.sleep(1)
    server.up()
    for front in pair:
        front.deployment.wait_ready()
        with front.wire() as wire:
            wire.sign()
    assert made.receipt.outcome_index in judge(pair).outcome_indexes


# ------------------------------------------------------------------------ an administrator's hand


def test_an_older_base_backup_is_refused_by_every_front_that_released_more(
    pair: list[FaultSite], server: PostgresServer
) -> None:
    for front in pair:
        with front.wire() as wire:
            wire.sign()
    server.base_backup("older")
    for front in pair:
        with front.wire() as wire:
            wire.sign()
    for front in pair:
        assert front.deployment.stop() == 0
    server.down()
    server.go_back_to("older")
    server.up()
    for front in pair:
        refused_start(front, "the database is an older copy, and signing on it would fork the log", 6)


def sql(server: PostgresServer, *statements: str) -> None:
    for statement in statements:
        server.run(statement, "log")


REMEMBER = "CREATE TABLE public.earlier AS SELECT * FROM greatseal.head"
CUT_THE_TAIL = (
    "UPDATE greatseal.head SET (size, root, frontier, mac) = (SELECT size, root, frontier, mac FROM public.earlier)",
    "DELETE FROM greatseal.commits WHERE size > (SELECT size FROM public.earlier)",
    "DELETE FROM greatseal.requests WHERE intent >= (SELECT size FROM public.earlier)",
    "DELETE FROM greatseal.outcomes WHERE outcome >= (SELECT size FROM public.earlier)",
)


def test_a_tail_cut_with_care_is_refused_by_the_anchor_and_by_who_remembers(
    pair: list[FaultSite], server: PostgresServer
) -> None:
    """The head row is one that a front wrote, MAC and all, and everything after it is gone."""
    first, second = pair
    with first.wire() as wire:
        wire.sign()
        sql(server, "DROP TABLE IF EXISTS public.earlier", REMEMBER)
        wire.sign()
    with second.wire() as wire:
        wire.checkpoint()
    assert first.deployment.stop() == 0
    sql(server, "BEGIN; " + "; ".join(CUT_THE_TAIL) + "; COMMIT")
    ended(second, "the log has gone back")
    for front in pair:
        refused_start(front, "older copy", 6)


def test_a_planted_head_is_not_extended_running_or_stopped(pair: list[FaultSite], server: PostgresServer) -> None:
    """Entries and a head of one's own: all but the MAC can be computed."""
    first, second = pair
    assert second.deployment.stop() == 0
    sql(
        server,
        "INSERT INTO greatseal.commits SELECT 2 * size, time_ms, boot, root, frontier, mac, entries FROM greatseal.commits "
        "ORDER BY size DESC LIMIT 1; UPDATE greatseal.head SET size = 2 * size, root = sha256(root)",
    )
    ended(first, "does not carry this daemon's MAC")
    refused_start(second, "does not carry this daemon's MAC", 6)


def test_a_planted_fence_gives_no_intent_a_second_outcome(pair: list[FaultSite], server: PostgresServer) -> None:
    first, second = pair
    with first.wire() as wire:
        made = wire.sign()
    assert second.deployment.stop() == 0
    intent = made.receipt.intent_index
    sql(
        server,
        f"DELETE FROM greatseal.outcomes WHERE intent = {intent}; "
        f"INSERT INTO greatseal.open_intents VALUES ({intent}, decode(repeat('dd', 16), 'hex'))",
    )
    ended(first, f"the fences name intent {intent} as open, and entry {made.receipt.outcome_index} is its outcome")
    refused_start(second, f"the fences name intent {intent} as open", 6)
    sql(server, "UPDATE greatseal.open_intents SET idx = 0")
    refused_start(second, "the fences name entry 0 as an open intent, and it is none", 6)
    sql(server, "DELETE FROM greatseal.open_intents")
    first.deployment.start()
    assert list(judge([first, second]).outcomes).count(intent) == 1


def test_a_deleted_fence_keeps_its_signature_from_leaving(pair: list[FaultSite], server: PostgresServer) -> None:
    first, second = pair
    digest = os.urandom(32)
    with first.wire() as wire, ThreadPoolExecutor(1) as pool:
        first.soft.rule("C_Sign", "delay", 1500, digest=digest)
        signing = pool.submit(wire.sign, "scratch", digest)
        deadline = time.monotonic() + 20
        while not server.run("SELECT 1 FROM greatseal.open_intents", "log"):
            assert time.monotonic() < deadline
        sql(server, "DELETE FROM greatseal.open_intents")
        with pytest.raises(RefusedError) as caught:
            signing.result(30)
        assert caught.value.reason == "OUTCOME_UNKNOWN"
    verified = second.deployment.client("--json", "audit", "verify")
    assert len(json.loads(verified.stdout)["open_intents"]) == 1, "and the verifier names the intent"


def edit_entry(server: PostgresServer, index: int) -> None:
    """Change the time stamp of an entry, so that it is as long as before and still JSON."""
    with psycopg.connect(server.url("log"), autocommit=True) as connection:
        row = connection.execute(
            "SELECT size, entries FROM greatseal.commits WHERE size > %s ORDER BY size LIMIT 1", (index,)
        ).fetchone()
        assert row is not None
        changed = row[1].replace(b'"ts":"2', b'"ts":"1')
        assert changed != row[1]
        connection.execute("UPDATE greatseal.commits SET entries = %b WHERE size = %s", (changed, row[0]))


def test_an_edited_entry_is_named_by_the_verifier_and_never_released_again(
    pair: list[FaultSite], server: PostgresServer
) -> None:
    first, second = pair
    request_id, digest = new_request_id(), os.urandom(32)
    with first.wire() as one, second.wire() as other:
        made = one.sign("scratch", digest, request_id)
        one.sign()
        other.checkpoint()  # it knows them as they were; a front that does not ends as soon as it reads them
        edit_entry(server, made.receipt.outcome_index)
        for wire in (one, other):
            with pytest.raises(RefusedError, match="the database was altered, and nothing of it is released") as caught:
                wire.sign("scratch", digest, request_id)
            assert caught.value.reason == "LOG_UNAVAILABLE"
            assert not wire.sign().replayed
        verified = first.deployment.client("audit", "verify")
        assert verified.returncode == 6, verified.stderr


def test_a_deleted_row_is_never_read_over(pair: list[FaultSite], server: PostgresServer) -> None:
    first, _ = pair
    with first.wire() as wire:
        for _ in range(3):
            wire.sign()
        sizes = [row[0] for row in server.run("SELECT size FROM greatseal.commits ORDER BY size", "log")]
        sql(server, f"DELETE FROM greatseal.commits WHERE size = {sizes[len(sizes) // 2]}")
        with pytest.raises(RefusedError):
            wire.entries()
    ended(first, "holds malformed rows")
