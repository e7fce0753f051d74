"""The shared store: one PostgreSQL database behind several fronts.

Each front has one commit connection, used by the writer's thread alone, and a few for reading.
An append locks the one row of `head`, compares its size, writes, moves the head and commits; fronts
queue at that row. A front that finds the head moved keeps the row while it rebuilds, so that its next
append succeeds: if it let go, a front that is already up to date would always be faster, and the other
would wait until that one falls idle (two busy writers showed just that).

An append takes three trips to the server: lock the head, write everything in a pipeline, COMMIT. COMMIT
goes alone, so that an error before it means "certainly not committed" and one from it "fate unknown".

A front is alive as long as its commit connection holds the advisory lock of its boot. Whoever can
take that lock knows the boot to be dead, and may close its open intents. So a front that loses its
commit connection must end (`StoreBroken`), and so must one whose COMMIT met a connection error or
brought any WARNING: a wait for the synchronous standby that was cancelled answers COMMIT all the
same, and the commit may be lost in a failover. Which of its commits are durable, a restart finds out.

    store = PostgresStore("postgresql://greatseal_front@db.example/greatseal", boot, StoreOptions(password=...))
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import psycopg
import structlog
from psycopg.pq import TransactionStatus

from greatseald.adapters.store import packed, postgres_roles, postgres_schema
from greatseald.adapters.store import postgres_statements as sql
from greatseald.adapters.store.options import DEFAULTS, StoreOptions
from greatseald.adapters.store.postgres_connection import Place
from greatseald.adapters.store.postgres_readers import Readers
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

_log = structlog.get_logger("greatseald.store")


class PostgresStore:
    """The `Store` port over a PostgreSQL database; see the module's text."""

    def __init__(
        self,
        url: str,
        boot: bytes,
        options: StoreOptions = DEFAULTS,
        migrations: Sequence[str] = postgres_schema.MIGRATIONS,
    ) -> None:
        """Connect, bring the schema up, and take the lock of `boot` (16 bytes).

        Raises:
            StoreUnusable: no connection, fsync off, a foreign, altered or newer schema, rows beside the head, or a
                front of this boot runs.
        """
        self._boot = boot
        self._broken: str | None = None
        self._closed = False
        self._warnings: list[str] = []
        self._forget_from = sql.FIRST_KEY
        place = Place.parse(url, options)
        self._where = place.name
        self._one_line = place.one_line
        self._writer = place.connect()
        try:
            self._prepare(migrations)
        except psycopg.Error as error:
            self._writer.close()
            raise StoreUnusable(f"{self._where} cannot be used: {self._one_line(error)}") from error
        except BaseException:
            self._writer.close()
            raise
        self._readers = Readers(place, options.readers)

    def _prepare(self, migrations: Sequence[str]) -> None:
        writer = self._writer
        writer.execute("SET synchronous_commit = on")
        if writer.execute("SHOW fsync").fetchone() != ("on",):
            raise StoreUnusable(f"{self._where} runs with fsync = off, where no commit is durable. Switch it on")
        postgres_schema.bring_up(writer, self._where, migrations)
        self._require_whole_head()
        if excess := postgres_roles.too_many(writer):
            _log.warning("store_role_may_do_too_much", store=self._where, rights=excess)
        if writer.execute("SELECT pg_try_advisory_lock(%s)", (_lock_of(self._boot),)).fetchone() != (True,):
            raise StoreUnusable(f"another front runs with the same boot id {self._boot.hex()} on {self._where}")
        writer.add_notice_handler(self._note)

    def _require_whole_head(self) -> None:
        """The head row and the newest commit are written together; apart they were put there by somebody else."""
        row = self._writer.execute(
            "SELECT (SELECT size FROM greatseal.head), (SELECT coalesce(max(size), 0) FROM greatseal.commits)"
        ).fetchone()
        head, newest = row or (None, 0)
        if head is None or head != newest:
            said = "has no row" if head is None else f"says {head} entries"
            raise StoreUnusable(
                f"{self._where} was altered: its head {said}, and its newest commit ends at {newest}. "
                "Restore the database from a backup; signing stays off until then"
            )

    def append(self, batch: Append) -> None:
        if self._broken is not None:
            raise StoreBroken(self._broken)
        size = batch.expected_size + len(batch.entries)
        if batch.head.size != size or not batch.entries:
            raise ValueError(
                f"{len(batch.entries)} entries after {batch.expected_size} do not give a head of {batch.head.size}"
            )
        try:
            self._lock_head(batch.expected_size)
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

    def _lock_head(self, expected: int) -> None:
        writer = self._writer
        with writer.pipeline():
            if writer.info.transaction_status != TransactionStatus.INTRANS:
                writer.execute("BEGIN")
            locked = writer.execute(sql.LOCK_HEAD)
        row = locked.fetchone()
        if row is None:
            raise psycopg.DataError("the head row is gone: somebody deleted it")
        if row[0] != expected:
            raise HeadMoved(f"the log no longer has {expected} entries")

    def _write(self, batch: Append, size: int) -> None:
        run = self._writer.execute
        head = batch.head
        intents = [closing.intent for closing in batch.closed]
        fences = requests = None
        with self._writer.pipeline():
            if intents:
                fences = run(
                    "DELETE FROM greatseal.open_intents WHERE idx = ANY(%s::bigint[]) RETURNING idx",
                    (sql.numbers(intents),),
                )
                # Where a fence is lost, its outcome is there; the fences say so below.
                outcomes = run(
                    "INSERT INTO greatseal.outcomes (intent, outcome) SELECT * FROM unnest(%s::bigint[], %s::bigint[]) "
                    "ON CONFLICT DO NOTHING",
                    (sql.numbers(intents), sql.numbers([closing.outcome for closing in batch.closed])),
                )
            if batch.requests:
                requests = run(sql.INSERT_REQUESTS, sql.request_columns(batch))
            if batch.opened:
                run(
                    "INSERT INTO greatseal.open_intents (idx, boot) SELECT unnest(%s::bigint[]), %b",
                    (sql.numbers(batch.opened), batch.boot),
                )
            if batch.tiles:
                run(
                    "INSERT INTO greatseal.tiles (level, idx, data) SELECT * FROM unnest(%s::integer[], %s::bigint[], %s::bytea[])",
                    (
                        sql.numbers([tile.level for tile in batch.tiles]),
                        sql.numbers([tile.number for tile in batch.tiles]),
                        sql.blobs([tile.data for tile in batch.tiles]),
                    ),
                )
            run(
                "INSERT INTO greatseal.commits (size, time_ms, boot, root, frontier, mac, authority, entries) "
                "VALUES (%s, %s, %b, %b, %b, %b, %s, %b)",
                (
                    size,
                    batch.time_ms,
                    batch.boot,
                    head.root,
                    head.frontier,
                    head.mac,
                    head.authority,
                    packed.pack(batch.entries),
                ),
            )
            moved = run(
                "UPDATE greatseal.head SET size = %s, root = %b, frontier = %b, mac = %b, authority = %s WHERE size = %s",
                (size, head.root, head.frontier, head.mac, head.authority, batch.expected_size),
            )
        if fences is not None:
            _require_fences(intents, {row[0] for row in fences})
            if outcomes.rowcount != len(intents):
                raise psycopg.DataError("an intent that was open has an outcome on record: somebody put it there")
        if requests is not None and requests.rowcount != len(batch.requests):
            self._refuse_known(batch)
        if moved.rowcount != 1:
            raise psycopg.DataError("the head row that this transaction had locked is gone")

    def _refuse_known(self, batch: Append) -> NoReturn:
        # What this transaction inserted goes first; then whatever is there was there before.
        self._roll_back()
        keys: set[RequestKey] = set()
        known = []
        for key, _, _ in batch.requests:
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
            ended = self._writer.execute("COMMIT", prepare=False)
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
            f"the audit log's store ({self._where}) failed in {doing}: {self._one_line(error)}. "
            "The daemon has to end; when the cause is mended, a start recovers"
        )
        # The lock must not outlive the decision to end: other fronts may close what this one left open.
        self._writer.close()
        raise StoreBroken(self._broken) from error

    def check_alive(self) -> None:
        if self._broken is not None:
            raise StoreBroken(self._broken)
        self._roll_back()
        try:
            holds = self._writer.execute(sql.HOLDS_ITS_LOCK, (_lock_of(self._boot),)).fetchone()
        except psycopg.Error as error:
            self._break("a check of its commit connection", error)
        if holds != (True,):
            gone = "its session holds the lock of this boot no longer. A pooler that changes sessions cannot be used"
            self._break("a check of its commit connection", psycopg.OperationalError(gone))

    def head(self) -> Head | None:
        rows = self._rows("SELECT size, root, frontier, mac, authority FROM greatseal.head WHERE size > 0")
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
        return self._readers.read(self._left_open)

    def _left_open(self, connection: psycopg.Connection[Any]) -> list[OpenIntent]:
        with connection.transaction():
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
        """Look at `limit` requests from the smallest id on and at the rest of as many from where the last call ended.

        As SQLite's does: UUIDv7 ids are found at once, others within one round of calls, and no call's pause grows
        with the log. One front at a time: for the others there is nothing to do.
        """
        if self._broken is not None:
            raise StoreBroken(self._broken)
        self._roll_back()
        try:
            with self._writer.transaction():
                if self._writer.execute("SELECT pg_try_advisory_xact_lock(%s)", (sql.FORGETTING,)).fetchone() != (
                    True,
                ):
                    return 0
                forgotten, _ = self._forget(sql.FIRST_KEY, limit, before_time_ms)
                more, self._forget_from = self._forget(self._forget_from, limit - forgotten, before_time_ms)
        except psycopg.Error as error:
            self._break("forgetting old requests", error)
        return forgotten + more

    def _forget(self, start: RequestKey, limit: int, before: int) -> tuple[int, RequestKey]:
        """Look at `limit` requests after `start`; return how many were forgotten and where to go on."""
        row = self._writer.execute(sql.FORGET, (*start, limit, before)).fetchone()
        if row is None or row[0] is None:
            return 0, sql.FIRST_KEY
        return row[3], RequestKey(*row[:3])

    def backup(self, path: str) -> None:
        raise StoreError(
            f"{path} is not written: a PostgreSQL log is backed up with PostgreSQL's own tools "
            "(pg_basebackup with WAL archiving, or pg_dump --schema=greatseal)"
        )

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._readers.close()
        self._writer.close()

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        return self._readers.rows(query, values)


def _require_fences(intents: Sequence[int], open_before: set[int]) -> None:
    lost = []
    for intent in intents:
        if intent not in open_before:
            lost.append(intent)
        # A second closing of the same fence finds it closed.
        open_before.discard(intent)
    if lost:
        raise FencesLost(lost)


def _lock_of(boot: bytes) -> int:
    """Return the advisory lock (64 bits, signed) that stands for a boot."""
    return int.from_bytes(hashlib.sha256(b"greatseal boot " + boot).digest()[:8], "big", signed=True)
