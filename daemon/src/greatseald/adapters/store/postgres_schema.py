"""The PostgreSQL schema, its versions, and how an older one becomes the newest.

The tables are those of `sqlite_schema`, and one more: `head`, a single row, which every front locks
before it extends the log. Index numbers come from `head.size`, never from a sequence, because a
rollback leaves gaps in a sequence.

Everything lies in the schema `greatseal` of the database that the URL names; the role that makes it owns
it. Whoever owns it may make and migrate it, and a front's role may not (`postgres_roles`).

Each front holds a shared advisory lock for as long as it runs. A migration takes it alone, so that no
front of an older version goes on writing to a schema that has become a newer one under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import errors

from greatseald.ports.store import StoreUnusable

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE greatseal.head (
        one BOOLEAN PRIMARY KEY DEFAULT true CHECK (one),
        size BIGINT NOT NULL,
        root BYTEA NOT NULL CHECK (length(root) = 32),
        frontier BYTEA NOT NULL CHECK (length(frontier) % 32 = 0),
        mac BYTEA NOT NULL
    );
    -- The empty log has a row to lock, and no head: size 0 stands for none.
    INSERT INTO greatseal.head (size, root, frontier, mac) VALUES (0, decode(repeat('00', 32), 'hex'), '', '');
    CREATE TABLE greatseal.commits (
        size BIGINT PRIMARY KEY,
        time_ms BIGINT NOT NULL,
        boot BYTEA NOT NULL CHECK (length(boot) = 16),
        root BYTEA NOT NULL CHECK (length(root) = 32),
        frontier BYTEA NOT NULL CHECK (length(frontier) % 32 = 0),
        mac BYTEA NOT NULL CHECK (length(mac) = 32),
        entries BYTEA NOT NULL
    );
    -- Entries hold hashes and signatures: trying to compress them costs and gains nothing.
    ALTER TABLE greatseal.commits ALTER COLUMN entries SET STORAGE EXTERNAL;
    CREATE TABLE greatseal.tiles (
        level INTEGER NOT NULL,
        idx BIGINT NOT NULL,
        data BYTEA NOT NULL CHECK (length(data) = 8192),
        PRIMARY KEY (level, idx)
    );
    ALTER TABLE greatseal.tiles ALTER COLUMN data SET STORAGE EXTERNAL;
    CREATE TABLE greatseal.open_intents (
        idx BIGINT PRIMARY KEY,
        boot BYTEA NOT NULL CHECK (length(boot) = 16)
    );
    CREATE TABLE greatseal.outcomes (
        intent BIGINT PRIMARY KEY,
        outcome BIGINT NOT NULL
    );
    CREATE TABLE greatseal.requests (
        request_id BYTEA NOT NULL CHECK (length(request_id) = 16),
        caller BYTEA NOT NULL CHECK (length(caller) = 16),
        attempt BIGINT NOT NULL,
        request_hash BYTEA NOT NULL CHECK (length(request_hash) = 32),
        intent BIGINT NOT NULL,
        PRIMARY KEY (request_id, caller, attempt)
    );
    """,
    # Where the newest entry stands that gives authority; NULL in heads of before.
    """
    ALTER TABLE greatseal.head ADD COLUMN authority BIGINT;
    ALTER TABLE greatseal.commits ADD COLUMN authority BIGINT;
    """,
)
"""`MIGRATIONS[n]` leads from version n to n + 1; version 0 is a database without our schema. Released ones never change."""

_LOCK: Final = 0x47534C31
"""Advisory lock (a transaction's) that lets one front at a time look at the version and migrate."""

_IN_USE: Final = 0x47534C32
"""Advisory lock: shared by every running front, exclusive for a migration."""

_COLUMNS: Final = {
    "schema_version": "version integer",
    "head": "one boolean, size bigint, root bytea, frontier bytea, mac bytea, authority bigint",
    "commits": "size bigint, time_ms bigint, boot bytea, root bytea, frontier bytea, mac bytea, entries bytea, "
    "authority bigint",
    "tiles": "level integer, idx bigint, data bytea",
    "open_intents": "idx bigint, boot bytea",
    "outcomes": "intent bigint, outcome bigint",
    "requests": "request_id bytea, caller bytea, attempt bigint, request_hash bytea, intent bigint",
}
"""What the newest version's tables are. Further tables do not matter."""


