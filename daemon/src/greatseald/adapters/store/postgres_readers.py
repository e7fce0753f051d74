"""The connections that a front reads with: a few, read-only, lent one at a time.

rows = readers.rows("SELECT ...", values)
found = readers.read(lambda connection: ...)        # several statements
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg

from greatseald.adapters.store.postgres_connection import Place
from greatseald.ports.store import StoreError, StoreUnusable

_T = TypeVar("_T")


class Readers:
    """Lends up to `count` connections; one that failed is not used again. For any thread."""

    def __init__(self, place: Place, count: int) -> None:
        self._place = place
        self._count = count
        self._closed = False
        self._idle: list[psycopg.Connection[Any]] = []
        self._lock = threading.Lock()
        self._permits = threading.BoundedSemaphore(count)

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        """Run one query and return its rows; raises as `read`."""
        # Binary: entries come as they are, and not as hexadecimal digits.
        return self.read(lambda connection: connection.execute(query.encode(), values, binary=True).fetchall())

    def read(self, ask: Callable[[psycopg.Connection[Any]], _T]) -> _T:
        """Ask on a connection in autocommit mode; `ask` only reads.

        A connection that was cut while it lay idle is replaced: asking again changes nothing.

        Raises:
            StoreError: it cannot be answered, or the readers are closed.
        """
        with self._lock:
            tries = len(self._idle) + 1
        while True:
            tries -= 1
            try:
                with self._lend() as connection:
                    return ask(connection)
            except StoreError as error:
                if tries <= 0 or not isinstance(error.__cause__, psycopg.OperationalError):
                    raise

    @contextmanager
    def _lend(self) -> Iterator[psycopg.Connection[Any]]:
        """Lend a connection; what fails on it, or to get it, is a StoreError."""
        with self._permits:
            if self._closed:
                raise StoreError(f"the store ({self._place.name}) is closed")
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            try:
                if connection is None:
                    connection = self._place.connect(wait=False)
                    connection.execute("SET default_transaction_read_only = on")
                yield connection
            except StoreUnusable as error:
                raise StoreError(f"the audit log's store cannot be read: {error}") from error
            except psycopg.DatabaseError as error:
                if connection is not None:
                    connection.close()
                message = f"the audit log's store ({self._place.name}) cannot be read: {self._place.one_line(error)}"
                raise StoreError(message) from error
            except BaseException:
                if connection is not None:
                    connection.close()
                raise
            with self._lock:
                self._idle.append(connection)

    def close(self) -> None:
        """Wait until every connection is back, and close them all."""
        self._closed = True
        for _ in range(self._count):
            self._permits.acquire()
        for connection in self._idle:
            connection.close()
        for _ in range(self._count):
            self._permits.release()
