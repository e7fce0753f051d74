"""Writing a log into a directory of C2SP tlog-tiles: each full tile once, the checkpoint last.

    with TileWriter(path, key) as writer:               # nobody else writes meanwhile
        ... prove that writer.before is the beginning of the new tree
        writer.begin(head.size)
        while writer.size < head.size:
            writer.add(entries from writer.size on)
        writer.finish(head.root, head.note)

A run that is cut off leaves a directory whose checkpoint covers what is there, and the next goes on where
it was. Partial tiles of an older checkpoint stay until the full tile stands there.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from greatseal.checkpoint import HASH_BYTES, Checkpoint, open_checkpoint
from greatseal.errors import UsageError, VerificationFailed
from greatseal.files import write_whole
from greatseal.note import MAX_NOTE_BYTES, VerifierKey
from greatseal.tilefiles import TileFiles
from greatseal.tiles import MAX_BUNDLE_BYTES, TILE_BYTES, WIDTH, Tile, TileTree, pack, tile_path, unpack
from greatseal.tlog import leaf_hash

CHECKPOINT: Final = "checkpoint"
_PROGRESS: Final = ".greatseal-export"
_LOCK: Final = ".greatseal-lock"
_MAX_DIGITS: Final = 19
_LEVELS: Final = 9
_SYNC_EVERY: Final = 16 * WIDTH
"""Entries between two flushes: what a cut-off run may have to write again."""


class DirectoryBusy(UsageError):
    """Another process writes to the directory now."""


class TileWriter:
    """The writer of one directory of one log, which holds its lock from `with` on.

    Attributes:
        before: the directory's checkpoint as it was found, verified; None where there is none.
        size: the entries that the tree has so far.
    """

    def __init__(self, path: Path, key: VerifierKey) -> None:
        self.path = path
        self.before: Checkpoint | None = None
        self._key = key
        self._files = TileFiles(path)
        self._tree = TileTree()
        self._bundle: list[bytes] = []
        self._synced = 0
        self._lock = -1

    def __enter__(self) -> Self:
        """Take the directory's lock and read its checkpoint.

        Raises:
            DirectoryBusy: another process holds it.
            VerificationFailed: the checkpoint is malformed, or the log's key did not sign it.
            OSError: the directory cannot be made, locked or read.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                message = f"another process writes to {self.path} now: try again when it is done"
                raise DirectoryBusy(message) from error
            self.before = read_checkpoint(self.path, self._key)
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        """Let the directory go; what is not finished is gone on with by the next writer."""
        os.close(self._lock)

    @property
    def size(self) -> int:
        """The entries that the tree has so far: the index of the one to be added next."""
        return self._tree.size

    @property
    def covered(self) -> int:
        """The entries that the directory's checkpoint covers."""
        return self.before.size if self.before is not None else 0

    def begin(self, size: int) -> None:
        """Load the right edge of what is there, for a log of `size` entries; `size` tells where to go on.

        Raises:
            VerificationFailed: the tiles do not lead to the directory's own checkpoint, or some are missing.
            OSError: they cannot be read.
        """
        done = self._progress(size)
        if done > self.covered:
            self._tree = TileTree.from_tiles([self._whole_edge(level, done) for level in range(_LEVELS)])
        elif self.before is not None:
            self._tree = TileTree.from_tiles([self._partial_edge(level, self.covered) for level in range(_LEVELS)])
            if self._tree.root() != self.before.root:
                message = f"the tiles in {self.path} do not lead to the checkpoint beside them: they were changed"
                raise VerificationFailed(message)
            if width := self.covered % WIDTH:
                name = tile_path("entries", self.covered // WIDTH, width)
                self._bundle = unpack(self._files.read(name, MAX_BUNDLE_BYTES), width, str(self.path / name))
        self._synced = self.size

    def add(self, entries: Iterable[bytes]) -> None:
        """Write the entries that follow, with the tiles that they make full. Raises OSError."""
        for entry in entries:
            self._bundle.append(entry)
            for tile in self._tree.append(leaf_hash(entry)):
                self._files.keep(tile.path(), tile.data)
            if len(self._bundle) == WIDTH:
                self._files.keep(tile_path("entries", (self.size - 1) // WIDTH), pack(self._bundle))
                self._bundle = []
                if self.size - self._synced >= _SYNC_EVERY:
                    self._files.sync()
                    self._files.write(_PROGRESS, str(self.size).encode())
                    self._synced = self.size

    def finish(self, root: bytes, note: str) -> None:
        """Write the right edge, and then the checkpoint `note` of a tree of `size` entries under `root` (32 bytes).

        Raises:
            VerificationFailed: what was written does not lead to `root`; the checkpoint stays as it was.
            OSError: a file cannot be written.
        """
        if self._tree.root() != root:
            (self.path / _PROGRESS).unlink(missing_ok=True)
            message = (
                f"the tiles in {self.path} do not lead to the log's checkpoint: files in it were changed; "
                "export to an empty directory"
            )
            raise VerificationFailed(message)
        for tile in self._tree.partial():
            if tile.data:
                self._files.keep(tile.path(), tile.data)
        if self._bundle:
            self._files.keep(tile_path("entries", self.size // WIDTH, len(self._bundle)), pack(self._bundle))
        self._files.sync()
        write_whole(self.path / CHECKPOINT, note.encode())
        self._drop_partials(self.covered)
        (self.path / _PROGRESS).unlink(missing_ok=True)

    def _progress(self, size: int) -> int:
        try:
            text = self._files.read(_PROGRESS, _MAX_DIGITS).decode("ascii", "replace")
        except FileNotFoundError:
            return 0
        done = int(text) if text.isascii() and text.isdigit() else 0
        return done if done % WIDTH == 0 and done <= size else 0

    def _partial_edge(self, level: int, size: int) -> Tile:
        """The tile at the right edge of a published tree, as it stands there."""
        count = size >> 8 * level
        number, width = divmod(count, WIDTH)
        data = self._files.read(tile_path(str(level), number, width), TILE_BYTES) if width else b""
        return Tile(level, number, data)

    def _whole_edge(self, level: int, size: int) -> Tile:
        """The tile at the right edge of a tree of `size` entries, a multiple of 256, from the full tiles below."""
        number, width = divmod(size >> 8 * level, WIDTH)
        return Tile(level, number, b"".join(self._first(level, number, width)) if width else b"")

    def _first(self, level: int, number: int, width: int) -> list[bytes]:
        """The first hashes of a tile that may not be full yet, from the full tiles below it."""
        path = tile_path(str(level), number)
        if self._files.exists(path):
            data = self._files.read(path, TILE_BYTES)
            return [data[at : at + HASH_BYTES] for at in range(0, width * HASH_BYTES, HASH_BYTES)]
        found = []
        for below in range(number * WIDTH, number * WIDTH + width):
            if level == 0:
                break
            tree = TileTree()
            for leaf in self._first(level - 1, below, WIDTH):
                list(tree.append(leaf))
            found.append(tree.root())
        if len(found) < width:
            message = f"{self.path / path} is missing: the directory holds less than it says"
            raise VerificationFailed(message)
        return found

    def _drop_partials(self, size: int) -> None:
        """Remove the partial tiles of an earlier size where the full tile stands there now."""
        for level in ("entries", *map(str, range(_LEVELS))):
            count = size >> (0 if level == "entries" else 8 * int(level))
            full = self.path / tile_path(level, count // WIDTH)
            if full.exists():
                shutil.rmtree(full.with_name(full.name + ".p"), ignore_errors=True)


def read_checkpoint(path: Path, key: VerifierKey) -> Checkpoint | None:
    """Return the verified checkpoint of a directory; None where there is none.

    Raises:
        VerificationFailed: it is malformed, or the log's key did not sign it.
        OSError: it cannot be read.
    """
    try:
        data = TileFiles(path).read(CHECKPOINT, MAX_NOTE_BYTES)
    except FileNotFoundError:
        return None
    return open_checkpoint(data, key)
