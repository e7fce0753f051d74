"""Rows that an administrator plants, edits, deletes or reorders: the store or the log refuses them, and says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest

from greatseald.adapters.store.postgres import PostgresStore
from greatseald.ports.store import HeadMoved, Store, StoreBroken, StoreUnusable
from postgres_server import BOOT, OTHER, PostgresServer, database_of
from store_writing import StoreWriter, check_log

pytestmark = pytest.mark.postgres

PLANTED = """
    INSERT INTO greatseal.commits SELECT {size}, time_ms, boot, root, frontier, mac, entries
    FROM greatseal.commits ORDER BY size DESC LIMIT 1
    """


@pytest.fixture
def writer(postgres_url: str, opened: Callable[..., Store]) -> StoreWriter:
    writer = StoreWriter(opened(postgres_url), BOOT)
    for number in range(5):
        writer.write([b"%d" % number])
    return writer


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ("DELETE FROM greatseal.head", "its head has no row, and its newest commit ends at 5"),
        ("UPDATE greatseal.head SET size = 0", "its head says 0 entries, and its newest commit ends at 5"),
        ("UPDATE greatseal.head SET size = 9", "its head says 9 entries, and its newest commit ends at 5"),
        ("DELETE FROM greatseal.commits WHERE size = 5", "its head says 5 entries, and its newest commit ends at 4"),
        (PLANTED.format(size=6), "its head says 5 entries, and its newest commit ends at 6"),
    ],
)
def test_a_front_does_not_start_on_a_head_and_commits_that_do_not_fit(
    edit: str, says: str, writer: StoreWriter, postgres: PostgresServer, postgres_url: str
) -> None:
    writer.store.close()
    postgres.run(edit, database_of(postgres_url))
    with pytest.raises(StoreUnusable, match=says):
        PostgresStore(postgres_url, OTHER)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (PLANTED.format(size=6), "duplicate key value violates unique constraint"),
        ("DELETE FROM greatseal.head", "the head row is gone"),
        ("INSERT INTO greatseal.open_intents VALUES (5, decode(repeat('00', 16), 'hex'))", "duplicate key value"),
    ],
)
def test_what_is_planted_where_a_running_front_writes_next_ends_it(
    edit: str, says: str, writer: StoreWriter, postgres: PostgresServer, postgres_url: str
) -> None:
    postgres.run(edit, database_of(postgres_url))
    with pytest.raises(StoreBroken, match=says):
        writer.write([b"next"], opens=True)


def test_a_planted_outcome_does_not_close_an_intent(
    writer: StoreWriter, postgres: PostgresServer, postgres_url: str
) -> None:
    intent = writer.write([b"intent"], opens=True)
    postgres.run(f"INSERT INTO greatseal.outcomes VALUES ({intent}, 0)", database_of(postgres_url))
    with pytest.raises(StoreBroken, match="has an outcome on record: somebody put it there"):
        writer.write([b"outcome"], closes=[intent])


@pytest.mark.parametrize("size", [0, 3, 50])
def test_a_head_that_was_moved_is_never_extended(
    size: int, writer: StoreWriter, postgres: PostgresServer, postgres_url: str
) -> None:
    """What then becomes of it is decided above the store, by the head's MAC."""
    postgres.run(f"UPDATE greatseal.head SET size = {size}", database_of(postgres_url))
    with pytest.raises(HeadMoved):
        writer.commit(writer.build([b"next"]))


def test_a_head_whose_hashes_alone_were_edited_is_overwritten_by_what_the_front_knows(
    writer: StoreWriter, postgres: PostgresServer, postgres_url: str
) -> None:
    postgres.run("UPDATE greatseal.head SET root = decode(repeat('ff', 32), 'hex')", database_of(postgres_url))
    writer.write([b"5"])
    assert check_log(writer.store) == [b"%d" % number for number in range(6)]


@pytest.mark.parametrize(
    "edit",
    [
        "DELETE FROM greatseal.commits WHERE size = 3",
        "UPDATE greatseal.commits SET size = 100 WHERE size = 3",
        "UPDATE greatseal.commits SET entries = substr(entries, 1, 6) WHERE size = 3",
    ],
)
def test_a_gap_in_the_entries_is_never_read_over(
    edit: str, writer: StoreWriter, postgres: PostgresServer, postgres_url: str
) -> None:
    postgres.run(edit, database_of(postgres_url))
    with pytest.raises(StoreBroken, match="holds malformed rows"):
        writer.store.entries(0, 5)
    with pytest.raises(StoreBroken):
        writer.write([b"next"])


def test_a_whole_row_put_in_anothers_place_is_seen_by_the_tree(
    writer: StoreWriter, postgres: PostgresServer, postgres_url: str
) -> None:
    writer.store.close()
    swap = (
        "UPDATE greatseal.commits SET entries = (SELECT entries FROM greatseal.commits AS other "
        "WHERE other.size = 5 - commits.size) WHERE size IN (2, 3)"
    )
    postgres.run(swap, database_of(postgres_url))
    with closing(PostgresStore(postgres_url, OTHER)) as store:
        assert store.entries(0, 5) == [b"0", b"2", b"1", b"3", b"4"]
        with pytest.raises(AssertionError):
            check_log(store)
