"""The shared store: one PostgreSQL database behind several fronts. First form; it proves the port.

Each front has one commit connection, used by the writer's thread alone, and up to four for reading.
An append locks the one row of `head`, compares its size, writes, moves the head and commits; fronts
queue at that row. A front that finds the head moved keeps the row while it rebuilds, so that its next
append succeeds: if it let go, a front that is already up to date would always be faster, and the other
would wait until that one falls idle (two busy writers showed just that).

A front is alive as long as its commit connection holds the advisory lock of its boot. Whoever can
take that lock knows the boot to be dead, and may close its open intents. So a front that loses its
commit connection must end (`StoreBroken`), and so must one whose COMMIT met a connection error or
brought any WARNING: a wait for the synchronous standby that was cancelled answers COMMIT all the
same, and the commit may be lost in a failover. Which of its commits are durable, a restart finds out.

    store = PostgresStore("postgresql://greatseal@db.example/greatseal?sslmode=verify-full", boot)
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus

from greatseald.adapters.store import packed, postgres_schema
from greatseald.ports.store import (
    Append,
    Attempt,
    FencesLost,
    Head,
    HeadMoved,
    OpenIntent,
    RequestKey,
    RequestsKnown,
    StoreBroken,
    StoreError,
    StoreUnusable,
)

_READERS: Final = 4

_ALIVE: Final[dict[str, Any]] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "application_name": "greatseald",
    "client_encoding": "utf8",
}
"""A server or network that goes silent is noticed within half a minute. Text is text whatever the database is encoded in."""

_STALLED_SECONDS: Final = 10
"""A front that stops within its transaction, or never retries after HeadMoved, would stop all others at the
head row: the server ends its session after so long, and with it its transaction and its claim to be alive."""

_INSERT_REQUESTS: Final = """
    INSERT INTO greatseal.requests (request_id, caller, attempt, request_hash, intent)
    SELECT * FROM unnest(%s::bytea[], %s::bytea[], %s::bigint[], %s::bytea[], %s::bigint[])
    ON CONFLICT DO NOTHING
    """


class PostgresStore:
    """The `Store` port over a PostgreSQL database; see the module's text."""

    def __init__(self, url: str, boot: bytes, migrations: Sequence[str] = postgres_schema.MIGRATIONS) -> None:
        """Connect, bring the schema up, and take the lock of `boot` (16 bytes).

        Raises:
            StoreUnusable: no connection, fsync off, foreign or newer schema, or a front of this boot runs.
        """
        self._url = url
        self._boot = boot
        self._broken: str | None = None
        self._closed = False
        self._warnings: list[str] = []
        self._idle: list[psycopg.Connection[Any]] = []
        self._idle_lock = threading.Lock()
        self._permits = threading.BoundedSemaphore(_READERS)
        # The URL may hold a password, so that messages show only where it leads.
        parts = urlsplit(url)
        self._where = (
            f"PostgreSQL {parts.hostname or 'on its socket'}, database {parts.path.lstrip('/') or 'of the user'}"
        )
        try:
            self._writer = psycopg.connect(url, **_ALIVE)
        except psycopg.Error as error:
            raise StoreUnusable(f"{self._where} cannot be reached: {_one_line(error)}") from error
        try:
            self._prepare(migrations)
        except psycopg.Error as error:
            self._writer.close()
            raise StoreUnusable(f"{self._where} cannot be used: {_one_line(error)}") from error
        except BaseException:
            self._writer.close()
            raise

    def _prepare(self, migrations: Sequence[str]) -> None:
        writer = self._writer
        writer.autocommit = True
        writer.execute("SET synchronous_commit = on")
        writer.execute("SET default_transaction_isolation = 'read committed'")
        writer.execute(f"SET idle_in_transaction_session_timeout = '{_STALLED_SECONDS}s'")
        if writer.execute("SHOW fsync").fetchone() != ("on",):
            raise StoreUnusable(f"{self._where} runs with fsync = off, where no commit is durable. Switch it on")
        postgres_schema.bring_up(writer, self._where, migrations)
        if writer.execute("SELECT pg_try_advisory_lock(%s)", (_lock_of(self._boot),)).fetchone() != (True,):
            raise StoreUnusable(f"another front runs with the same boot id {self._boot.hex()} on {self._where}")
        writer.add_notice_handler(self._note)

    def append(self, batch: Append) -> None:
        if self._broken is not None:
            raise StoreBroken(self._broken)
        size = batch.expected_size + len(batch.entries)
        if batch.head.size != size or not batch.entries:
            raise ValueError(
                f"{len(batch.entries)} entries after {batch.expected_size} do not give a head of {batch.head.size}"
            )
        try:
            if self._writer.info.transaction_status != TransactionStatus.INTRANS:
                self._writer.execute("BEGIN")
            self._write(batch, size)
        except HeadMoved:
            # Nothing but the lock was taken, and it is kept for the caller's next append.
            raise
        except (FencesLost, RequestsKnown):
            self._roll_back()
            raise
        except psycopg.Error as error:
            # Certainly not committed. Yet the session, or the rows, are not what they should be.
            with suppress(psycopg.Error):
                self._writer.execute("ROLLBACK")
            self._break("a commit", error)
        self._commit()

    def _write(self, batch: Append, size: int) -> None:
        run = self._writer.execute
        head = batch.head
        moved = run("SELECT size FROM greatseal.head FOR UPDATE").fetchone()
        if moved != (batch.expected_size,):
            raise HeadMoved(f"the log no longer has {batch.expected_size} entries")
        if batch.closed:
            self._close_fences(batch)
        if batch.requests:
            self._insert_requests(batch)
        if batch.opened:
            run(
                "INSERT INTO greatseal.open_intents (idx, boot) SELECT unnest(%s::bigint[]), %s",
                (batch.opened, batch.boot),
            )
        if batch.tiles:
            run(
                "INSERT INTO greatseal.tiles (level, idx, data) SELECT * FROM unnest(%s::integer[], %s::bigint[], %s::bytea[])",
                (
                    [tile.level for tile in batch.tiles],
                    [tile.number for tile in batch.tiles],
                    [tile.data for tile in batch.tiles],
                ),
            )
        run(
            "INSERT INTO greatseal.commits (size, time_ms, boot, root, frontier, mac, entries) VALUES (%s, %s, %s, %s, %s, %s, %b)",
            (size, batch.time_ms, batch.boot, head.root, head.frontier, head.mac, packed.pack(batch.entries)),
        )
        updated = run(
            "UPDATE greatseal.head SET size = %s, root = %s, frontier = %s, mac = %s WHERE size = %s",
            (size, head.root, head.frontier, head.mac, batch.expected_size),
        )
        if updated.rowcount != 1:
            raise psycopg.DataError("the head row that this transaction had locked is gone")

    def _close_fences(self, batch: Append) -> None:
        intents = [closing.intent for closing in batch.closed]
        rows = self._writer.execute(
            "DELETE FROM greatseal.open_intents WHERE idx = ANY(%s::bigint[]) RETURNING idx", (intents,)
        ).fetchall()
        open_before = {row[0] for row in rows}
        if len(open_before) != len(intents):
            lost = []
            for intent in intents:
                if intent not in open_before:
                    lost.append(intent)
                # A second closing of the same fence finds it closed.
                open_before.discard(intent)
            raise FencesLost(lost)
        self._writer.execute(
            "INSERT INTO greatseal.outcomes (intent, outcome) SELECT * FROM unnest(%s::bigint[], %s::bigint[])",
            (intents, [closing.outcome for closing in batch.closed]),
        )

    def _insert_requests(self, batch: Append) -> None:
        requests = batch.requests
        inserted = self._writer.execute(
            _INSERT_REQUESTS,
            (
                [request.key.request_id for request in requests],
                [request.key.caller for request in requests],
                [request.key.attempt for request in requests],
                [request.request_hash for request in requests],
                [request.intent for request in requests],
            ),
        )
        if inserted.rowcount == len(requests):
            return
        # What this transaction inserted goes first; then whatever is there was there before.
        self._roll_back()
        keys: set[RequestKey] = set()
        known = []
        for key, _, _ in requests:
            if key in keys or self._knows(key):
                known.append(key)
            keys.add(key)
        raise RequestsKnown(known)

    def _knows(self, key: RequestKey) -> bool:
        query = "SELECT 1 FROM greatseal.requests WHERE (request_id, caller, attempt) = (%s, %s, %s)"
        return self._writer.execute(query, key).fetchone() is not None

    def _roll_back(self) -> None:
        try:
            if self._writer.info.transaction_status != TransactionStatus.IDLE:
                self._writer.execute("ROLLBACK")
        except psycopg.Error as error:
            self._break("a rollback", error)

    def _commit(self) -> None:
        self._warnings.clear()
        try:
            ended = self._writer.execute("COMMIT")
        except psycopg.Error as error:
            self._break("COMMIT, and whether it was committed is not known", error)
        if self._warnings or ended.statusmessage != "COMMIT":
            said = "; ".join(self._warnings) or str(ended.statusmessage)
            self._break("COMMIT, which may not be durable", psycopg.OperationalError(said))

    def _note(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized not in {"NOTICE", "INFO", "LOG", "DEBUG"}:
            self._warnings.append(notice.message_primary or "a warning without text")

    def _break(self, doing: str, error: Exception) -> NoReturn:
        self._broken = (
            f"the audit log's store ({self._where}) failed in {doing}: {_one_line(error)}. "
            "The daemon has to end; when the cause is mended, a start recovers"
        )
        # The lock must not outlive the decision to end: other fronts may close what this one left open.
        self._writer.close()
        raise StoreBroken(self._broken) from error

    def head(self) -> Head | None:
        rows = self._rows("SELECT size, root, frontier, mac FROM greatseal.head WHERE size > 0")
        return Head(*rows[0]) if rows else None

    def entries(self, start: int, end: int) -> list[bytes]:
        start = max(start, 0)
        if start >= end:
            return []
        query = """
            SELECT size, entries FROM greatseal.commits WHERE size > %s
            AND size <= coalesce((SELECT min(size) FROM greatseal.commits WHERE size >= %s), %s) ORDER BY size
            """
        rows = self._rows(query, (start, end, end))
        try:
            return packed.cut(rows, start, end)
        except packed.PackedError as error:
            self._broken = f"the audit log's store ({self._where}) holds malformed rows: {error}"
            raise StoreBroken(self._broken) from error

    def tile(self, level: int, index: int) -> bytes | None:
        rows = self._rows("SELECT data FROM greatseal.tiles WHERE level = %s AND idx = %s", (level, index))
        return rows[0][0] if rows else None

    def open_intents(self) -> list[OpenIntent]:
        with self._reader() as connection, connection.transaction():
            rows = connection.execute(
                "SELECT idx, boot FROM greatseal.open_intents WHERE boot <> %s ORDER BY idx", (self._boot,)
            ).fetchall()
            dead = {boot for boot in {row[1] for row in rows} if self._is_dead(connection, boot)}
        return [OpenIntent(*row) for row in rows if row[1] in dead]

    @staticmethod
    def _is_dead(connection: psycopg.Connection[Any], boot: bytes) -> bool:
        # A boot never comes back, so that it does not matter that the lock goes with this transaction.
        taken = connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (_lock_of(boot),)).fetchone()
        return taken == (True,)

    def attempts(self, caller: bytes, request_id: bytes) -> list[Attempt]:
        query = """
            SELECT attempt, request_hash, intent, outcome
            FROM greatseal.requests LEFT JOIN greatseal.outcomes USING (intent)
            WHERE request_id = %s AND caller = %s ORDER BY attempt
            """
        return [Attempt(*row) for row in self._rows(query, (request_id, caller))]

    def forget_requests(self, before_time_ms: int, limit: int) -> int:
        if self._broken is not None:
            raise StoreBroken(self._broken)
        self._roll_back()
        query = """
            WITH forgotten AS (
                DELETE FROM greatseal.requests WHERE (request_id, caller, attempt) IN (
                    SELECT request_id, caller, attempt FROM greatseal.requests AS seen
                    WHERE (SELECT time_ms FROM greatseal.commits WHERE size > seen.intent ORDER BY size LIMIT 1) < %s
                    AND NOT EXISTS (SELECT 1 FROM greatseal.open_intents WHERE idx = seen.intent)
                    ORDER BY request_id, caller, attempt LIMIT %s
                ) RETURNING intent
            ), closed AS (
                DELETE FROM greatseal.outcomes WHERE intent IN (SELECT intent FROM forgotten)
            )
            SELECT count(*) FROM forgotten
            """
        try:
            row = self._writer.execute(query, (before_time_ms, limit)).fetchone()
        except psycopg.Error as error:
            self._break("forgetting old requests", error)
        return int(row[0]) if row else 0

    def backup(self, path: str) -> None:
        raise StoreError(
            f"{path} is not written: a PostgreSQL log is backed up with PostgreSQL's own tools "
            "(pg_basebackup with WAL archiving, or pg_dump --schema=greatseal)"
        )

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for _ in range(_READERS):
            self._permits.acquire()
        for connection in (*self._idle, self._writer):
            connection.close()
        for _ in range(_READERS):
            self._permits.release()

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._reader() as connection:
            return connection.execute(query.encode(), values).fetchall()

    @contextmanager
    def _reader(self) -> Iterator[psycopg.Connection[Any]]:
        """Lend a read-only connection; one that failed is not used again."""
        with self._permits:
            if self._closed:
                raise StoreError(f"the store ({self._where}) is closed")
            with self._idle_lock:
                connection = self._idle.pop() if self._idle else None
            try:
                if connection is None:
                    connection = psycopg.connect(self._url, autocommit=True, **_ALIVE)
                    connection.execute("SET default_transaction_read_only = on")
                yield connection
            except errors.DatabaseError as error:
                if connection is not None:
                    connection.close()
                raise StoreError(f"the audit log's store ({self._where}) cannot be read: {_one_line(error)}") from error
            except BaseException:
                if connection is not None:
                    connection.close()
                raise
            with self._idle_lock:
                self._idle.append(connection)


def _lock_of(boot: bytes) -> int:
    """Return the advisory lock (64 bits, signed) that stands for a boot."""
    return int.from_bytes(hashlib.sha256(b"greatseal boot " + boot).digest()[:8], "big", signed=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
