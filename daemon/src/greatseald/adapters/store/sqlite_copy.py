"""Copies of an SQLite log: a consistent one of a running daemon, and putting one back.

A copy is one file without a write-ahead log beside it, mode 0600, complete under its name or not
there at all. Restoring is for a stopped daemon: it takes the daemon's lock, checks the copy through
and through before it touches anything, and never deletes what it replaces.

    moved = restore("/backup/log.db", "/var/lib/greatseal/log.db", replace=True)
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import apsw

from greatseald.adapters.store import sqlite_connections, sqlite_files, sqlite_schema
from greatseald.ports.store import StoreError, StoreUnusable

_STEP_PAGES: Final = 2048
"""Pages (8 MiB) copied between two chances for a signal to be handled."""

_MAX_FAULTS: Final = 5


def write_copy(source: apsw.Connection, path: str) -> None:
    """Copy the database behind `source` to `path`, which must not exist.

    One read transaction covers it all, so the copy is the log at one moment, whatever is written
    meanwhile (until then the write-ahead log grows).

    Raises:
        StoreError: `path` exists, or cannot be written; nothing is left behind.
        apsw.Error: `source` cannot be read.
    """
    target = Path(path)
    if os.path.lexists(target):
        raise StoreError(f"{path} exists; a backup overwrites nothing. Choose another name")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(f"cannot write the backup {path}: {error.strerror}") from error
    try:
        _copy_pages(source, part)
        _sync(part)
        _publish(part, target)
    except apsw.FullError as error:
        raise StoreError(f"cannot write the backup {path}: its volume is full") from error
    except OSError as error:
        raise StoreError(f"cannot write the backup {path}: {error.strerror}") from error
    finally:
        for suffix in ("", "-journal"):
            with suppress(FileNotFoundError):
                Path(f"{part}{suffix}").unlink()


def _copy_pages(source: apsw.Connection, part: Path) -> None:
    copy = apsw.Connection(str(part), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        # Nobody sees the copy before it is whole and synced: SQLite need not protect it meanwhile.
        copy.pragma("synchronous", "OFF")
        with copy.backup("main", source, "main") as backup:
            while not backup.step(_STEP_PAGES):
                pass
        copy.pragma("journal_mode", "delete")
    finally:
        copy.close(True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _publish(part: Path, target: Path) -> None:
    """Give the file its name, unless that is taken: link(2), unlike rename(2), never replaces."""
    try:
        os.link(part, target)
    except FileExistsError as error:
        raise StoreError(f"{target} exists; a backup overwrites nothing. Choose another name") from error
    part.unlink()
    sqlite_files.sync_directory(target.parent)


def restore(source: str, database: str, *, replace: bool = False) -> str | None:
    """Put the backup `source` in the place of `database`; return the path that a replaced one was moved to.

    Raises:
        StoreUnusable: a daemon uses the database, or its directory cannot be used.
        StoreError: the backup is damaged, foreign or of a newer schema, or a database is there and `replace` is not set.
    """
    sqlite_files.require_place(database)
    lock = sqlite_files.LockFile(database)
    try:
        target = Path(database)
        there = os.path.lexists(target) and target.stat().st_size > 0
        if there and not replace:
            raise StoreError(f"{database} exists, and restoring would replace it. Say so if that is meant")
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        copy = _open_checked(source)
        try:
            write_copy(copy, str(part))
        except apsw.Error as error:
            raise StoreError(f"{source} cannot be read: {error}") from error
        finally:
            copy.close(True)
        moved = _set_aside(target) if there else None
        part.replace(target)
        sqlite_files.sync_directory(target.parent)
    except OSError as error:
        raise StoreError(f"cannot restore {database} from {source}: {error.strerror}") from error
    finally:
        lock.release()
    return moved


def compact(database: str) -> tuple[int, int]:
    """Rewrite a database without its free pages, while no daemon runs; return its bytes before and after.

    SQLite writes the new one beside it and copies it over in one transaction: a crash leaves the old one.

    Raises:
        StoreUnusable: in use, damaged, foreign, or of another schema.
        StoreError: it cannot be rewritten; it stays as it was.
    """
    target = Path(database)
    if not target.is_file():
        raise StoreUnusable(f"there is no database at {database}")
    lock = sqlite_files.LockFile(database)
    try:
        before = target.stat().st_size
        connection = sqlite_connections.open_writer(database, sqlite_schema.MIGRATIONS)
        try:
            connection.execute("VACUUM")
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.Error as error:
            raise StoreError(
                f"{database} was not rewritten, and is as it was: {sqlite_connections.explain(error)}. It takes as much free "
                "space beside it as it has bytes"
            ) from error
        finally:
            connection.close()
        return before, target.stat().st_size
    finally:
        lock.release()


def _open_checked(source: str) -> apsw.Connection:
    path = Path(source)
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        raise StoreError(f"the backup {source} cannot be read: {error.strerror}") from error
    connection: apsw.Connection | None = None
    try:
        sqlite_files.require_header(header, source)
        connection = apsw.Connection(source, flags=apsw.SQLITE_OPEN_READONLY)
        connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        _require_sound(connection, source)
    except (StoreUnusable, apsw.Error) as error:
        if connection is not None:
            connection.close(True)
        raise StoreError(f"the backup {source} cannot be used: {error}") from error
    except BaseException:
        if connection is not None:
            connection.close(True)
        raise
    return connection


def _require_sound(connection: apsw.Connection, source: str) -> None:
    if not sqlite_schema.require_known(connection, source):
        raise StoreUnusable("it is empty")
    faults = [str(row[0]) for row in connection.execute(f"PRAGMA integrity_check({_MAX_FAULTS})")]
    if faults != ["ok"]:
        raise StoreUnusable(f"it is damaged: {'; '.join(faults)}")


def _set_aside(target: Path) -> str:
    """Move a database and its write-ahead log away together: apart, either could lose commits."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = f"{target}.replaced-{stamp}"
    if os.path.lexists(aside):
        raise StoreError(f"{aside} exists; try again in a second")
    for suffix in ("-wal", ""):
        with suppress(FileNotFoundError):
            Path(f"{target}{suffix}").rename(f"{aside}{suffix}")
    with suppress(FileNotFoundError):
        Path(f"{target}-shm").unlink()
    return aside
