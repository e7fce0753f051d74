"""Reading a file within bounds, and writing it whole or not at all.

write_whole(Path("model.sig"), data)            # a reader sees the old bytes or the new ones
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Final

from greatseal.errors import UsageError

PRIVATE: Final = 0o600


def read_bounded(path: Path, limit: int, *, dash_is_stdin: bool = False) -> bytes:
    """Return what a file holds; with `dash_is_stdin`, `-` is standard input.

    Raises:
        UsageError: it is over `limit` bytes.
        OSError: it cannot be read.
    """
    if dash_is_stdin and str(path) == "-":
        data = sys.stdin.buffer.read(limit + 1)
    else:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    if len(data) > limit:
        message = f"{path} is over {limit} bytes, more than any file of its kind"
        raise UsageError(message)
    return data


def write_whole(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Write a file by writing another one beside it, syncing it and renaming it over.

    A symbolic link is followed. What exists and is no regular file (a terminal, `/dev/null`) cannot
    be replaced: it is written to.

    Args:
        mode: the file's permissions; what the umask leaves of 0666 where None.

    Raises:
        OSError: nothing was changed.
    """
    target = Path(os.path.realpath(path))
    try:
        special = not stat.S_ISREG(target.stat().st_mode)
    except FileNotFoundError:
        special = False
    if special:
        with target.open("wb") as file:
            file.write(data)
        return
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:64]}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            os.fchmod(descriptor, _default_mode() if mode is None else mode)
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    sync_directory(target.parent)


def sync_directory(path: Path) -> None:
    """Make a rename in this directory durable, as far as the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _default_mode() -> int:
    # The umask can only be read by setting it, which other threads would see; the kernel tells it too.
    with contextlib.suppress(OSError, ValueError), Path("/proc/self/status").open() as status:
        for line in status:
            if line.startswith("Umask:"):
                return 0o666 & ~int(line.split()[1], 8)
    return 0o644
