"""The files of a log's directory: read within bounds, written whole, made durable together.

    files = TileFiles(Path("/srv/audit"))
    files.write("tile/0/000", data)
    files.sync()            # what was written until now survives a power loss

A file is renamed into its place, so that a reader sees all of it or none. Syncing each at once would
cost a flush for every 256 entries twice over: `sync` is called before something says that they are there.
"""

from __future__ import annotations

import os
from pathlib import Path

from greatseal.errors import VerificationFailed


class TileFiles:
    """The files below one directory. Not safe for threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: list[Path] = []
        self._directories: set[Path] = set()

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / name).exists()

    def read(self, name: str, limit: int) -> bytes:
        """Return what a file holds.

        Raises:
            VerificationFailed: it has more than `limit` bytes, or is a tile and missing.
            OSError: it cannot be read.
        """
        path = self.path / name
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            if not name.startswith("tile/"):
                raise
            message = f"{path} is missing: the directory holds less than its checkpoint covers"
            raise VerificationFailed(message) from None
        if len(data) > limit:
            message = f"{path} is over {limit} bytes, more than any file of its kind"
            raise VerificationFailed(message)
        return data

    def write(self, name: str, data: bytes) -> None:
        """Put a file in its place, with its directories. Raises OSError."""
        path = self.path / name
        self._make(path.parent)
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(data)
        part.replace(path)
        self._files.append(path)
        self._directories.add(path.parent)

    def keep(self, name: str, data: bytes) -> None:
        """`write` a file that never changes: one that is there with these bytes stays as it is. Raises OSError."""
        try:
            with (self.path / name).open("rb") as file:
                there = file.read(len(data) + 1) == data
        except FileNotFoundError:
            there = False
        if not there:
            self.write(name, data)

    def sync(self) -> None:
        """Make everything written so far durable. Raises OSError."""
        for path in (*self._files, *self._directories):
            _fsync(path)
        self._files.clear()
        self._directories.clear()

    def _make(self, directory: Path) -> None:
        if directory.is_dir():
            return
        self._make(directory.parent)
        directory.mkdir(exist_ok=True)
        self._directories.add(directory.parent)


def _fsync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # a partial tile that gave way to the full one
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
