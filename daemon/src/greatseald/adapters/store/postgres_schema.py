"""The PostgreSQL schema, its versions, and how an older one becomes the newest.

The tables are those of `sqlite_schema`, and one more: `head`, a single row, which every front locks
before it extends the log. Index numbers come from `head.size`, never from a sequence, because a
rollback leaves gaps in a sequence.

Everything lies in the schema `greatseal` of the database that the URL names. The role that makes it
(the first that opens it) owns it. For production let an owner open it once, and run the daemon as
another role with exactly these rights:

    CREATE ROLE greatseal_front LOGIN;
    GRANT USAGE ON SCHEMA greatseal TO greatseal_front;
    GRANT SELECT ON ALL TABLES IN SCHEMA greatseal TO greatseal_front;
    GRANT INSERT ON greatseal.commits, greatseal.tiles TO greatseal_front;        -- entries: never UPDATE, never DELETE
    GRANT UPDATE ON greatseal.head TO greatseal_front;
    GRANT INSERT, DELETE ON greatseal.open_intents, greatseal.requests, greatseal.outcomes TO greatseal_front;
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
)
"""`MIGRATIONS[n]` leads from version n to n + 1; version 0 is a database without our schema. Released ones never change."""

_LOCK: Final = 0x47534C31
"""Advisory lock (a transaction's) that lets one front at a time look at the version and migrate."""


def bring_up(connection: psycopg.Connection[Any], where: str, migrations: Sequence[str] = MIGRATIONS) -> None:
    """Make the database's schema the newest one, or refuse it.

    Raises:
        StoreUnusable: newer than this daemon, foreign, or the role may not make it.
    """
    try:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            version = _version(connection, where)
            if version > len(migrations):
                raise StoreUnusable(
                    f"{where} has schema version {version}, and this greatseald knows versions up to {len(migrations)}. "
                    "Run the greatseald that wrote it, or a newer one; a newer log is never written by an older daemon"
                )
            if version == len(migrations):
                return
            if version == 0:
                connection.execute("CREATE SCHEMA greatseal")
                connection.execute("CREATE TABLE greatseal.schema_version (version INTEGER NOT NULL)")
                connection.execute("INSERT INTO greatseal.schema_version VALUES (0)")
            for script in migrations[version:]:
                # No parameters: several statements in one string are allowed.
                connection.execute(script.encode())
            connection.execute("UPDATE greatseal.schema_version SET version = %s", (len(migrations),))
    except errors.InsufficientPrivilege as error:
        raise StoreUnusable(
            f"{where}: this role may not make or read the schema greatseal ({error.diag.message_primary}). "
            "Open the store once as its owner, then grant the rights that postgres_schema.py lists"
        ) from error


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
