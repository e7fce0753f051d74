"""What is SQLite's own: files, modes, refusals at opening, migration, backup and restore."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from greatseald.adapters.store import opening, sqlite_files, sqlite_schema
from greatseald.adapters.store.sqlite import SqliteStore
from greatseald.ports.store import Append, Attempt, Head, RequestKey, Store, StoreBroken, StoreError, StoreUnusable
from store_writing import HASH, StoreWriter, check_log

BOOT = bytes(range(16))
REQUEST = RequestKey(b"r" * 16, b"c" * 16, 1)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


def fill(url: str, commits: int = 3) -> None:
    """A closed log of `commits` times 200 entries, the first of them open."""
    with closing(opening.open_store(url, BOOT)) as store:
        writer = StoreWriter(store, BOOT)
        for commit in range(commits):
            entries = [b"%d.%d" % (commit, number) for number in range(200)]
            writer.write(entries, opens=commit == 0, requests=[REQUEST] if commit == 0 else [])


def edit(database: Path, statement: str) -> None:
    connection = apsw.Connection(str(database))
    connection.execute(statement)
    connection.close()


def refusal(url: str) -> str:
    with pytest.raises(StoreUnusable) as refused:
        opening.open_store(url, BOOT)
    return str(refused.value)


# ------------------------------------------------------------------------------- files and modes


def test_files_are_for_the_owner_alone(sqlite_url: str, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with closing(opening.open_store(sqlite_url, BOOT)) as store:
            StoreWriter(store, BOOT).write([b"a"])
            store.head()
            store.backup(str(tmp_path / "copy.db"))
            files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(old)
    assert files == dict.fromkeys(("log.db", "log.db-wal", "log.db-shm", "log.db.lock", "copy.db"), 0o600)


def test_a_database_that_others_may_read_is_closed_to_them(sqlite_url: str, database: Path) -> None:
    fill(sqlite_url)
    database.chmod(0o664)
    opening.open_store(sqlite_url, BOOT).close()
    assert stat.S_IMODE(database.stat().st_mode) == 0o600


def test_after_a_clean_stop_the_database_is_one_file(sqlite_url: str, tmp_path: Path) -> None:
    fill(sqlite_url)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.db", "log.db.lock"]


def test_a_missing_directory_is_named_with_its_cure(tmp_path: Path) -> None:
    said = refusal(f"sqlite://{tmp_path}/absent/log.db")
    assert f"{tmp_path}/absent does not exist" in said
    assert "Make it" in said


@pytest.mark.root
def test_an_unwritable_directory_is_named_with_its_cure(tmp_path: Path) -> None:
    """As a user who may not write there: root may always."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for directory in (tmp_path, *tmp_path.parents):
        if directory == Path("/tmp"):
            break
        directory.chmod(directory.stat().st_mode | 0o055)
    said = as_nobody(lambda: opening.open_store(f"sqlite://{tmp_path}/log.db", BOOT))
    assert said.startswith("StoreUnusable: ")
    assert f"{tmp_path} is not writable for uid 65534" in said
    assert "chown" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_a_database_of_another_user_is_named_with_its_cure(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    place = Path("/tmp") / f"greatseal-{os.getpid()}-foreign"
    place.mkdir()
    try:
        fill(f"sqlite://{place}/log.db")
        (place / "log.db.lock").unlink()
        place.chmod(0o777)
        said = as_nobody(lambda: opening.open_store(f"sqlite://{place}/log.db", BOOT))
        assert said.startswith("StoreUnusable: ")
        assert "log.db cannot be opened for writing as uid 65534: Permission denied" in said
    finally:
        shutil.rmtree(place)


def as_nobody(action: Callable[[], object]) -> str:
    """Run `action` in a child with uid 65534 and return the error it raised, or `no error`."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        said = "no error"
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            action()
        except BaseException as error:  # noqa: BLE001 - a forked child must not return into pytest
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(theirs, said.encode())
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs"])
def test_a_remote_file_system_is_refused(kind: str, tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    shared = str(tmp_path).replace(" ", "\\040")
    mounts.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        f"40 22 0:44 / {shared} rw,relatime shared:9 - {kind} server:/export rw,vers=4.2\n"
        "41 22 0:45 / /unrelated rw - tmpfs tmpfs rw\n"
    )
    with pytest.raises(StoreUnusable, match=rf"lies on {kind}, .* local file system"):
        sqlite_files.require_place(str(tmp_path / "log.db"), str(mounts))


def test_the_innermost_and_last_mount_counts(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - nfs4 server:/ rw\n2 1 8:2 / /srv\\040a rw - cifs //s rw\n3 1 8:3 / /srv\\040a rw - xfs /dev/sdb rw\n"
    )
    assert sqlite_files.file_system("/srv a/data", str(mounts)) == "xfs"
    assert sqlite_files.file_system("/srv a", str(mounts)) == "xfs"
    assert sqlite_files.file_system("/srv ab", str(mounts)) == "nfs4"
    assert sqlite_files.file_system("/srv a", str(tmp_path / "absent")) == ""


def test_this_machines_own_mounts_can_be_read(tmp_path: Path) -> None:
    assert sqlite_files.file_system(str(tmp_path)) != ""


def test_a_link_in_the_databases_place_is_refused(sqlite_url: str, database: Path, tmp_path: Path) -> None:
    fill(sqlite_url)
    database.rename(tmp_path / "elsewhere.db")
    database.symlink_to(tmp_path / "elsewhere.db")
    assert "must be a regular file" in refusal(sqlite_url)


# ---------------------------------------------------------------------- damaged, foreign, newer


def test_a_database_that_is_none_is_refused_and_left_alone(sqlite_url: str, database: Path) -> None:
    for content in (
        b"not a database, but quite long enough to be one" * 10,
        b"SQLite format 3\x00" + b"\xff" * 500,
        b"x",
    ):
        database.write_bytes(content)
        assert f"{database} is damaged or not an SQLite database" in refusal(sqlite_url)
        assert database.read_bytes() == content


def test_a_database_cut_short_is_refused(sqlite_url: str, database: Path) -> None:
    fill(sqlite_url)
    os.truncate(database, 3 * 4096)
    said = refusal(sqlite_url)
    assert f"{database} is damaged: SQLITE_CORRUPT" in said
    assert "Restore it from a backup" in said


def test_damaged_pages_break_the_store_and_are_not_read_as_an_empty_log(sqlite_url: str, database: Path) -> None:
    fill(sqlite_url)
    with database.open("r+b") as file:
        # Past the schema's page lie the roots of the tables.
        file.seek(4096)
        file.write(b"\xa5" * (database.stat().st_size - 4096))
    with closing(opening.open_store(sqlite_url, BOOT)) as store:
        with pytest.raises(StoreBroken, match="SQLITE_CORRUPT"):
            store.head()
        with pytest.raises(StoreBroken):
            StoreWriter(store, BOOT)


def test_malformed_rows_break_the_store_for_writing_too(sqlite_url: str, database: Path) -> None:
    """A bit flipped in a length: the row is SQLite's idea of sound, and not ours."""
    fill(sqlite_url, commits=2)
    edit(database, "UPDATE commits SET entries = x'02000000ff' WHERE size = 400")
    with closing(opening.open_store(sqlite_url, BOOT)) as store:
        assert store.entries(0, 200)[0] == b"0.0"
        with pytest.raises(StoreBroken, match="claims 2 entries"):
            store.entries(300, 301)
        with pytest.raises(StoreBroken):
            store.append(Append(400, [b"x"], Head(401, bytes(32), b"", bytes(32)), BOOT, 0))


def test_a_removed_commit_leaves_a_gap_that_is_found(sqlite_url: str, database: Path) -> None:
    fill(sqlite_url, commits=3)
    edit(database, "DELETE FROM commits WHERE size = 400")
    with (
        closing(opening.open_store(sqlite_url, BOOT)) as store,
        pytest.raises(StoreBroken, match="begins at 400, not at 200"),
    ):
        store.entries(150, 450)


def test_somebody_elses_database_is_refused(sqlite_url: str, database: Path) -> None:
    edit(database, "CREATE TABLE bookmarks (id INTEGER)")
    database.chmod(0o644)
    before = database.read_bytes()
    assert "not of a Greatseal log" in refusal(sqlite_url)
    assert (database.read_bytes(), stat.S_IMODE(database.stat().st_mode)) == (before, 0o644)
    database.unlink()
    edit(database, "PRAGMA application_id = 7; CREATE TABLE x (y)")
    assert "application id 0x7" in refusal(sqlite_url)


def test_a_newer_schema_is_refused_by_its_number(sqlite_url: str, database: Path) -> None:
    fill(sqlite_url)
    newest = len(sqlite_schema.MIGRATIONS)
    edit(database, f"PRAGMA user_version = {newest + 1}")
    said = refusal(sqlite_url)
    assert f"schema version {newest + 1}" in said
    assert f"versions up to {newest}" in said
    edit(database, f"PRAGMA user_version = {newest}")
    opening.open_store(sqlite_url, BOOT).close()


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("CREATE TRIGGER spy AFTER INSERT ON commits BEGIN DELETE FROM open_intents; END", "trigger spy"),
        ("CREATE INDEX slow ON requests (intent)", "index slow"),
        ("CREATE VIEW shown AS SELECT 1", "view shown"),
        ("DROP TABLE outcomes", "table outcomes"),
        ("ALTER TABLE tiles ADD COLUMN more TEXT", "table tiles"),
    ],
)
def test_an_altered_schema_is_refused_and_the_part_named(
    statement: str, named: str, sqlite_url: str, database: Path
) -> None:
    fill(sqlite_url)
    edit(database, statement)
    assert f"differs from it in: {named}." in refusal(sqlite_url)


