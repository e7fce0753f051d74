"""Digests of files that were read before, kept between runs; only where a user asks for it.

A digest is taken from here instead of from the file where path, device, inode, size, mtime and ctime
(both in ns) are all what they were when the file was read. Only signing asks: verification always
reads every byte, because a bit that flipped on a disk changes none of these.

Whoever can write the cache decides what is signed. So it is a file of the user's own, in a directory
that nobody else may write to, and is refused otherwise. Nothing is kept of a model that did not hold
still, nor of a file written to within the step of file times. What is damaged is a miss, never an
error: the file is read. The cache may be deleted at any time.

A program that writes through a memory mapping changes no time before the kernel writes the page out:
sign when such a writer is done.

    with DigestCache(Path("~/.cache/greatseal/digests").expanduser()) as cache:
        part = cache.of(model, listing)
        ...                                             # hash the files that are not in part.known
        part.remember(digests)

It is SQLite (docs/adr/0014): shared by processes, memory for one model at a time.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import struct
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from greatseal.errors import UsageError
from greatseal.oms.errors import ModelRefused
from greatseal.oms.hashing import SETTLE_NS
from greatseal.oms.listing import Listing, Stamp, relative_to_model

_APPLICATION_ID: Final = 0x67736463  # "gsdc"
_VERSION: Final = 1
_WAIT_SECONDS: Final = 5.0
_STAMP: Final = struct.Struct(">QQQqq")
_SCHEMA: Final = "CREATE TABLE digest (path BLOB PRIMARY KEY, stamp BLOB NOT NULL, sha256 BLOB NOT NULL) WITHOUT ROWID"
_BELOW: Final = "SELECT path, stamp, sha256 FROM digest WHERE path > ? AND path < ?"


class DigestCache:
    """Digests by path and stamp in one file; may be used from any thread."""

    def __init__(self, path: Path) -> None:
        """Open the cache at `path`, or begin one.

        Raises:
            UsageError: it is no digest cache, or others could write it, or it cannot be opened.
        """
        self.path = path
        self.trouble = ""
        """Why the cache could not be read or written, if so; files are read then as without it."""
        self._lock = threading.Lock()
        _require_own(path)
        try:
            self._database = sqlite3.connect(
                path.absolute(),
                timeout=_WAIT_SECONDS,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=8,
            )
            try:
                self._prepare()
            except BaseException:
                self._database.close()
                raise
        except sqlite3.OperationalError as error:
            message = f"the digest cache {path} cannot be opened: {error}"
            raise UsageError(message) from error
        except sqlite3.DatabaseError as error:
            raise _no_cache(path) from error

    def of(self, model: Path, listing: Listing) -> ModelDigests:
        """Look up a model that was listed just now. Raises ModelRefused where the cache lies inside the model."""
        if relative_to_model(model, self.path) is not None:
            raise ModelRefused(f"the digest cache {self.path} lies inside the model, which it would change; move it")
        root = os.path.realpath(os.fsencode(model))
        return ModelDigests(self, root, listing, time.time_ns(), self._known(root, listing))

    def _prepare(self) -> None:
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute("PRAGMA trusted_schema = OFF")
        with _Writing(self._database):
            tables = self._database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            found = self._pragma("application_id"), self._pragma("user_version")
            if not tables and found == (0, 0):
                self._database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                self._database.execute(f"PRAGMA user_version = {_VERSION}")
                self._database.execute(_SCHEMA)
            elif found != (_APPLICATION_ID, _VERSION):
                raise _no_cache(self.path)

    def _pragma(self, name: str) -> int:
        return int(self._database.execute(f"PRAGMA {name}").fetchone()[0])

    def _known(self, root: bytes, listing: Listing) -> dict[str, bytes]:
        wanted = {root + b"/" + file.name.encode(): file for file in listing.files}
        known: dict[str, bytes] = {}
        try:
            with self._lock:
                for path, stamp, sha256 in self._database.execute(_BELOW, _bounds(root)):
                    file = wanted.get(path) if isinstance(path, bytes) else None
                    whole = isinstance(sha256, bytes) and len(sha256) == 32
                    if file is not None and whole and stamp == _packed(file.stamp):
                        known[file.name] = sha256
        except sqlite3.Error as error:
            self.trouble = f"the digest cache {self.path} could not be read: {error}"
            return {}
        return known

    def store(self, root: bytes, rows: list[tuple[bytes, bytes, bytes]], present: set[bytes]) -> None:
        """Keep rows of (path, packed stamp, SHA-256); forget what is below `root` and not `present`."""
        try:
            with self._lock, _Writing(self._database):
                self._database.executemany("INSERT OR REPLACE INTO digest VALUES (?, ?, ?)", rows)
                gone = [(path,) for path, _, _ in self._database.execute(_BELOW, _bounds(root)) if path not in present]
                self._database.executemany("DELETE FROM digest WHERE path = ?", gone)
        except sqlite3.Error as error:
            self.trouble = f"the digest cache {self.path} could not be written: {error}"

    def close(self) -> None:
        """Let the file go."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ModelDigests:
    """One model's part of the cache: `known` has the digests of files that have not changed, by name."""

    def __init__(
        self, cache: DigestCache, root: bytes, listing: Listing, listed_ns: int, known: Mapping[str, bytes]
    ) -> None:
        self.known = known
        self._cache = cache
        self._root = root
        self._listing = listing
        self._listed_ns = listed_ns

    def remember(self, digests: Mapping[str, bytes]) -> None:
        """Keep the digests (32 bytes by name) of a model that was found unchanged after it was read."""
        # A file of "tomorrow" (a server's clock ahead of ours) could be written again under the same times.
        rows = [
            (self._path(file.name), _packed(file.stamp), digests[file.name])
            for file in self._listing.files
            if file.name not in self.known and file.stamp.ctime_ns <= self._listed_ns - SETTLE_NS
        ]
        self._cache.store(self._root, rows, {self._path(file.name) for file in self._listing.files})

    def _path(self, name: str) -> bytes:
        return self._root + b"/" + name.encode()


class _Writing:
    """A transaction that holds the database's write lock from its first statement."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._database.execute("COMMIT")
        finally:
            if self._database.in_transaction:  # SQLite rolls some failures back itself
                self._database.execute("ROLLBACK")


def _bounds(root: bytes) -> tuple[bytes, bytes]:
    """Return what the paths below a directory lie between: `0` is the byte after `/`."""
    return root + b"/", root + b"0"


def _packed(stamp: Stamp) -> bytes:
    return _STAMP.pack(stamp.device, stamp.inode, stamp.size, stamp.mtime_ns, stamp.ctime_ns)


def _require_own(path: Path) -> None:
    """Make the file where there is none; raise UsageError where anybody else could have written it."""
    try:
        # SQLite takes what lies beside the file for the rest of its journal: the directory counts as well.
        _require_nobody_else(path.parent, path.parent.stat(), {0, os.geteuid()})
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        message = f"the digest cache {path} cannot be opened: {error.strerror}"
        raise UsageError(message) from error
    if not stat.S_ISREG(status.st_mode):
        raise _no_cache(path)
    _require_nobody_else(path, status, {os.geteuid()})


def _require_nobody_else(path: Path, status: os.stat_result, owners: set[int]) -> None:
    shared = status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid != os.getegid())
    if shared or status.st_uid not in owners:
        message = (
            f"{path} can be written by others, who could have you sign what your files do not say: "
            "keep the digest cache in a directory of your own"
        )
        raise UsageError(message)


def _no_cache(path: Path) -> UsageError:
    return UsageError(f"{path} is no digest cache, or damaged: name another file, or remove it")
