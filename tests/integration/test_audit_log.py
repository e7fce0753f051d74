"""The audit log's writer over a real store: order, proofs, recovery, refusals at start."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from greatseal.checkpoint import Checkpoint, open_checkpoint
from greatseal.note import NoteSigner
from greatseal.tlog import RootHash, leaf_hash, split_hashes, verify_inclusion
from greatseald.adapters.anchor import FileAnchor
from greatseald.adapters.store.sqlite import SqliteStore
from greatseald.app.audit import AuditLog
from greatseald.app.recovery import LogRefused, check_anchor, close_dead_intents, open_tree
from greatseald.app.writer import LogWriter
from greatseald.domain import entries
from greatseald.domain.errors import ArgumentInvalid, DiskReserveReached, EntryNotFound, GreatsealError, LogUnavailable
from greatseald.domain.heads import HeadSeal
from greatseald.ports.store import RequestKey, StoreBroken

ORIGIN = "example.org/log"
SEAL = HeadSeal(b"s" * 32)


class QuietMetrics:
    """Counts nothing: these tests look at the log itself."""

    def committed(self, entries: int, seconds: float) -> None: ...
    def log_size(self, entries: int, open_intents: int) -> None: ...
    def anchor_failed(self) -> None: ...


class Room:
    """A reserve whose shortage a test decides."""

    def __init__(self) -> None:
        self.why: str | None = None

    def shortage(self) -> str | None:
        return self.why


class Site:
    """One log's files, over several boots."""

    def __init__(self, directory: Path) -> None:
        self.database = directory / "log.db"
        self.anchor_path = directory / "released"
        self.signer = NoteSigner(ORIGIN, Ed25519PrivateKey.generate())
        self.room = Room()
        self.broken: list[BaseException] = []
        self.recovered = 0

    @asynccontextmanager
    async def boot(self, *, close: bool = True, local: bool = True) -> AsyncIterator[AuditLog]:
        boot = uuid.uuid4()
        store = SqliteStore(str(self.database), boot.bytes)
        anchor = FileAnchor(str(self.anchor_path))
        log: AuditLog | None = None
        try:
            tree = open_tree(store, SEAL)
            anchored = check_anchor(tree, anchor)
            self.recovered = close_dead_intents(
                store, tree, SEAL, boot=boot.bytes, instance=str(boot), origin=ORIGIN, clock=lambda: 1_700_000_000.0
            )
            writer = LogWriter(
                store=store,
                tree=tree,
                seal=SEAL,
                sign_head=lambda size, root: Checkpoint(ORIGIN, size, root).sign(self.signer),
                anchor=anchor,
                anchored=anchored,
                boot=boot.bytes,
                clock=lambda: 1_700_000_000.0,
                metrics=QuietMetrics(),  # type: ignore[arg-type]
                on_broken=self.broken.append,
                local=local,
            )
            log = AuditLog(
                writer=writer,
                store=store,
                tree=tree,
                reserve=self.room,
                origin=ORIGIN,
                instance=str(boot),
                clock=lambda: 1_700_000_000.0,
            )
            log.start()
            yield log
        finally:
            if log is not None:
                log.stop()
            if close:
                store.close()
                anchor.close()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def intent(number: int) -> bytes:
    return entries.encode(
        entries.Intent(
            att=1,
            blind=True,
            cli=entries.Client(cert_sha256="ab" * 32, id="spiffe://example.org/ci", issuer="CN=ca", serial="01"),
            inst="i",
            key=entries.KeyVersion(name="keys/release", spki_sha256="cd" * 32, version=1),
            log=ORIGIN,
            mech="ecdsa-p256-sha256",
            peer="ipv4:127.0.0.1:5",
            pol=entries.Policy(ids=("allow[0]",), set="00" * 32),
            ptype="",
            req=str(uuid.UUID(int=number)),
            tbs=number.to_bytes(32, "big").hex(),
            ts=entries.timestamp(0),
        )
    )


def request(number: int, attempt: int = 1) -> tuple[RequestKey, bytes]:
    return RequestKey(uuid.UUID(int=number).bytes, b"c" * 16, attempt), b"h" * 32


def run(site: Site, work: Callable[[AuditLog], object]) -> None:
    async def go() -> None:
        async with site.boot() as log:
            await work(log)  # type: ignore[misc]

    asyncio.run(go())


def test_intents_and_outcomes_are_proven_under_one_signed_checkpoint(site: Site) -> None:
    async def work(log: AuditLog) -> None:
        placed = await log.open_intents([intent(1), intent(2)], [request(1), request(2)])
        assert log.open_count == 2
        indexes = [place.place for place in placed if place is not None]
        proven = await log.close_intents([b'{"a":1}', b'{"a":2}'], indexes)
        assert log.open_count == 0
        checkpoint = open_checkpoint(proven.head.note, site.signer.verifier, ORIGIN)
        assert checkpoint.size == log.size
        for number, (index, outcome, proofs) in enumerate(zip(indexes, proven.indexes, proven.proofs, strict=True)):
            assert outcome is not None
            for at, data, proof in (
                (index, intent(number + 1), proofs[0]),
                (outcome, b'{"a":%d}' % (number + 1), proofs[1]),
            ):
                verify_inclusion(at, checkpoint.size, leaf_hash(data), split_hashes(proof), checkpoint.root)

    run(site, work)