# ------------------------------------------------------------------------------------- migration

SECOND = """
    CREATE TABLE notes (idx INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;
    INSERT INTO notes SELECT size, 'commit of ' || time_ms FROM commits;
    """


def test_an_older_schema_is_migrated_with_everything_in_it(
    sqlite_url: str, database: Path, opened: Callable[..., Store]
) -> None:
    fill(sqlite_url)
    newer = (*sqlite_schema.MIGRATIONS, SECOND)
    with closing(SqliteStore(str(database), b"n" * 16, newer)) as store:
        assert len(check_log(store)) == 600
        assert len(store.open_intents()) == 200
        assert store.attempts(REQUEST.caller, REQUEST.request_id) == [Attempt(1, HASH, 0, None)]
        StoreWriter(store, b"n" * 16).write([b"goes on"])
    connection = apsw.Connection(str(database))
    assert connection.execute("SELECT count(*), min(text) FROM notes").fetchall() == [(3, "commit of 1000")]
    connection.close()
    # Again: nothing is left to do. And the older daemon is told what it met.
    SqliteStore(str(database), b"n" * 16, newer).close()
    newest = len(sqlite_schema.MIGRATIONS)
    assert f"schema version {newest + 1}, and this greatseald knows versions up to {newest}" in refusal(sqlite_url)