def bring_up(connection: psycopg.Connection[Any], where: str, migrations: Sequence[str] = MIGRATIONS) -> int:
    """Make the database's schema the newest one, or refuse it; return the version that it had.

    The session keeps the shared lock that says that the schema is in use.

    Raises:
        StoreUnusable: newer than this daemon, foreign, altered, in use by older fronts, or the role may not make it.
    """
    try:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            version = require_known(connection, where, migrations)
            if version < len(migrations):
                _migrate(connection, where, version, migrations)
            _require_tables(connection, where)
            # Under _LOCK, so that no migration comes between.
            connection.execute("SELECT pg_advisory_lock_shared(%s)", (_IN_USE,))
    except errors.InsufficientPrivilege as error:
        raise StoreUnusable(
            f"{where}: this role may not make, read or migrate the schema greatseal ({error.diag.message_primary}). "
            "Run `greatseald store init` or `greatseald store migrate` with --as, the URL of the role that owns it"
        ) from error
    return version


def require_known(connection: psycopg.Connection[Any], where: str, migrations: Sequence[str] = MIGRATIONS) -> int:
    """Return the version of the schema, 0 where there is none, or refuse it like `bring_up`."""
    version = _version(connection, where)
    if version > len(migrations):
        raise StoreUnusable(
            f"{where} has schema version {version}, and this greatseald knows versions up to {len(migrations)}. "
            "Run the greatseald that wrote it, or a newer one; a newer log is never written by an older daemon"
        )
    return version


def users(connection: psycopg.Connection[Any]) -> int:
    """How many sessions of this database hold the lock of a running front."""
    row = connection.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND mode = 'ShareLock' AND classid = 0 "
        "AND objid = %s AND objsubid = 1 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        (_IN_USE,),
    ).fetchone()
    return int(row[0]) if row else 0


def script(migrations: Sequence[str] = MIGRATIONS) -> str:
    """The SQL that makes the newest schema in an empty database, for those who run such things by hand."""
    parts = [*_FIRST, *(migration.strip() for migration in migrations), _set_version(len(migrations))]
    return "".join(part.rstrip(";") + ";\n" for part in parts)


_FIRST: Final = (
    "CREATE SCHEMA greatseal",
    "CREATE TABLE greatseal.schema_version (version INTEGER NOT NULL)",
    "INSERT INTO greatseal.schema_version VALUES (0)",
)


def _set_version(version: int) -> str:
    return f"UPDATE greatseal.schema_version SET version = {version:d}"  # noqa: S608 - a number


def _migrate(connection: psycopg.Connection[Any], where: str, version: int, migrations: Sequence[str]) -> None:
    alone = connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (_IN_USE,)).fetchone() == (True,)
    if version and not alone:
        raise StoreUnusable(
            f"{where} has schema version {version} and must become {len(migrations)}, but other fronts still run on it. "
            "Stop them all, then start this one or run `greatseald store migrate`"
        )
    if version == 0:
        for statement in _FIRST:
            connection.execute(statement)
    for migration in migrations[version:]:
        # No parameters: several statements in one string are allowed.
        connection.execute(migration.encode())
    connection.execute(_set_version(len(migrations)).encode())


def _require_tables(connection: psycopg.Connection[Any], where: str) -> None:
    rows = connection.execute(
        """
        SELECT c.relname, string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relnamespace = 'greatseal'::regnamespace AND c.relkind = 'r' AND NOT c.relrowsecurity
        AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid)
        AND NOT EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid)
        GROUP BY c.relname
        """
    ).fetchall()
    found = dict(rows)
    different = sorted(table for table, columns in _COLUMNS.items() if found.get(table) != columns)
    if different:
        raise StoreUnusable(
            f"{where} differs from its schema version in: {', '.join(different)} (columns, triggers, rules or row "
            "security). Somebody has altered the database; restore it from a backup, or undo that"
        )


def _version(connection: psycopg.Connection[Any], where: str) -> int:
    there = connection.execute(
        "SELECT to_regnamespace('greatseal') IS NOT NULL, to_regclass('greatseal.schema_version') IS NOT NULL"
    ).fetchone()
    if there == (False, False):
        return 0
    rows = (
        connection.execute("SELECT version FROM greatseal.schema_version").fetchall() if there == (True, True) else []
    )
    if len(rows) != 1:
        raise StoreUnusable(
            f"{where} has a schema named greatseal that is not of a Greatseal log. Use another database"
        )
    return int(rows[0][0])