def test_a_request_on_record_is_not_opened_again(site: Site) -> None:
    async def work(log: AuditLog) -> None:
        first = await log.open_intents([intent(1)], [request(1)])
        again = await log.open_intents([intent(1), intent(2)], [request(1), request(2)])
        assert again[0] is None
        assert again[1] is not None
        assert first[0] is not None
        assert log.size == 2
        attempts = log.attempts(request(1)[0])
        assert [(one.attempt, one.intent, one.outcome) for one in attempts] == [(1, 0, None)]

    run(site, work)


def test_the_anchor_knows_every_checkpoint_that_leaves(site: Site) -> None:
    async def work(log: AuditLog) -> None:
        await log.record_admin("start", version="1")
        head = await log.checkpoint()
        assert f"root {head.root.hex()}" in site.anchor_path.read_text()

    run(site, work)


def test_open_intents_of_a_dead_boot_get_unknown_and_only_once(site: Site) -> None:
    async def leave_open(log: AuditLog) -> None:
        await log.open_intents([intent(number) for number in range(5)], [request(number) for number in range(5)])

    async def look(log: AuditLog) -> None:
        assert site.recovered == 5
        found = await log.entries(5, 10)
        assert len(found) == 5
        assert all(b'"res":"unknown"' in data and b'"sig"' not in data for data in found)
        assert log.attempts(request(3)[0])[0].outcome == 8

    async def nothing(log: AuditLog) -> None:
        assert site.recovered == 0
        assert log.size == 10

    run(site, leave_open)
    run(site, look)
    run(site, nothing)


def test_an_older_copy_of_the_database_is_refused_by_the_anchor(site: Site, tmp_path: Path) -> None:
    async def begin(log: AuditLog) -> None:
        await log.record_admin("start")
        await log.checkpoint()

    async def more(log: AuditLog) -> None:
        await log.record_admin("reload")
        await log.checkpoint()

    run(site, begin)
    copy = tmp_path / "copy.db"
    copy.write_bytes(site.database.read_bytes())
    run(site, more)
    site.database.write_bytes(copy.read_bytes())
    with pytest.raises(LogRefused, match=r"1 entries.*released.*2"):
        run(site, more)


def test_another_history_of_the_same_length_is_refused_by_the_anchor(site: Site) -> None:
    async def begin(log: AuditLog) -> None:
        await log.record_admin("start", version="1")
        await log.checkpoint()

    async def other(log: AuditLog) -> None:
        await log.record_admin("start", version="2")
        await log.record_admin("start", version="3")

    run(site, begin)
    kept = site.anchor_path.read_bytes()
    site.anchor_path.unlink()
    site.database.unlink()
    run(site, other)
    site.anchor_path.write_bytes(kept)
    with pytest.raises(LogRefused, match="another log, or its history was rewritten"):
        run(site, other)


def edit(database: Path, statement: str) -> None:
    with sqlite3.connect(database) as connection:
        changed = connection.execute(statement).rowcount
    connection.close()
    assert changed > 0


@pytest.mark.parametrize("field", ["root", "mac", "frontier"])
def test_an_edited_head_row_is_not_extended(site: Site, field: str) -> None:
    async def begin(log: AuditLog) -> None:
        await log.record_admin("start")

    run(site, begin)
    edit(site.database, f"UPDATE commits SET {field} = zeroblob(32)")
    with pytest.raises(LogRefused):
        run(site, begin)


def test_nothing_new_is_begun_while_the_reserve_is_short(site: Site) -> None:
    async def work(log: AuditLog) -> None:
        log.require_writable()
        site.room.why = "3 MiB free"
        with pytest.raises(DiskReserveReached, match="3 MiB free"):
            log.require_writable()

    run(site, work)


def test_on_a_shared_store_no_checkpoint_is_signed_before_this_boot_has_committed(site: Site) -> None:
    """What a server shows at first may be lost in a failover; a commit of one's own confirms it."""

    async def scene(*, commit_first: bool) -> None:
        async with site.boot(local=False) as log:
            if commit_first:
                await log.record_admin("start")
            await log.checkpoint()

    asyncio.run(scene(commit_first=True))
    with pytest.raises(LogUnavailable):
        asyncio.run(scene(commit_first=False))
    assert "before this boot has committed" in str(site.broken[0])


def test_reads_beyond_the_log_are_refused_by_name(site: Site) -> None:
    async def work(log: AuditLog) -> None:
        await log.record_admin("start")
        with pytest.raises(EntryNotFound):
            await log.entry(1)
        with pytest.raises(ArgumentInvalid):
            await log.inclusion(1)
        with pytest.raises(ArgumentInvalid):
            await log.inclusion(0, 2)
        with pytest.raises(ArgumentInvalid):
            await log.consistency(0)
        assert await log.inclusion(0) == (1, [])
        assert await log.consistency(1) == (1, [])

    run(site, work)


