"""Timestamps in one file beside the anchor, JSON Lines as `greatseal.timestamps` reads them, appended and synced.

A line that a crash has cut off is cut off at the next opening: its timestamp is asked for again.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from greatseal.checkpoint import read_unverified
from greatseal.errors import VerificationFailed
from greatseal.timestamps import Stamped, parse_line
from greatseald.adapters.durable import fsync_directory
from greatseald.ports.stamps import StampsUnusable

_TAIL_BYTES: Final = 256 * 1024
_MAX_LINE: Final = 128 * 1024


class FileStamps:
    """`ports.stamps.Stamps` over one file of mode 0600."""

    def __init__(self, path: Path) -> None:
        """Use the file at `path`; it is made with the first timestamp. Raises StampsUnusable."""
        self._path = path
        self._guard = threading.Lock()
        self._cut_torn()

    def append(self, stamped: Stamped) -> None:
        data = stamped.line().encode()
        try:
            with self._guard:
                descriptor = os.open(
                    self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
                )
                try:
                    size = os.fstat(descriptor).st_size
                    if os.write(descriptor, data) != len(data):
                        os.ftruncate(descriptor, size)
                        raise OSError(28, "no space left on device", str(self._path))
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                fsync_directory(self._path.parent)
        except OSError as error:
            raise StampsUnusable(f"the timestamp cannot be kept in {self._path}: {error.strerror}") from error

    def page(self, start: int, limit: int) -> tuple[list[Stamped], int]:
        found: list[Stamped] = []
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if not 0 <= start < max(size, 1):
                    message = f"there is no timestamp at place {start}"
                    raise ValueError(message)
                if start:
                    file.seek(start - 1)
                    if file.read(1) != b"\n":
                        message = f"there is no timestamp at place {start}"
                        raise ValueError(message)
                while len(found) < limit and (line := file.readline(_MAX_LINE)).endswith(b"\n"):
                    found.append(parse_line(line))
                place = file.tell()
        except FileNotFoundError:
            if start:
                message = f"there is no timestamp at place {start}"
                raise ValueError(message) from None
            return [], 0
        except (OSError, VerificationFailed) as error:
            raise StampsUnusable(f"the timestamps in {self._path} cannot be read: {error}") from error
        return found, place if len(found) == limit and place < size else 0

    def newest(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > _TAIL_BYTES:
                    file.seek(size - _TAIL_BYTES)
                    file.readline()
                for line in file:
                    stamped = parse_line(line)
                    sizes[stamped.authority] = read_unverified(stamped.checkpoint).size
        except FileNotFoundError:
            return {}
        except (OSError, VerificationFailed) as error:
            raise StampsUnusable(f"the timestamps in {self._path} cannot be read: {error}") from error
        return sizes

    def _cut_torn(self) -> None:
        try:
            with self._path.open("r+b") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - _MAX_LINE))
                tail = file.read()
                if tail and not tail.endswith(b"\n"):
                    file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StampsUnusable(f"the timestamps in {self._path} cannot be used: {error.strerror}") from error
