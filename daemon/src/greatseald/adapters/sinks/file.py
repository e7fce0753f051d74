"""A sink that appends lines to a file and fsyncs them; whoever rotates the file renames it.

The file is opened for each batch, so that a renamed one is left alone and a new one begun. A line that a
crash has torn is ended before the next one: it stands alone, and its entry is delivered again.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from greatseald.ports.sinks import Record, SinkError

_MODE = 0o640


class FileSink:
    """Appends to the file at `path`, mode 0640."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def deliver(self, records: Sequence[Record]) -> None:
        """Append one line for each record, durably.

        Raises:
            SinkError: the file cannot be written.
        """
        data = b"".join([record.line + b"\n" for record in records])
        try:
            await asyncio.to_thread(self._append, data)
        except OSError as error:
            raise SinkError(f"{self._path} cannot be written: {error.strerror}") from error

    def _append(self, data: bytes) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(self._path, flags, _MODE)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(0, "it is not a regular file")
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                data = b"\n" + data
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    async def close(self) -> None:
        """Nothing is held open."""