def test_several_steps_are_taken_in_order(database: Path) -> None:
    steps = (*sqlite_schema.MIGRATIONS, SECOND, "ALTER TABLE notes ADD COLUMN more TEXT", "DROP TABLE notes")
    # From the second version on: the first lacks what a commit writes.
    for upto in (2, 3, len(steps)):
        SqliteStore(str(database), BOOT, steps[:upto]).close()
    connection = apsw.Connection(str(database))
    assert connection.pragma("user_version") == len(steps)
    connection.close()


def test_a_migration_that_fails_changes_nothing(sqlite_url: str, database: Path) -> None:
    fill(sqlite_url)
    broken = (*sqlite_schema.MIGRATIONS, SECOND + "INSERT INTO notes VALUES (200, 'twice');")
    with pytest.raises(StoreUnusable, match="SQLITE_CONSTRAINT"):
        SqliteStore(str(database), BOOT, broken)
    with closing(opening.open_store(sqlite_url, BOOT)) as store:
        assert len(check_log(store)) == 600


# ----------------------------------------------------------------------------- backup and restore


def test_a_backup_is_a_log_of_its_own(sqlite_url: str, tmp_path: Path, opened: Callable[..., Store]) -> None:
    fill(sqlite_url)
    store = opened(sqlite_url)
    writer = StoreWriter(store, BOOT)
    store.backup(str(tmp_path / "copy.db"))
    writer.write([b"after the backup"])
    copy = opened(f"sqlite://{tmp_path}/copy.db")
    assert len(check_log(copy)) == 600
    assert len(check_log(store)) == 601
    assert sorted(path.name for path in tmp_path.glob("copy.db*")) == [
        "copy.db", "copy.db-shm", "copy.db-wal", "copy.db.lock",
    ]  # fmt: skip


def test_a_backup_while_others_write_is_one_moment(
    sqlite_url: str, tmp_path: Path, opened: Callable[..., Store]
) -> None:
    store = opened(sqlite_url)
    writer = StoreWriter(store, BOOT)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            writer.write([os.urandom(4_000) for _ in range(20)], opens=True)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(3):
            store.backup(str(tmp_path / f"copy{number}.db"))
    finally:
        done.set()
        thread.join()
    sizes = []
    for number in range(3):
        copy = opened(f"sqlite://{tmp_path}/copy{number}.db")
        sizes.append(len(check_log(copy)))
        assert len(copy.open_intents()) == sizes[-1]
    assert sizes == sorted(sizes)


def test_a_backup_overwrites_nothing_and_leaves_nothing_half_written(
    sqlite_url: str, tmp_path: Path, opened: Callable[..., Store]
) -> None:
    fill(sqlite_url)
    store = opened(sqlite_url)
    taken = tmp_path / "taken.db"
    taken.write_text("precious")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(StoreError, match=r"taken\.db exists"):
        store.backup(str(taken))
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(StoreError, match="dangling exists"):
        store.backup(str(tmp_path / "dangling"))
    (tmp_path / "dangling").unlink()
    with pytest.raises(StoreError, match="No such file or directory"):
        store.backup(str(tmp_path / "absent" / "copy.db"))
    with pytest.raises(StoreError, match="exists"):
        store.backup(str(tmp_path / "log.db"))
    assert taken.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".db-shm") == [
        name for name in before if not name.endswith("-shm")
    ]
    StoreWriter(store, BOOT).write([b"the store is none the worse"])


