"""Dropping exported entries from a PostgreSQL log, as the role that owns the schema: fronts may not.

`prune` goes on until nothing is left to drop; each step is a transaction, and a run that is cut off is gone
on with by the next.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

import psycopg

from greatseald.adapters.store import packed, postgres_schema
from greatseald.adapters.store.options import StoreOptions
from greatseald.adapters.store.postgres_connection import Place
from greatseald.ports.store import StoreError, StoreUnusable

_SPAN: Final = 4096
_PRUNING: Final = 0x47534C34
"""Advisory lock (a session's) of the one run that drops entries."""
_BEGIN: Final = """
    INSERT INTO greatseal.pruned (size, target, entry) VALUES (0, %s, %s)
    ON CONFLICT (one) DO UPDATE SET target = excluded.target, entry = excluded.entry
    """


def prune(url: str, options: StoreOptions, target: int, entry: int, report: Callable[[int, int], None]) -> None:
    """Drop the entries below `target`, as the admin entry at index `entry` allows; `report(done, target)` as it goes on.

    Raises:
        StoreUnusable: the database cannot be reached, or the role may not.
        StoreError: another run is at it.
    """
    place = Place.parse(url, options)
    with closing(place.connect()) as connection:
        try:
            postgres_schema.require_known(connection, place.name)
            if connection.execute("SELECT pg_try_advisory_lock(%s)", (_PRUNING,)).fetchone() != (True,):
                raise StoreError(f"another run drops entries of {place.name} now")
            connection.execute(_BEGIN, (target, entry))
            done = 0
            while done < target:
                with connection.transaction():
                    done = _step(connection, target)
                report(done, target)
        except psycopg.Error as error:
            raise StoreUnusable(f"{place.name} cannot be pruned: {place.one_line(error)}") from error


def _step(connection: psycopg.Connection[Any], target: int) -> int:
    run = connection.execute
    row = run("SELECT size FROM greatseal.pruned FOR UPDATE").fetchone()
    before = int(row[0]) if row else 0
    if before >= target:
        return before
    found = run(
        "SELECT coalesce((SELECT max(size) FROM greatseal.commits WHERE size > %s AND size <= %s), "
        "(SELECT min(size) FROM greatseal.commits WHERE size > %s))",
        (before, min(target, before + _SPAN), before),
    ).fetchone()
    end = int(found[0]) if found and found[0] is not None else target
    rows = run(
        "SELECT size, entries FROM greatseal.commits WHERE size > %s AND size <= %s ORDER BY size",
        (before, end),
        binary=True,
    ).fetchall()
    run("DELETE FROM greatseal.kept WHERE idx = %s AND NOT admin", (before - 1,))
    for size, blob in rows:
        for index, data, admin in packed.to_keep(size, blob):
            if admin or index == end - 1:
                run("INSERT INTO greatseal.kept (idx, entry, admin) VALUES (%s, %s, %s)", (index, data, admin))
    run("DELETE FROM greatseal.commits WHERE size > %s AND size <= %s", (before, end))
    run("UPDATE greatseal.pruned SET size = %s", (end,))
    return end