def test_a_broken_store_fails_what_waits_and_is_reported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        message = "injected"
        raise StoreBroken(message)

    async def work(log: AuditLog) -> None:
        await log.record_admin("start")
        monkeypatch.setattr(SqliteStore, "append", fail)
        with pytest.raises(LogUnavailable):
            await log.record_admin("reload")
        assert isinstance(site.broken[0], StoreBroken)
        with pytest.raises(GreatsealError):
            await log.record_admin("reload")
        with pytest.raises(LogUnavailable):
            log.require_writable()

    run(site, work)


async def settle(log: AuditLog) -> None:
    """Commit until the writer has seen that the disk is fast enough to commit where it is asked to."""
    for _ in range(100):
        await log.record_admin("reload")


def test_a_caller_who_is_alone_gets_the_same_promises(site: Site) -> None:
    async def work(log: AuditLog) -> None:
        await settle(log)
        (placed,) = await log.open_intents([intent(1)], [request(1)], alone=True)
        assert placed is not None
        assert (await log.open_intents([intent(1)], [request(1)], alone=True)) == [None]
        proven = await log.close_intents([b'{"a":1}'], [placed.place], alone=True)
        checkpoint = open_checkpoint(proven.head.note, site.signer.verifier, ORIGIN)
        assert checkpoint.size == log.size == placed.place + 2
        verify_inclusion(
            placed.place, checkpoint.size, leaf_hash(intent(1)), split_hashes(proven.proofs[0][0]), checkpoint.root
        )
        assert f"root {checkpoint.root.hex()}" in site.anchor_path.read_text()
        assert log.open_count == 0

    run(site, work)


def test_callers_who_are_not_alone_after_all_never_meet_in_the_tree(site: Site) -> None:
    async def work(log: AuditLog) -> None:
        await settle(log)
        begun = log.size

        async def one(number: int) -> None:
            (placed,) = await log.open_intents([intent(number)], [request(number)], alone=number % 2 == 0)
            assert placed is not None
            await log.close_intents([b'{"a":%d}' % number], [placed.place], alone=number % 3 == 0)

        await asyncio.gather(*(one(number) for number in range(200)))
        assert log.size == begun + 400
        found = await log.entries(0, log.size)
        root = RootHash()
        for data in found:
            root.append(leaf_hash(data))
        assert root.root() == (await log.checkpoint()).root

    run(site, work)


def test_a_store_that_breaks_under_a_lone_caller_ends_the_log_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        message = "injected"
        raise StoreBroken(message)

    async def work(log: AuditLog) -> None:
        await settle(log)
        monkeypatch.setattr(SqliteStore, "append", fail)
        with pytest.raises(LogUnavailable):
            await log.open_intents([intent(1)], [request(1)], alone=True)
        with pytest.raises(LogUnavailable):
            log.require_writable()
        assert isinstance(site.broken[0], StoreBroken)

    run(site, work)


def commits(database: Path) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM commits").fetchone()[0])


def test_callers_at_once_share_a_commit(site: Site) -> None:
    async def work(log: AuditLog) -> None:
        await settle(log)
        before = commits(site.database)
        placed = await asyncio.gather(*(log.open_intents([intent(n)], [request(n)]) for n in range(40)))
        assert len({place.place for (place,) in placed if place is not None}) == 40
        # One for all on a fast disk; on a slow one the first, and one for those that came while it was written.
        assert commits(site.database) - before <= 10

    run(site, work)


def test_requests_are_not_forgotten_on_the_event_loop(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand rows are deleted at once: calls must not wait for it."""
    forget, threads = SqliteStore.forget_requests, []

    def forget_noting(store: SqliteStore, before_time_ms: int, limit: int) -> int:
        threads.append(threading.current_thread())
        return forget(store, before_time_ms, limit)

    async def work(log: AuditLog) -> None:
        await settle(log)
        await log.open_intents([intent(1)], [request(1)])
        monkeypatch.setattr(SqliteStore, "forget_requests", forget_noting)
        await log.forget_requests(1_800_000_000)
        assert len(threads) == 1
        assert threads[0] is not threading.main_thread()

    run(site, work)


def test_a_store_that_breaks_fails_everybody_of_the_round(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        message = "injected"
        raise StoreBroken(message)

    async def work(log: AuditLog) -> None:
        await settle(log)
        monkeypatch.setattr(SqliteStore, "append", fail)
        calls = [log.open_intents([intent(n)], [request(n)]) for n in range(5)]
        assert {type(error) for error in await asyncio.gather(*calls, return_exceptions=True)} == {LogUnavailable}

    run(site, work)


def test_what_waits_for_a_round_is_written_by_a_stop(site: Site) -> None:
    async def work(log: AuditLog) -> None:
        await settle(log)
        calls = [asyncio.create_task(log.open_intents([intent(n)], [request(n)])) for n in range(5)]
        await asyncio.sleep(0)
        log.stop()
        assert [place is not None for (place,) in await asyncio.gather(*calls)] == [True] * 5

    run(site, work)