def test_a_restored_log_is_the_one_backed_up(sqlite_url: str, tmp_path: Path, opened: Callable[..., Store]) -> None:
    fill(sqlite_url)
    with closing(opening.open_store(sqlite_url, BOOT)) as store:
        store.backup(str(tmp_path / "copy.db"))
        StoreWriter(store, BOOT).write([b"later"])
    with pytest.raises(StoreError, match="exists"):
        opening.restore(str(tmp_path / "copy.db"), sqlite_url)
    moved = opening.restore(str(tmp_path / "copy.db"), sqlite_url, replace=True)
    assert moved is not None
    assert len(check_log(opened(sqlite_url))) == 600
    # What was replaced is not lost.
    assert len(check_log(opened(f"sqlite://{moved}"))) == 601


def test_restoring_over_a_log_that_was_killed_does_not_mix_the_two(
    sqlite_url: str, database: Path, tmp_path: Path, opened: Callable[..., Store]
) -> None:
    """A write-ahead log left behind would be replayed into the restored database."""
    fill(sqlite_url)
    live = opened(sqlite_url)
    live.backup(str(tmp_path / "copy.db"))
    StoreWriter(live, BOOT).write([b"only in the write-ahead log"])
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{database}{suffix}", crashed / f"log.db{suffix}")
    moved = opening.restore(str(tmp_path / "copy.db"), f"sqlite://{crashed}/log.db", replace=True)
    assert len(check_log(opened(f"sqlite://{crashed}/log.db"))) == 600
    assert check_log(opened(f"sqlite://{moved}"))[-1] == b"only in the write-ahead log"


def test_a_database_in_use_is_not_restored_over(sqlite_url: str, tmp_path: Path, opened: Callable[..., Store]) -> None:
    fill(sqlite_url)
    store = opened(sqlite_url)
    store.backup(str(tmp_path / "copy.db"))
    with pytest.raises(StoreUnusable, match=f"in use by another process, pid {os.getpid()}"):
        opening.restore(str(tmp_path / "copy.db"), sqlite_url, replace=True)


def test_an_unsound_backup_is_refused_before_anything_is_touched(
    sqlite_url: str, database: Path, tmp_path: Path, opened: Callable[..., Store]
) -> None:
    fill(sqlite_url)
    with closing(opening.open_store(sqlite_url, BOOT)) as store:
        store.backup(str(tmp_path / "copy.db"))
    whole = (tmp_path / "copy.db").read_bytes()
    before = database.read_bytes()
    middle = len(whole) // 2
    bad: dict[str, bytes] = {
        "damaged": whole[:middle] + b"\xa5" * 4096 + whole[middle + 4096 :],
        "short": whole[: 4 * 4096],
        "text": b"hello" * 100,
        "empty": b"",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StoreError, match=f"{name} cannot be"):
            opening.restore(str(tmp_path / name), sqlite_url, replace=True)
    newer = tmp_path / "newer"
    newer.write_bytes(whole)
    edit(newer, "PRAGMA user_version = 9")
    with pytest.raises(StoreError, match="schema version 9"):
        opening.restore(str(newer), sqlite_url, replace=True)
    with pytest.raises(StoreError, match="No such file"):
        opening.restore(str(tmp_path / "absent"), sqlite_url, replace=True)
    assert database.read_bytes() == before
    assert not list(tmp_path.glob("*.replaced-*"))
    assert not list(tmp_path.glob(".*.part"))


# ------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://somewhere/x", "unknown scheme 'mysql'; known are: postgres, postgresql, sqlite"),
        ("/var/lib/log.db", "unknown scheme ''"),
        ("sqlite:relative.db", "three slashes"),
        ("sqlite://host/log.db", "three slashes"),
        ("sqlite:///log.db?mode=memory", "three slashes"),
        ("sqlite:///tmp/", "names a directory"),
    ],
)
def test_a_url_that_means_no_store_is_refused(url: str, said: str) -> None:
    assert said in refusal(url)


def test_a_path_with_reserved_characters_can_be_written(tmp_path: Path, opened: Callable[..., Store]) -> None:
    (tmp_path / "a b?c").mkdir()
    opened(f"sqlite://{tmp_path}/a%20b%3Fc/log.db")
    assert (tmp_path / "a b?c" / "log.db").exists()
