"""What is PostgreSQL's own: fate unknown, living and dead fronts, rights, schema."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest

from greatseald.adapters.store import postgres_schema
from greatseald.adapters.store.options import StoreOptions
from greatseald.adapters.store.postgres import PostgresStore
from greatseald.ports.store import HeadMoved, RequestKey, Store, StoreBroken, StoreError, StoreUnusable
from postgres_proxy import CommitCutter
from postgres_server import BOOT, OTHER, PostgresServer, database_of
from store_writing import StoreWriter, check_log

pytestmark = pytest.mark.postgres


class WaitingCommit:
    """An append that waits, within COMMIT, for a standby that never comes."""

    def __init__(self, server: PostgresServer, writer: StoreWriter) -> None:
        self.server = server
        self.error: BaseException | None = None
        self._writer = writer
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> int:
        """Return the pid of the session that waits."""
        self._standby("'nobody'")
        self._thread.start()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            waiting = self.server.run("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            if waiting:
                pid = waiting[0][0]
                assert isinstance(pid, int)
                return pid
            time.sleep(0.02)
        raise TimeoutError("the commit does not wait for a standby")

    def __exit__(self, *_: object) -> None:
        self._thread.join(20)
        self._standby("''")

    def _standby(self, name: str) -> None:
        self.server.run(f"ALTER SYSTEM SET synchronous_standby_names = {name}")
        self.server.run("SELECT pg_reload_conf()")
        deadline = time.monotonic() + 20
        while self.server.run("SHOW synchronous_standby_names") != [(name.strip("'"),)]:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _run(self) -> None:
        try:
            self._writer.write([b"in doubt"])
        except StoreBroken as error:
            self.error = error


def test_a_commit_that_gave_up_on_the_standby_is_not_reported_as_durable(
    postgres: PostgresServer, postgres_url: str, opened: Callable[..., Store]
) -> None:
    """PostgreSQL answers COMMIT all the same, with a WARNING."""
    store = opened(postgres_url)
    writer = StoreWriter(store, BOOT)
    writer.write([b"sound"])
    commit = WaitingCommit(postgres, writer)
    with commit as pid:
        postgres.run(f"SELECT pg_cancel_backend({pid})")
    assert commit.error is not None
    assert "COMMIT, which may not be durable" in str(commit.error)
    assert "canceling wait for synchronous replication" in str(commit.error)
    with pytest.raises(StoreBroken):
        writer.write([b"more"])
    # It was committed here: only a restart may say so.
    assert check_log(opened(postgres_url)) == [b"sound", b"in doubt"]


def test_a_connection_lost_at_commit_leaves_the_fate_unknown(
    postgres: PostgresServer, postgres_url: str, opened: Callable[..., Store]
) -> None:
    writer = StoreWriter(opened(postgres_url), BOOT)
    commit = WaitingCommit(postgres, writer)
    with commit as pid:
        postgres.run(f"SELECT pg_terminate_backend({pid})")
    assert commit.error is not None
    assert "COMMIT" in str(commit.error)
    check_log(opened(postgres_url))


@pytest.mark.parametrize("committed", [True, False])
def test_a_connection_cut_at_commit_ends_the_front_whatever_became_of_it(
    committed: bool, postgres: PostgresServer, postgres_url: str, opened: Callable[..., Store]
) -> None:
    """The server has committed and its answer is lost, or it never heard of it: the front cannot tell, a restart can."""
    with CommitCutter(postgres) as proxy:
        store = opened(proxy.url(database_of(postgres_url)), BOOT)
        writer = StoreWriter(store, BOOT)
        writer.write([b"sound"])
        proxy.cut_next(after=committed)
        with pytest.raises(StoreBroken, match="COMMIT, and whether it was committed is not known"):
            writer.write([b"in doubt"])
        with pytest.raises(StoreBroken):
            writer.write([b"more"])
        assert proxy.cuts == 1
    again = opened(postgres_url, OTHER)
    assert check_log(again) == [b"sound"] + [b"in doubt"] * committed
    StoreWriter(again, OTHER).write([b"goes on"])
    check_log(again)


def test_a_front_notices_that_it_counts_as_dead_without_writing(
    postgres: PostgresServer, postgres_url: str, opened: Callable[..., Store]
) -> None:
    store = opened(postgres_url)
    store.check_alive()
    postgres.run(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' "
        f"AND database = (SELECT oid FROM pg_database WHERE datname = '{database_of(postgres_url)}')"
    )
    with pytest.raises(StoreBroken, match="a check of its commit connection"):
        store.check_alive()


def test_a_front_whose_lock_was_given_away_by_a_pooler_ends(postgres_url: str, opened: Callable[..., Store]) -> None:
    store = opened(postgres_url)
    store._writer.execute("SELECT pg_advisory_unlock_all()")  # type: ignore[attr-defined]
    with pytest.raises(StoreBroken, match="A pooler that changes sessions cannot be used"):
        store.check_alive()


def test_a_refused_append_that_is_not_tried_again_keeps_nobody_waiting(
    postgres_url: str, opened: Callable[..., Store]
) -> None:
    slow, fast = StoreWriter(opened(postgres_url, BOOT), BOOT), StoreWriter(opened(postgres_url, OTHER), OTHER)
    stale = slow.build([b"stale"])
    fast.write([b"fast"])
    with pytest.raises(HeadMoved):
        slow.commit(stale)
    slow.store.check_alive()
    fast.write([b"fast again"])


def test_a_server_that_makes_us_wait_too_long_for_the_head_ends_the_front(
    postgres: PostgresServer, postgres_url: str
) -> None:
    with (
        closing(PostgresStore(postgres_url, BOOT, StoreOptions(lock_timeout=0.2))) as store,
        psycopg.connect(postgres.url(database_of(postgres_url))) as stuck,
    ):
        stuck.execute("SELECT * FROM greatseal.head FOR UPDATE")
        with pytest.raises(StoreBroken, match="lock timeout"):
            StoreWriter(store, BOOT).write([b"x"])


@pytest.mark.parametrize(
    ("read", "found"), [(lambda store: store.entries(0, 1), [b"x"]), (lambda store: store.open_intents(), [])]
)
def test_a_reader_that_was_cut_while_idle_is_replaced(
    postgres: PostgresServer,
    postgres_url: str,
    opened: Callable[..., Store],
    read: Callable[[Store], object],
    found: object,
) -> None:
    store = opened(postgres_url)
    StoreWriter(store, BOOT).write([b"x"])
    assert read(store) == found
    postgres.run(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'greatseald' "
        "AND pid NOT IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')"
    )
    assert read(store) == found


def test_only_one_front_forgets_and_nobody_dies_of_it(postgres_url: str, opened: Callable[..., Store]) -> None:
    stores = [opened(postgres_url, BOOT), opened(postgres_url, OTHER)]
    writer = StoreWriter(stores[0], BOOT)
    keys = [RequestKey(bytes([number]) * 16, b"c" * 16, 1) for number in range(100)]
    writer.write([b"%d" % number for number in range(100)], opens=True, requests=keys)
    writer.write([b"o"] * 100, closes=range(100))
    with ThreadPoolExecutor(2) as pool:
        done = sum(pool.map(lambda store: sum(store.forget_requests(10_000, 7) for _ in range(40)), stores))
    while forgotten := stores[0].forget_requests(10_000, 7):  # who came too often while the other was at it
        done += forgotten
    assert done == 100
    assert stores[0].attempts(b"c" * 16, bytes(16)) == []


def test_a_front_that_lost_its_session_writes_no_more_and_counts_as_dead(
    postgres: PostgresServer, postgres_url: str, opened: Callable[..., Store]
) -> None:
    store, other = opened(postgres_url, BOOT), opened(postgres_url, OTHER)
    writer = StoreWriter(store, BOOT)
    writer.write([b"intent"], opens=True)
    assert other.open_intents() == []
    name = database_of(postgres_url)
    postgres.run(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' "
        f"AND database = (SELECT oid FROM pg_database WHERE datname = '{name}') "
        f"AND pid = (SELECT min(pid) FROM pg_stat_activity WHERE datname = '{name}')"
    )
    assert [intent.boot for intent in other.open_intents()] == [BOOT]
    StoreWriter(other, OTHER).write([b"unknown"], closes=[0])
    # The late signature finds its fence closed, or rather: finds itself without a store.
    with pytest.raises(StoreBroken):
        writer.write([b"signed"], closes=[0])
    with pytest.raises(StoreBroken):
        writer.write([b"signed"], closes=[0])
    assert check_log(other) == [b"intent", b"unknown"]


def test_a_server_that_stops_at_once_keeps_what_it_acknowledged(
    postgres: PostgresServer, postgres_url: str, opened: Callable[..., Store]
) -> None:
    store = opened(postgres_url)
    writer = StoreWriter(store, BOOT)
    for commit in range(20):
        writer.write([b"%d" % commit])
    postgres.down(signal.SIGQUIT)
    try:
        with pytest.raises(StoreError, match="cannot be read"):
            store.head()
        with pytest.raises(StoreBroken):
            writer.write([b"x"])
        with pytest.raises(StoreUnusable, match="cannot be reached"):
            PostgresStore(postgres_url, OTHER)
    finally:
        postgres.up()
    assert check_log(opened(postgres_url)) == [b"%d" % commit for commit in range(20)]


def test_a_front_that_was_too_late_has_the_next_turn(postgres_url: str, opened: Callable[..., Store]) -> None:
    slow, fast = StoreWriter(opened(postgres_url, BOOT), BOOT), StoreWriter(opened(postgres_url, OTHER), OTHER)
    stale = slow.build([b"stale"])
    fast.write([b"fast"])
    with pytest.raises(HeadMoved):
        slow.commit(stale)
    finished = threading.Event()

    def hurry() -> None:
        fast.write([b"fast again"])
        finished.set()

    thread = threading.Thread(target=hurry)
    thread.start()
    slow.catch_up()
    slow.write([b"slow"])
    thread.join(20)
    assert finished.is_set()
    assert slow.retries == 0
    assert check_log(slow.store) == [b"fast", b"slow", b"fast again"]


def test_two_fronts_of_one_boot_are_refused(postgres_url: str, opened: Callable[..., Store]) -> None:
    opened(postgres_url, BOOT)
    with pytest.raises(StoreUnusable, match="same boot"):
        opened(postgres_url, BOOT)
    opened(postgres_url, OTHER)


def test_a_server_without_fsync_is_refused(postgres: PostgresServer, postgres_url: str) -> None:
    postgres.run("ALTER SYSTEM SET fsync = off")
    postgres.run("SELECT pg_reload_conf()")
    try:
        deadline = time.monotonic() + 20
        while postgres.run("SHOW fsync") != [("off",)]:
            assert time.monotonic() < deadline
        with pytest.raises(StoreUnusable, match="fsync = off"):
            PostgresStore(postgres_url, BOOT)
    finally:
        postgres.run("ALTER SYSTEM RESET fsync")
        postgres.run("SELECT pg_reload_conf()")


def test_no_message_shows_the_password(postgres_url: str) -> None:
    url = postgres_url.replace("postgres@", "postgres:hunter2@").replace("/log?", "/absent_log?")
    with pytest.raises(StoreUnusable, match="absent_log") as refused:
        PostgresStore(url, BOOT)
    assert "hunter2" not in str(refused.value)


# ------------------------------------------------------------------------------------- schema


def test_an_older_schema_is_migrated_and_a_newer_one_refused(postgres_url: str, opened: Callable[..., Store]) -> None:
    with closing(opened(postgres_url)) as store:
        StoreWriter(store, BOOT).write([b"a", b"b"])
    newer = (*postgres_schema.MIGRATIONS, "CREATE TABLE greatseal.notes AS SELECT size FROM greatseal.commits")
    with closing(PostgresStore(postgres_url, BOOT, migrations=newer)) as store:
        assert check_log(store) == [b"a", b"b"]
    with pytest.raises(
        StoreUnusable, match=f"schema version {len(newer)}, and this greatseald knows versions up to {len(newer) - 1}"
    ):
        opened(postgres_url)


def test_a_migration_that_fails_changes_nothing(postgres_url: str, opened: Callable[..., Store]) -> None:
    opened(postgres_url).close()
    broken = (*postgres_schema.MIGRATIONS, "CREATE TABLE greatseal.notes (x INTEGER); SELECT 1 / 0")
    with pytest.raises(StoreUnusable, match="division by zero"):
        PostgresStore(postgres_url, BOOT, migrations=broken)
    StoreWriter(opened(postgres_url), BOOT).write([b"goes on"])


def test_a_schema_is_not_migrated_under_a_front_that_runs(postgres_url: str, opened: Callable[..., Store]) -> None:
    older = opened(postgres_url)
    newer = (*postgres_schema.MIGRATIONS, "CREATE TABLE greatseal.notes (x INTEGER)")
    with pytest.raises(StoreUnusable, match="other fronts still run on it"):
        PostgresStore(postgres_url, BOOT, migrations=newer)
    StoreWriter(older, BOOT).write([b"goes on"])
    older.close()
    with closing(PostgresStore(postgres_url, OTHER, migrations=newer)) as store:
        assert check_log(store) == [b"goes on"]


def test_many_fronts_that_find_an_empty_database_make_one_schema(postgres_url: str) -> None:
    boots = [bytes([number]) * 16 for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda boot: PostgresStore(postgres_url, boot), boots))
    for store, boot in zip(stores, boots, strict=True):
        StoreWriter(store, boot).write([boot])
    assert check_log(stores[0]) == boots
    for store in stores:
        store.close()


@pytest.mark.parametrize(
    "alteration",
    [
        "ALTER TABLE greatseal.commits ADD COLUMN note text",
        "ALTER TABLE greatseal.requests ALTER COLUMN attempt TYPE integer",
        "DROP TABLE greatseal.outcomes",
        "CREATE RULE quiet AS ON INSERT TO greatseal.open_intents DO INSTEAD NOTHING",
        "ALTER TABLE greatseal.commits ENABLE ROW LEVEL SECURITY",
        (
            "CREATE FUNCTION greatseal.late() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
            "CREATE TRIGGER late BEFORE INSERT ON greatseal.commits FOR EACH ROW EXECUTE FUNCTION greatseal.late()"
        ),
    ],
)
def test_an_altered_schema_is_refused(
    alteration: str, postgres: PostgresServer, postgres_url: str, opened: Callable[..., Store]
) -> None:
    opened(postgres_url).close()
    postgres.run(alteration, database_of(postgres_url))
    with pytest.raises(StoreUnusable, match="differs from its schema version in: "):
        opened(postgres_url)


def test_somebody_elses_schema_is_refused(postgres: PostgresServer, postgres_url: str) -> None:
    postgres.run("CREATE SCHEMA greatseal", database_of(postgres_url))
    with pytest.raises(StoreUnusable, match="not of a Greatseal log"):
        PostgresStore(postgres_url, BOOT)


def test_a_backup_is_left_to_postgresqls_tools(
    postgres_url: str, opened: Callable[..., Store], tmp_path: object
) -> None:
    with pytest.raises(StoreError, match="pg_basebackup"):
        opened(postgres_url).backup(f"{tmp_path}/copy.db")
