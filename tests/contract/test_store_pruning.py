"""What pruning promises, over SQLite by the writer and over PostgreSQL by the schema's owner."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import psycopg
import pytest

from greatseald.adapters.store import postgres_admin, postgres_pruning
from greatseald.adapters.store.opening import compact, open_store
from greatseald.adapters.store.options import DEFAULTS
from greatseald.adapters.store.postgres import PostgresStore
from greatseald.adapters.store.sqlite import SqliteStore
from greatseald.ports.store import EntriesPruned, Pruned, RequestKey, Store, StoreError
from postgres_server import BOOT, PostgresServer, database_of
from store_writing import StoreWriter

ADMIN = b'{"t":"admin","what":"key"}'
QUOTED = b'{"t":"intent","ptype":"\\"t\\":\\"admin\\""}'

Prune = Callable[[Store, int, int], None]


@pytest.fixture
def prune(url: str) -> Prune:
    """Prune the store to a boundary, by the entry at an index."""

    def run(store: Store, target: int, entry: int) -> None:
        if isinstance(store, SqliteStore):
            store.begin_pruning(target, entry)
            while store.prune(4):
                pass
        else:
            postgres_pruning.prune(url, DEFAULTS, target, entry, lambda _done, _target: None)

    return run


def filled(store: Store) -> StoreWriter:
    """Ten commits of three entries, two of which have an admin entry, and a large one."""
    writer = StoreWriter(store, BOOT)
    for number in range(10):
        entries = [b"%d-%d" % (number, place) for place in range(3)]
        if number in {2, 6}:
            entries[1] = ADMIN
        if number == 3:
            entries[0] = QUOTED
        writer.write(entries)
    writer.write([b"large %d" % number for number in range(300)])
    return writer


def test_what_was_pruned_is_gone_but_for_admin_entries_and_the_last(store: Store, prune: Prune) -> None:
    writer = filled(store)
    before = store.entries(0, 330)
    assert store.pruned() is None
    assert [store.boundary(index) for index in (0, 2, 3, 23, 24, 329, 330)] == [0, 0, 3, 21, 24, 30, 330]
    prune(store, 24, 7)
    assert store.pruned() == Pruned(24, 24, 7)
    for start in (0, 7, 23):
        with pytest.raises(EntriesPruned) as caught:
            store.entries(start, 330)
        assert caught.value.size == 24
    assert store.entries(24, 330) == before[24:]
    assert store.entries(7, 8) == [ADMIN]
    with pytest.raises(EntriesPruned):
        store.entries(8, 9)
    assert store.kept(0, 1 << 40, 10) == [(7, ADMIN), (19, ADMIN), (23, before[23])]
    assert store.kept(0, 23, 1, descending=True) == [(19, ADMIN)]
    assert store.kept(8, 19, 10) == []
    writer.write([b"more"])
    assert store.entries(330, 331) == [b"more"]


def test_proofs_of_what_was_pruned_go_on_and_so_does_the_tree(store: Store, prune: Prune) -> None:
    writer = filled(store)
    proofs = [writer.tree.prover(330).inclusion(index) for index in (0, 10, 300)]
    prune(store, 30, 7)
    # Hash tiles and what is after the last full one are what a start takes.
    again = StoreWriter(store, BOOT)
    assert [again.tree.prover(330).inclusion(index) for index in (0, 10, 300)] == proofs
    again.write([b"more"])


def test_the_newest_commit_cannot_go(sqlite_url: str) -> None:
    with closing(open_store(sqlite_url, BOOT)) as store:
        filled(store)
        with pytest.raises(ValueError, match="newest commit"):
            store.begin_pruning(330, 7)


def test_a_further_pruning_goes_on_and_drops_the_last_one_of_before(store: Store, prune: Prune) -> None:
    filled(store)
    prune(store, 9, 7)
    assert store.kept(0, 100, 10) == [(7, ADMIN), (8, b"2-2")]
    prune(store, 24, 19)
    assert store.pruned() == Pruned(24, 24, 19)
    assert store.kept(0, 100, 10) == [(7, ADMIN), (19, ADMIN), (23, b"7-2")]


def test_an_interrupted_pruning_is_gone_on_with(sqlite_url: str) -> None:
    with closing(open_store(sqlite_url, BOOT)) as store:
        filled(store)
        store.begin_pruning(24, 7)
        assert store.prune(4)
        done = store.pruned()
        assert done == Pruned(3, 24, 7)
    with closing(open_store(sqlite_url, BOOT)) as store:
        assert store.pruned() == done
        assert store.entries(3, 6) == [b"1-0", b"1-1", b"1-2"]
        while store.prune(4):
            pass
        assert store.pruned() == Pruned(24, 24, 7)


def test_open_intents_and_requests_on_record_hold_their_entries(store: Store) -> None:
    writer = StoreWriter(store, BOOT)
    assert store.held_from() is None
    writer.write([b"a", b"b"])
    writer.write([b"request"], requests=[RequestKey(b"r" * 16, b"c" * 16, 1)])
    intent = writer.write([b"open"], opens=True)
    assert store.held_from() == 2
    store.forget_requests(10_000, 10)
    assert store.held_from() == intent == 3
    writer.write([b"outcome"], closes=[3])
    assert store.held_from() is None


def test_compacting_gives_the_space_back(sqlite_url: str) -> None:
    with closing(open_store(sqlite_url, BOOT)) as store:
        writer = StoreWriter(store, BOOT)
        for number in range(100):
            writer.write([bytes([number]) * 16_000])
        store.begin_pruning(90, 1)
        while store.prune(50):
            pass
        with pytest.raises(StoreError, match="in use"):
            compact(sqlite_url)
    before, after = compact(sqlite_url)
    assert after < before // 3
    with closing(open_store(sqlite_url, BOOT)) as store:
        assert store.pruned() == Pruned(90, 90, 1)
        assert len(store.entries(90, 100)) == 10
    with pytest.raises(StoreError, match="no database"):
        compact(sqlite_url.replace("log.db", "other.db"))


@pytest.mark.postgres
def test_the_fronts_role_reads_what_was_pruned_and_cannot_prune(postgres: PostgresServer, postgres_url: str) -> None:
    name = database_of(postgres_url)
    postgres.run("CREATE ROLE prune_owner LOGIN")
    postgres.run("CREATE ROLE prune_front LOGIN")
    postgres.run(f"GRANT CREATE ON DATABASE {name} TO prune_owner")
    owner, front = (postgres.url(name, f"prune_{role}") for role in ("owner", "front"))
    try:
        postgres_admin.prepare(owner, DEFAULTS, front="prune_front", reader="", must_be_empty=True)
        with closing(PostgresStore(front, BOOT)) as store:
            filled(store)
            with pytest.raises(StoreError, match="--as"):
                store.begin_pruning(24, 7)
            with pytest.raises(StoreError, match="permission denied"):
                postgres_pruning.prune(front, DEFAULTS, 24, 7, lambda _done, _target: None)
            assert len(store.entries(0, 24)) == 24
            postgres_pruning.prune(owner, DEFAULTS, 24, 7, lambda _done, _target: None)
            assert store.pruned() == Pruned(24, 24, 7)
            assert store.kept(0, 24, 10)[0] == (7, ADMIN)
            for statement in (
                "INSERT INTO greatseal.kept VALUES (1, true, '')",
                "DELETE FROM greatseal.kept",
                "UPDATE greatseal.pruned SET size = 0",
                "DELETE FROM greatseal.pruned",
            ):
                with psycopg.connect(front) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement.encode())
    finally:
        for role in ("prune_front", "prune_owner"):
            postgres.run(f"DROP OWNED BY {role} CASCADE", name)
            postgres.run(f"DROP ROLE {role}", name)
