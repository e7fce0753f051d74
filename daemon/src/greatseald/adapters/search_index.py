"""The search index in an SQLite file of its own: which entries name a key, a caller, a subject, a digest, a result.

It is derived data. A file that is missing, damaged, of another log or of another version is dropped and built
anew from the log. Whatever it finds is read from the log and judged there, so that a wrong index can hide
entries from a search and can show none that are not there; proofs and verification never ask it.

Rows come in the order of the log, so that each index but that of digests grows at the right edge of each of
its values. An outcome has its intent's key, caller and subject; its digests are found through its intent.
"""

from __future__ import annotations

import heapq
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

import apsw

from greatseald.domain.entry_query import EntryQuery, Facts, read
from greatseald.ports.search_index import Covered, IndexUnusable

_VERSION: Final = 1
_APPLICATION_ID: Final = 0x47534C49
"""`GSLI`, in the file's header at byte 68."""
_SCHEMA: Final = """
    CREATE TABLE covered (one INTEGER PRIMARY KEY CHECK (one = 1), first INTEGER, size INTEGER, root BLOB) STRICT;
    INSERT INTO covered VALUES (1, 0, 0, x'');
    CREATE TABLE names (id INTEGER PRIMARY KEY, what INTEGER, name TEXT, UNIQUE (what, name)) STRICT;
    CREATE TABLE facts (idx INTEGER PRIMARY KEY, kind INTEGER, key INTEGER, caller INTEGER, subject INTEGER) STRICT;
    CREATE INDEX facts_key ON facts (key, idx) WHERE key IS NOT NULL;
    CREATE INDEX facts_caller ON facts (caller, idx) WHERE caller IS NOT NULL;
    CREATE INDEX facts_subject ON facts (subject, idx) WHERE subject IS NOT NULL;
    CREATE INDEX facts_kind ON facts (kind, idx) WHERE kind > 1;
    CREATE TABLE digests (prefix INTEGER, idx INTEGER, PRIMARY KEY (prefix, idx)) STRICT, WITHOUT ROWID;
    CREATE TABLE outcomes (intent INTEGER PRIMARY KEY, idx INTEGER) STRICT;
    """
_KINDS: Final = {"intent": 0, "signed": 1, "failed": 2, "unknown": 3, "aborted": 4, "denied": 5, "admin": 6}
_OTHER: Final = 7
_OUTCOMES: Final = ("signed", "failed", "unknown", "aborted")
_KEY, _CALLER, _SUBJECT = range(3)
_COLUMNS: Final = {_KEY: "key", _CALLER: "caller", _SUBJECT: "subject"}
_MOST_NAMES: Final = 64
"""Names that a prefix may stand for; beyond that the log is read instead."""
_KNOWN_NAMES: Final = 10_000
_RECENT: Final = 8192
_CACHE_KIB: Final = 8192
_DIGEST_DIGITS: Final = 16


