"""Opening the connections of an SQLite log, and the one statement that a commit is.

The writer is set up for durability (WAL, `synchronous=FULL`) and has the temporary view `append`,
whose trigger does a whole commit; readers are opened read-only, so that they cannot checkpoint.
Neither trusts functions that somebody may have put into the schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import apsw

from greatseald.adapters.store import sqlite_files, sqlite_schema
from greatseald.ports.store import StoreUnusable

PAGE_BYTES: Final = 4096
"""Larger pages make batches cheaper and single signatures dearer."""

_WAL_LIMIT_BYTES: Final = 64 << 20
"""What the log file is cut down to after a long reader or backup made it grow."""

_CACHE_KIB: Final = 65_536
"""Holds the right edges of all tables, and many pages for request ids that come out of order (UUIDv4)."""

_BUSY_MS: Final = 5_000
"""Nobody else opens the file. An operator who does all the same, to look, is waited for so long."""

_COMMIT: Final = """
    CREATE TEMP VIEW append (
        old, size, time_ms, boot, root, frontier, mac, authority, entries, opened, closed, closings, intents, requests,
        tiles, tile_data
    ) AS SELECT 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0;

    CREATE TEMP TRIGGER append_all INSTEAD OF INSERT ON append BEGIN
        SELECT raise(ABORT, 'the head has moved')
            WHERE coalesce((SELECT max(size) FROM commits), 0) <> NEW.old;
        DELETE FROM open_intents WHERE idx IN (SELECT CAST(key AS INTEGER) FROM json_each(NEW.closed));
        SELECT raise(ABORT, 'fences are lost') WHERE changes() <> NEW.closings;
        INSERT INTO outcomes (intent, outcome) SELECT CAST(key AS INTEGER), value FROM json_each(NEW.closed);
        INSERT INTO commits (size, time_ms, boot, root, frontier, mac, authority, entries) VALUES
            (NEW.size, NEW.time_ms, NEW.boot, NEW.root, NEW.frontier, NEW.mac, NEW.authority, NEW.entries);
        INSERT INTO open_intents (idx, boot) SELECT value, NEW.boot FROM json_each(NEW.opened);
        INSERT INTO requests (request_id, caller, attempt, request_hash, intent) SELECT
            substr(NEW.requests, 1 + key * 74, 16), substr(NEW.requests, 17 + key * 74, 16),
            CAST(substr(NEW.requests, 65 + key * 74, 10) AS INTEGER), substr(NEW.requests, 33 + key * 74, 32), value
            FROM json_each(NEW.intents);
        INSERT INTO tiles (level, idx, data) SELECT
            value ->> 0, value ->> 1, substr(NEW.tile_data, 1 + key * 8192, 8192) FROM json_each(NEW.tiles);
    END;
    """
"""`changes()` counts the DELETE above it. A request's record is request_id (16), caller (16), request_hash
(32) and the attempt in ten digits: SQL cuts out bytes and reads decimal, but no binary numbers."""

INSERT: Final = "INSERT INTO append VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def open_writer(path: str, migrations: Sequence[str]) -> apsw.Connection:
    """Open the database at `path`, whose lock the caller holds, and bring its schema up.

    Raises:
        StoreUnusable: unwritable, damaged, foreign, altered or of a newer schema.
    """
    sqlite_files.prepare(path)
    connection: apsw.Connection | None = None
    try:
        connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
        connection.set_busy_timeout(_BUSY_MS)
        connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        # Before anything is changed: a file that is not ours stays as it is.
        sqlite_schema.require_known(connection, path, migrations)
        sqlite_files.close_to_others(path)
        connection.pragma("page_size", PAGE_BYTES)
        mode = connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "FULL")
        _require_wal(path, mode, connection.pragma("synchronous"))
        connection.wal_autocheckpoint(0)
        connection.pragma("journal_size_limit", _WAL_LIMIT_BYTES)
        connection.pragma("cache_size", -_CACHE_KIB)
        connection.pragma("temp_store", "memory")
        connection.pragma("cell_size_check", 1)
        # A mapped file turns an I/O error into SIGBUS.
        connection.pragma("mmap_size", 0)
        sqlite_schema.bring_up(connection, path, migrations)
        connection.execute(_COMMIT)
    except (apsw.NotADBError, apsw.CorruptError) as error:
        _abandon(connection)
        raise StoreUnusable(f"{path} is damaged: {explain(error)}. Restore it from a backup") from error
    except (apsw.Error, OSError) as error:
        _abandon(connection)
        raise StoreUnusable(f"{path} cannot be opened: {explain(error)}") from error
    except BaseException:
        _abandon(connection)
        raise
    return connection


def open_reader(path: str) -> apsw.Connection:
    """Open one more connection to a database that `open_writer` holds open. Raises apsw.Error."""
    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(_BUSY_MS)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    return connection


def _require_wal(path: str, mode: Any, synchronous: Any) -> None:
    if mode != "wal" or synchronous != 2:
        raise StoreUnusable(f"{path} cannot be written safely: SQLite offers journal mode {mode!r}, not 'wal'")


def _abandon(connection: apsw.Connection | None) -> None:
    if connection is not None:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.close(True)


def explain(error: Exception) -> str:
    """Name SQLite's extended result code beside its message: `SQLITE_IOERR_FSYNC: disk I/O error`."""
    code = getattr(error, "extendedresult", None)
    name = apsw.mapping_extended_result_codes.get(code, apsw.mapping_result_codes.get(code)) if code else None
    return f"{name}: {error}" if name else str(error)
