"""The embedded store: one SQLite database in WAL mode, owned by one daemon.

Durability: `synchronous=FULL`, so that a commit has been fsync'd when it returns. SQLite itself goes
on after a failed fsync, and the next commit would report success; therefore any error of a write,
and any I/O error or corruption that a read meets, breaks the store for good (`StoreBroken`), and
whoever uses it must end the process. A broken store is closed without a checkpoint.

One statement per commit: `append` is a single INSERT into a temporary view whose trigger does the
compare-and-swap, the fences, the requests and the tiles. SQLite makes it one transaction, and the
interpreter lock is given up and won back once per commit instead of once per row, which is what
counts beside a busy event loop (tests/bench/store_append.py measures it).

Checkpoints are ours, not SQLite's automatic ones, because those swallow their errors.

Connections: one writer; up to four readers, opened read-only, so that they cannot checkpoint. Each
read is one statement, hence one short read transaction over committed data.

    store = SqliteStore("/var/lib/greatseal/log.db", boot)
    store.append(Append(expected_size=0, ...))
    store.close()
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import apsw
import msgspec

from greatseald.adapters.store import packed, sqlite_connections, sqlite_copy, sqlite_files, sqlite_schema
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
)

_CHECKPOINT_PAGES: Final = 4000
"""Pages of log (16 MiB) after which the writer checkpoints. A page that many commits touch (the right
edges of the tables) is then written once for all of them; more of them make the pause longer."""

_COMMIT_PAGES: Final = 6
"""Pages that every commit writes whatever its size: one or two of each table."""

_READERS: Final = 4
_FORGET: Final = """
    DELETE FROM requests WHERE (request_id, caller, attempt) IN (SELECT request_id, caller, attempt FROM (
        SELECT * FROM requests WHERE (request_id, caller, attempt) > (?1, ?2, ?3)
        ORDER BY request_id, caller, attempt LIMIT ?4
    ) AS seen
    WHERE (SELECT time_ms FROM commits WHERE size > seen.intent ORDER BY size LIMIT 1) < ?5
      AND NOT EXISTS (SELECT 1 FROM open_intents WHERE idx = seen.intent)
    ) RETURNING intent
    """

_FIRST_KEY: Final = (b"", b"", 0)


class SqliteStore:
    """The `Store` port over one SQLite file; see the module's text."""

    def __init__(self, path: str, boot: bytes, migrations: Sequence[str] = sqlite_schema.MIGRATIONS) -> None:
        """Lock and open the database at `path`, making or migrating it as needed.

        `boot` (16 bytes) names this run of the daemon: its own open intents are never recovered.

        Raises:
            StoreUnusable: in use, unwritable, on a remote file system, damaged, foreign or of a newer schema.
        """
        self.path = path
        self._boot = boot
        self._broken: str | None = None
        self._pages = 0
        self._forget_from: tuple[bytes, bytes, int] = _FIRST_KEY
        self._idle: list[apsw.Connection] = []
        self._idle_lock = threading.Lock()
        self._permits = threading.BoundedSemaphore(_READERS)
        self._closed = False
        sqlite_files.require_place(path)
        self._lock = sqlite_files.LockFile(path)
        try:
            self._writer = sqlite_connections.open_writer(path, migrations)
        except BaseException:
            self._lock.release()
            raise
        self._cursor = self._writer.cursor()

    def append(self, batch: Append) -> None:
        if self._broken is not None:
            raise StoreBroken(self._broken)
        size = batch.expected_size + len(batch.entries)
        head = batch.head
        if head.size != size or not batch.entries:
            raise ValueError(
                f"{len(batch.entries)} entries after {batch.expected_size} do not give a head of {head.size}"
            )
        blob = packed.pack(batch.entries)
        requests = batch.requests
        records = b"".join(
            [key.request_id + key.caller + digest + b"%10d" % key.attempt for key, digest, _ in requests]
        )
        if len(records) != 74 * len(requests):
            raise ValueError("a request's key or hash does not have its length")
        tiles = batch.tiles
        row = (
            batch.expected_size,
            size,
            batch.time_ms,
            batch.boot,
            head.root,
            head.frontier,
            head.mac,
            head.authority,
            blob,
            str(batch.opened),
            msgspec.json.encode(dict(batch.closed)).decode(),
            len(batch.closed),
            str([request.intent for request in requests]),
            records,
            str([[tile.level, tile.number] for tile in tiles]),
            b"".join([tile.data for tile in tiles]),
        )
        try:
            self._cursor.execute(sqlite_connections.INSERT, row)
        except apsw.ConstraintError as error:
            self._refuse(batch, error)
        except apsw.Error as error:
            self._break("a commit", error)
        self._pages += _COMMIT_PAGES + len(blob) // sqlite_connections.PAGE_BYTES + 3 * len(tiles)
        if self._pages >= _CHECKPOINT_PAGES:
            self._checkpoint()

    def _refuse(self, batch: Append, cause: apsw.ConstraintError) -> NoReturn:
        """Find out why nothing was written. Off the common path, so that it may look things up one by one."""
        one = self._cursor.execute
        try:
            if one("SELECT coalesce(max(size), 0) FROM commits").get != batch.expected_size:
                raise HeadMoved(f"the log no longer has {batch.expected_size} entries") from cause
            seen: set[int] = set()
            lost = []
            for intent, _ in batch.closed:
                if intent in seen or one("SELECT 1 FROM open_intents WHERE idx = ?", (intent,)).get is None:
                    lost.append(intent)
                seen.add(intent)
            if lost:
                raise FencesLost(lost) from cause
            keys: set[RequestKey] = set()
            known = []
            by_key = "SELECT 1 FROM requests WHERE (request_id, caller, attempt) = (?, ?, ?)"
            for key, _, _ in batch.requests:
                if key in keys or one(by_key, key).get is not None:
                    known.append(key)
                keys.add(key)
            if known:
                raise RequestsKnown(known) from cause
        except apsw.Error as error:
            self._break("a read", error)
        # The rows contradict the head: somebody else has written, or the caller's indexes are wrong.
        self._break("a commit", cause)

    def _checkpoint(self) -> None:
        try:
            logged, copied = self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.Error as error:
            self._break("a checkpoint", error)
        # A reader may have kept some pages in the log: come back for them sooner.
        self._pages = 0 if copied >= logged else _CHECKPOINT_PAGES * 3 // 4

    def _break(self, doing: str, error: Exception) -> NoReturn:
        self._broken = (
            f"the audit log's database {self.path} failed in {doing}: {sqlite_connections.explain(error)}. "
            "The daemon has to end; when the cause is mended, a start recovers"
        )
        raise StoreBroken(self._broken) from error

    def head(self) -> Head | None:
        row = self._row("SELECT size, root, frontier, mac, authority FROM commits ORDER BY size DESC LIMIT 1")
        return None if row is None else Head(*row)

    def entries(self, start: int, end: int) -> list[bytes]:
        start = max(start, 0)
        if start >= end:
            return []
        # Row `size` holds the entries below `size`; the last row wanted is the first with size >= end.
        query = """
            SELECT size, entries FROM commits WHERE size > ?1
            AND size <= coalesce((SELECT min(size) FROM commits WHERE size >= ?2), ?2) ORDER BY size
            """
        try:
            return packed.cut(self._rows(query, (start, end)), start, end)
        except packed.PackedError as error:
            self._break("a read", error)

    def tile(self, level: int, index: int) -> bytes | None:
        row = self._row("SELECT data FROM tiles WHERE level = ? AND idx = ?", (level, index))
        return None if row is None else row[0]

    def open_intents(self) -> list[OpenIntent]:
        # The lock file proves that every other boot is dead.
        query = "SELECT idx, boot FROM open_intents WHERE boot <> ? ORDER BY idx"
        return [OpenIntent(*row) for row in self._rows(query, (self._boot,))]

    def attempts(self, caller: bytes, request_id: bytes) -> list[Attempt]:
        query = """
            SELECT attempt, request_hash, intent, outcome FROM requests LEFT JOIN outcomes USING (intent)
            WHERE request_id = ? AND caller = ? ORDER BY attempt
            """
        return [Attempt(*row) for row in self._rows(query, (request_id, caller))]

    def check_alive(self) -> None:
        """Nothing to do: the file's lock cannot be lost."""
        if self._broken is not None:
            raise StoreBroken(self._broken)

    def forget_requests(self, before_time_ms: int, limit: int) -> int:
        """Look at `limit` requests from the smallest id on and at as many from where the last call ended.

        UUIDv7 ids are found at once, others within one round of calls, and no call's pause grows with the log.
        """
        if self._broken is not None:
            raise StoreBroken(self._broken)
        try:
            forgotten = self._forget(_FIRST_KEY, limit, before_time_ms)
            left = limit - forgotten
            start = self._forget_from
            row: Any = self._cursor.execute(
                "SELECT request_id, caller, attempt FROM requests WHERE (request_id, caller, attempt) > (?, ?, ?) "
                "ORDER BY request_id, caller, attempt LIMIT 1 OFFSET ?",
                (*start, max(left - 1, 0)),
            ).fetchone()
            if left:
                forgotten += self._forget(start, left, before_time_ms)
            self._forget_from = row or _FIRST_KEY
        except apsw.Error as error:
            self._break("forgetting old requests", error)
        return forgotten

    def _forget(self, start: tuple[bytes, bytes, int], limit: int, before: int) -> int:
        with self._writer:
            rows = self._cursor.execute(_FORGET, (*start, limit, before)).fetchall()
            intents = str([intent for (intent,) in rows])
            self._cursor.execute("DELETE FROM outcomes WHERE intent IN (SELECT value FROM json_each(?))", (intents,))
        return len(rows)

    def backup(self, path: str) -> None:
        with self._reader() as connection:
            try:
                sqlite_copy.write_copy(connection, path)
            except (apsw.IOError, apsw.CorruptError, apsw.NotADBError) as error:
                self._break("a backup", error)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # Every permit: no read is under way any more, and none begins.
        for _ in range(_READERS):
            self._permits.acquire()
        for reader in self._idle:
            reader.close()
        for _ in range(_READERS):
            self._permits.release()
        try:
            if self._broken is None:
                # Closing would checkpoint as well, and say nothing of its errors.
                self._checkpoint()
        finally:
            if self._broken is not None:
                # What a failed write left must not be carried into the database by a checkpoint.
                self._writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self._writer.close()
            self._lock.release()

    def _row(self, query: str, values: tuple[Any, ...] = ()) -> Any:
        rows = self._rows(query, values)
        return rows[0] if rows else None

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._reader() as connection:
            try:
                return connection.execute(query, values).fetchall()
            except apsw.Error as error:
                self._break("a read", error)

    @contextmanager
    def _reader(self) -> Iterator[apsw.Connection]:
        with self._permits:
            if self._closed:
                raise StoreError(f"{self.path} is closed")
            with self._idle_lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                try:
                    connection = sqlite_connections.open_reader(self.path)
                except apsw.Error as error:
                    self._break("opening for a read", error)
            try:
                yield connection
            finally:
                with self._idle_lock:
                    self._idle.append(connection)