class SqliteSearchIndex:
    """The `SearchIndex` port over one file and its write-ahead log."""

    def __init__(self, path: Path) -> None:
        """Open the file when it is first needed."""
        self._path = path
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._writer: apsw.Connection | None = None
        self._reader: apsw.Connection | None = None
        self._names: OrderedDict[tuple[int, str], int] = OrderedDict()
        self._recent: OrderedDict[int, tuple[int | None, int | None, int | None]] = OrderedDict()

    def covered(self) -> Covered:
        with self._writing:
            try:
                row: Any = self._opened().execute("SELECT first, size, root FROM covered").fetchall()[0]
            except (apsw.Error, OSError, IndexError) as error:
                raise IndexUnusable(f"{self._path}: {error}") from error
            return Covered(*row)

    def add(self, start: int, entries: Sequence[bytes], root: bytes) -> None:
        with self._writing:
            try:
                writer = self._opened()
                with writer:
                    self._insert(writer, start, [read(entry) for entry in entries])
                    writer.execute("UPDATE covered SET size = ?, root = ?", (start + len(entries), root))
            except (apsw.Error, OSError) as error:
                self._recent.clear()
                self._names.clear()
                raise IndexUnusable(f"{self._path}: {error}") from error

    def candidates(self, query: EntryQuery, low: int, high: int, count: int, *, descending: bool) -> list[int] | None:
        with self._reading:
            try:
                if self._reader is None:
                    self._reader = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READONLY)
                    self._reader.set_busy_timeout(5_000)
                return _find(self._reader, query, low, high, count, descending=descending)
            except (apsw.Error, OSError) as error:
                raise IndexUnusable(f"{self._path}: {error}") from error

    def reset(self, first: int) -> None:
        with self._writing, self._reading:
            self._close()
            try:
                for suffix in ("", "-wal", "-shm"):
                    with suppress(FileNotFoundError):
                        Path(f"{self._path}{suffix}").unlink()
                self._opened().execute("UPDATE covered SET first = ?, size = ?", (first, first))
            except (apsw.Error, OSError) as error:
                raise IndexUnusable(f"{self._path}: {error}") from error

    def close(self) -> None:
        with self._writing, self._reading:
            self._close()

    def _close(self) -> None:
        for connection in (self._reader, self._writer):
            if connection is not None:
                connection.close(True)
        self._reader = self._writer = None
        self._names.clear()
        self._recent.clear()

    def _opened(self) -> apsw.Connection:
        if self._writer is None:
            if not self._path.exists():
                self._path.touch(0o600)
            writer = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READWRITE)
            try:
                self._set_up(writer)
            except BaseException:
                writer.close(True)
                raise
            self._writer = writer
        return self._writer

    @staticmethod
    def _set_up(writer: apsw.Connection) -> None:
        writer.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        writer.set_busy_timeout(5_000)
        writer.pragma("journal_mode", "wal")
        # What a power loss takes is built again: the position goes back with it.
        writer.pragma("synchronous", "NORMAL")
        writer.pragma("cache_size", -_CACHE_KIB)
        writer.pragma("cell_size_check", 1)
        if (writer.pragma("application_id"), writer.pragma("user_version")) == (_APPLICATION_ID, _VERSION):
            return
        if writer.execute("SELECT count(*) FROM sqlite_schema").get:
            raise apsw.NotADBError("it is not an index of this version")
        with writer:
            writer.execute(_SCHEMA)
            writer.pragma("application_id", _APPLICATION_ID)
            writer.pragma("user_version", _VERSION)

    def _insert(self, writer: apsw.Connection, start: int, found: Sequence[Facts]) -> None:
        """One statement for each table: rows travel as JSON, as those of a commit do (ADR 0008)."""
        facts: list[list[int | None]] = []
        digests: set[tuple[int, int]] = set()
        outcomes: list[tuple[int, int]] = []
        for index, entry in enumerate(found, start):
            if entry.t == "outcome":
                intent = entry.intent.index if entry.intent is not None else -1
                about = self._about(writer, intent)
                outcomes.append((intent, index))
            else:
                about = (
                    self._id(writer, _KEY, entry.key.name if entry.key else ""),
                    self._id(writer, _CALLER, entry.cli.id if entry.cli else ""),
                    self._id(writer, _SUBJECT, entry.subj.name if entry.subj else ""),
                )
                texts = (entry.tbs, entry.mdig, entry.subj.digest if entry.subj else "")
                digests |= {(prefix, index) for text in texts if (prefix := _prefix(text, "0")) is not None}
                if entry.t == "intent":
                    self._recent[index] = about
            facts.append([index, _kind(entry), *about])
        while len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        for table, rows in (("facts", facts), ("digests", sorted(digests)), ("outcomes", outcomes)):
            columns = ", ".join(f"value ->> {number}" for number in range(len(rows[0]) if rows else 0))
            if rows:
                writer.execute(f"REPLACE INTO {table} SELECT {columns} FROM json_each(?)", (json.dumps(rows),))  # noqa: S608 - names of ours

    def _about(self, writer: apsw.Connection, intent: int) -> tuple[int | None, int | None, int | None]:
        known = self._recent.pop(intent, None)
        if known is not None:
            return known
        rows: Any = writer.execute("SELECT key, caller, subject FROM facts WHERE idx = ?", (intent,)).fetchall()
        return rows[0] if rows else (None, None, None)

    def _id(self, writer: apsw.Connection, what: int, name: str) -> int | None:
        if not name:
            return None
        known = self._names.get((what, name))
        if known is None:
            writer.execute("INSERT INTO names (what, name) VALUES (?, ?) ON CONFLICT DO NOTHING", (what, name))
            known = int(writer.execute("SELECT id FROM names WHERE what = ? AND name = ?", (what, name)).get)
            self._names[what, name] = known
            if len(self._names) > _KNOWN_NAMES:
                self._names.popitem(last=False)
        return known


