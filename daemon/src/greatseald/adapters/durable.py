"""Small files that have to be on the disk, whole or not at all, before the next step."""

from __future__ import annotations

import os
from pathlib import Path


def fsync_directory(path: Path) -> None:
    """Make what was created, renamed or removed in a directory durable.

    Raises:
        OSError: the directory cannot be opened or flushed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes | bytearray, mode: int = 0o600) -> None:
    """Replace a file's content durably: when this returns, the new content survives a power loss.

    Raises:
        OSError: nothing was replaced, or its durability is not known.
    """
    partial = path.with_name(f".{path.name}.new")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        written = os.write(descriptor, data)
        if written != len(data):
            raise OSError(28, "no space left on device", str(partial))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.replace(path)
    fsync_directory(path.parent)
