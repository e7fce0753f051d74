"""What the owner of the database and its operators do: make, migrate, grant, look.

prepare(owner_url, options, front="greatseal_front", reader="", must_be_empty=True)
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import psycopg
from psycopg import errors

from greatseald.adapters.store import postgres_roles, postgres_schema
from greatseald.adapters.store.options import StoreOptions
from greatseald.adapters.store.postgres_connection import Place
from greatseald.ports.store import StoreError, StoreUnusable


@dataclass(frozen=True, slots=True)
class Status:
    """`fronts` counts sessions that hold a front's lock, this look aside."""

    version: int
    size: int
    role: str
    fronts: int
    open_intents: int
    excess_rights: list[str]


def prepare(
    url: str, options: StoreOptions, *, front: str, reader: str, must_be_empty: bool
) -> tuple[int, int, list[str]]:
    """Make or migrate the schema and grant, all in one transaction; return the versions before and after, and the grants.

    An empty role is granted nothing.

    Raises:
        StoreUnusable: it cannot be reached, is foreign or newer, fronts run on an older one, or the role may not.
        StoreError: it must be empty and is not, or must not be and is, or a role does not exist.
    """
    place = Place.parse(url, options)
    with closing(place.connect()) as connection:
        # A migration of a large log takes its time, and its owner waits for it.
        connection.execute("SET statement_timeout = 0")
        statements = postgres_roles.grants(front, reader, connection)
        try:
            with connection.transaction():
                there = postgres_schema.require_known(connection, place.name)
                if must_be_empty and there:
                    raise StoreError(
                        f"{place.name} has a log of schema version {there} already: `store migrate` goes on from it"
                    )
                if not must_be_empty and not there:
                    raise StoreError(f"{place.name} has no log yet: `store init` makes it")
                before = postgres_schema.bring_up(connection, place.name)
                for statement in statements:
                    connection.execute(statement.encode())
        except errors.UndefinedObject as error:
            raise StoreError(
                f"{place.name}: {error.diag.message_primary}. Make it first (CREATE ROLE ... LOGIN); nothing was changed"
            ) from error
        except psycopg.Error as error:
            raise StoreUnusable(f"{place.name} cannot be prepared: {place.one_line(error)}") from error
    return before, len(postgres_schema.MIGRATIONS), statements


def status(url: str, options: StoreOptions) -> Status:
    """Look at the database without changing anything.

    Raises:
        StoreUnusable: it cannot be reached or read, or holds no log of a known version.
    """
    place = Place.parse(url, options)
    with closing(place.connect()) as connection:
        try:
            connection.execute("SET default_transaction_read_only = on")
            version = postgres_schema.require_known(connection, place.name)
            if not version:
                raise StoreUnusable(f"{place.name} has no log yet: `greatseald store init` makes it")
            row = connection.execute(
                "SELECT coalesce((SELECT size FROM greatseal.head), 0), current_user, "
                "(SELECT count(*) FROM greatseal.open_intents)"
            ).fetchone()
            fronts = postgres_schema.users(connection)
            excess = postgres_roles.too_many(connection)
        except psycopg.Error as error:
            raise StoreUnusable(f"{place.name} cannot be read: {place.one_line(error)}") from error
    size, role, open_intents = row or (0, "", 0)
    return Status(version, size, role, fronts, open_intents, excess)


def script(front: str, reader: str) -> str:
    """The SQL of `prepare` for an empty database; to be run by the owner, the roles being there."""
    grants = "".join(f"{statement};\n" for statement in postgres_roles.grants(front, reader))
    return f"BEGIN;\n{postgres_schema.script()}{grants}COMMIT;\n"
