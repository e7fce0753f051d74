"""The SQLite schema, its versions, and how an older one becomes the newest.

`PRAGMA user_version` holds the version, `PRAGMA application_id` says that the file is ours. Each
migration is one transaction that ends with its own version number, so that a crash leaves a whole
version or the other. A newer version is refused, and so is a file whose tables, indexes or triggers
are not exactly those of its version: a trigger that somebody added would run inside our commits.

| table | one row for | read by |
|---|---|---|
| `commits` | each group commit: the head after it and its entries as one blob (`packed`) | index: the first `size` above it |
| `tiles` | each full hash tile of the tree | level, number |
| `open_intents` | each fence: an intent without outcome | recovery |
| `outcomes` | each closed intent | retried requests |
| `requests` | each attempt at a request | request id |

Every index is paid for on the release path, so there is none but the primary keys: `commits`,
`open_intents` and `outcomes` grow at their right edge, and so does `requests` with UUIDv7 ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import apsw

from greatseald.ports.store import StoreUnusable

APPLICATION_ID: Final = 0x47534C31
"""`GSL1`, in the file's header at byte 68."""

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE commits (
        size INTEGER PRIMARY KEY,
        time_ms INTEGER NOT NULL,
        boot BLOB NOT NULL CHECK (length(boot) = 16),
        root BLOB NOT NULL CHECK (length(root) = 32),
        frontier BLOB NOT NULL CHECK (length(frontier) % 32 = 0),
        mac BLOB NOT NULL CHECK (length(mac) = 32),
        entries BLOB NOT NULL
    ) STRICT;
    CREATE TABLE tiles (
        level INTEGER NOT NULL,
        idx INTEGER NOT NULL,
        data BLOB NOT NULL CHECK (length(data) = 8192),
        PRIMARY KEY (level, idx)
    ) STRICT;
    CREATE TABLE open_intents (
        idx INTEGER PRIMARY KEY,
        boot BLOB NOT NULL CHECK (length(boot) = 16)
    ) STRICT;
    CREATE TABLE outcomes (
        intent INTEGER PRIMARY KEY,
        outcome INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE requests (
        request_id BLOB NOT NULL CHECK (length(request_id) = 16),
        caller BLOB NOT NULL CHECK (length(caller) = 16),
        attempt INTEGER NOT NULL,
        request_hash BLOB NOT NULL CHECK (length(request_hash) = 32),
        intent INTEGER NOT NULL,
        PRIMARY KEY (request_id, caller, attempt)
    ) STRICT, WITHOUT ROWID;
    """,
    # Where the newest entry stands that gives authority; NULL in commits of before.
    """
    ALTER TABLE commits ADD COLUMN authority INTEGER;
    """,
)
"""`MIGRATIONS[n]` leads from version n to n + 1; version 0 is an empty file. Released ones never change."""


def bring_up(connection: apsw.Connection, path: str, migrations: Sequence[str] = MIGRATIONS) -> None:
    """Make the open database's schema the newest one, or refuse it.

    Raises:
        StoreUnusable: not ours, newer than this daemon, or not what its version says.
    """
    version = require_known(connection, path, migrations)
    for number in range(version, len(migrations)):
        _migrate(connection, migrations[number], number + 1)


def require_known(connection: apsw.Connection, path: str, migrations: Sequence[str] = MIGRATIONS) -> int:
    """Return the version of the open database's schema, 0 for an empty file, or refuse it like `bring_up`."""
    version = int(connection.pragma("user_version"))
    owner = int(connection.pragma("application_id"))
    objects = _objects(connection)
    if not (version or owner or objects):
        return 0
    if owner != APPLICATION_ID or not version:
        raise StoreUnusable(
            f"{path} is an SQLite database, but not of a Greatseal log (application id {owner:#x}). "
            "Put the right path into [store] url"
        )
    if version > len(migrations):
        raise StoreUnusable(
            f"{path} has schema version {version}, and this greatseald knows versions up to {len(migrations)}. "
            "Run the greatseald that wrote it, or a newer one; a newer log is never written by an older daemon"
        )
    _require_objects(objects, migrations[:version], path, version)
    return version


def _migrate(connection: apsw.Connection, script: str, version: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(script)
        connection.pragma("application_id", APPLICATION_ID)
        connection.pragma("user_version", version)
        connection.execute("COMMIT")
    except BaseException:
        # COMMIT itself may have ended the transaction before it failed.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _objects(connection: apsw.Connection) -> dict[str, str]:
    rows = connection.execute(
        "SELECT type || ' ' || name, coalesce(sql, '') FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    return {str(name): str(sql) for name, sql in rows}


def _require_objects(found: dict[str, str], migrations: Sequence[str], path: str, version: int) -> None:
    model = apsw.Connection(":memory:")
    try:
        for script in migrations:
            model.execute(script)
        expected = _objects(model)
    finally:
        model.close()
    different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if different:
        raise StoreUnusable(
            f"{path} says that it has schema version {version}, but differs from it in: {', '.join(different)}. "
            "Somebody has altered the database; restore it from a backup"
        )