def _kind(entry: Facts) -> int:
    return _KINDS.get(entry.res if entry.t == "outcome" else entry.t, _OTHER)


def _prefix(digits: str, fill: str) -> int | None:
    """The first 16 hexadecimal digits of a digest as a number that sorts as they do; None where they are none."""
    try:
        return int(digits[:_DIGEST_DIGITS].ljust(_DIGEST_DIGITS, fill), 16) - (1 << 63) if digits else None
    except ValueError:
        return None


def _kinds(query: EntryQuery) -> list[int] | None:
    """The kinds of entries that a query wants; None where it wants all."""
    if not query.types and not query.results:
        return None
    wanted = []
    for name, number in _KINDS.items():
        kind = "outcome" if name in _OUTCOMES else name
        if (not query.types or kind in query.types) and (not query.results or name in query.results):
            wanted.append(number)
    return wanted


def _find(
    reader: apsw.Connection, query: EntryQuery, low: int, high: int, count: int, *, descending: bool
) -> list[int] | None:
    named: dict[int, list[int]] = {}
    for what, pattern in ((_SUBJECT, query.subject), (_CALLER, query.caller), (_KEY, query.key)):
        if not pattern or pattern == "*":
            continue
        found = _ids(reader, what, pattern)
        if found is None:
            continue
        if not found:
            return []
        named[what] = found
    kinds = _kinds(query)
    where = ["idx >= ?", "idx < ?"]
    conditions = list(where)
    for what, ids in named.items():
        conditions.append(f"{_COLUMNS[what]} IN ({', '.join(map(str, ids))})")
    if kinds is not None:
        conditions.append(f"kind IN ({', '.join(map(str, kinds))})")
    order = f"ORDER BY idx {'DESC' if descending else 'ASC'} LIMIT ?"
    rest = f"{' AND '.join(conditions)} {order}"
    if query.digest:
        lowest, highest = _prefix(query.digest, "0"), _prefix(query.digest, "f")
        with_outcomes = (
            "SELECT idx FROM digests WHERE prefix BETWEEN ? AND ? UNION SELECT o.idx FROM digests AS d "
            "JOIN outcomes AS o ON o.intent = d.idx WHERE d.prefix BETWEEN ? AND ?"
        )
        statement = f"SELECT idx FROM facts WHERE idx IN ({with_outcomes}) AND {rest}"  # noqa: S608 - numbers and names of ours
        return _run(reader, statement, (lowest, highest, lowest, highest, low, high, count))
    # One driver, by how much it tells apart as a rule; each of its values is read in order and they are merged.
    if named:
        what = next(iter(named))
        column, values = _COLUMNS[what], named[what]
    elif kinds is not None and min(kinds, default=_OTHER) > _KINDS["signed"]:
        column, values = "kind", kinds
    else:
        return None
    # The inequality lets SQLite take the partial index.
    partial = "kind > 1 AND " if column == "kind" else ""
    statement = f"SELECT idx FROM facts INDEXED BY facts_{column} WHERE {partial}{column} = ? AND {rest}"  # noqa: S608 - as above
    parts = [_run(reader, statement, (value, low, high, count)) for value in values]
    return [*islice(heapq.merge(*parts, reverse=descending), count)]


def _ids(reader: apsw.Connection, what: int, pattern: str) -> list[int] | None:
    """The ids of the names that a pattern stands for; None where there are too many."""
    if not pattern.endswith("*"):
        return _run(reader, "SELECT id FROM names WHERE what = ? AND name = ?", (what, pattern))
    start = pattern[:-1]
    statement = "SELECT id FROM names WHERE what = ? AND name >= ? AND substr(name, 1, ?) = ? LIMIT ?"
    found = _run(reader, statement, (what, start, len(start), start, _MOST_NAMES + 1))
    return found if len(found) <= _MOST_NAMES else None


def _run(reader: apsw.Connection, statement: str, values: tuple[Any, ...]) -> list[int]:
    rows: list[Any] = reader.execute(statement, values).fetchall()
    return [row[0] for row in rows]
