"""Who may do what in the database: the owner, the fronts, the readers.

- The **owner** makes and migrates the schema, and is used for nothing else.
- A **front** (the daemon's role) reads everything; it inserts entries and hash tiles and can neither change nor
  delete them; it updates the one head row; it opens and closes fences, and keeps the request index.
- A **reader** selects.

What a front may not do it cannot be made to do, whatever becomes of the daemon. What it must be able to
do, the head's MAC guards, whose key the database never sees.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg import sql

_FRONT: Final = (
    "GRANT USAGE ON SCHEMA greatseal TO {role}",
    "GRANT SELECT ON ALL TABLES IN SCHEMA greatseal TO {role}",
    "GRANT INSERT ON greatseal.commits, greatseal.tiles TO {role}",
    "GRANT UPDATE ON greatseal.head TO {role}",
    "GRANT INSERT, DELETE ON greatseal.open_intents, greatseal.outcomes, greatseal.requests TO {role}",
)
_READER: Final = (
    "GRANT USAGE ON SCHEMA greatseal TO {role}",
    "GRANT SELECT ON ALL TABLES IN SCHEMA greatseal TO {role}",
)
_NOT_FOR_FRONTS: Final = (
    ("commits", "UPDATE"),
    ("commits", "DELETE"),
    ("commits", "TRUNCATE"),
    ("tiles", "UPDATE"),
    ("tiles", "DELETE"),
    ("head", "INSERT"),
    ("head", "DELETE"),
    ("pruned", "INSERT"),
    ("pruned", "UPDATE"),
    ("pruned", "DELETE"),
    ("kept", "INSERT"),
    ("kept", "UPDATE"),
    ("kept", "DELETE"),
    ("schema_version", "UPDATE"),
)


def grants(front: str, reader: str, connection: psycopg.Connection[Any] | None = None) -> list[str]:
    """The statements that give the roles their rights; an empty name stands for no such role."""
    wanted = [(front, _FRONT), (reader, _READER)]
    return [
        sql.SQL(statement).format(role=sql.Identifier(role)).as_string(connection)
        for role, statements in wanted
        if role
        for statement in statements
    ]


def too_many(connection: psycopg.Connection[Any]) -> list[str]:
    """What the session's role may do to the log and no front should, such as "DELETE on commits"."""
    query = "SELECT has_table_privilege('greatseal.' || %s, %s)"
    return [
        f"{right} on {table}"
        for table, right in _NOT_FOR_FRONTS
        if connection.execute(query, (table, right)).fetchone() == (True,)
    ]
