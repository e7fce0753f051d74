"""The file anchor: the last released tree head in a small file, best on another volume than the log.

It costs one synchronous write per group commit. The file has a fixed size and two slots; each advance
overwrites the older one in place and syncs it, so that a crash can tear only the slot that was
being written, and the other still holds the head before. The slots lie 4,096 bytes apart, because
that is what a disk may tear as a whole. A slot is text that a person can read with `head -n 4`:

    greatseal-anchor-v1 41
    size 1234
    root 6f1e…
    check 0c55…

where 41 counts the advances, `root` is hexadecimal and `check` is the SHA-256 of the three lines
before it, newlines included: it finds torn and damaged slots; it is no secret, and whoever can write
the file can write a slot. A new file begins with two slots of size 0, so that two bad slots always
mean damage and never a beginning.

    anchor = FileAnchor("/mnt/other/greatseal/released")
    anchor.advance(Anchored(size, root))
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from greatseald.ports.anchor import Anchored, AnchorError

_SLOT_BYTES: Final = 4096
_FILE_BYTES: Final = 2 * _SLOT_BYTES
_TEXT: Final = re.compile(
    rb"(greatseal-anchor-v1 ([0-9]{1,19})\nsize ([0-9]{1,19})\nroot ([0-9a-f]{64})\n)check ([0-9a-f]{64})\n"
)
_EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
"""The root of the empty tree (RFC 6962, section 2.1)."""


class _Slot(NamedTuple):
    number: int
    head: Anchored


class FileAnchor:
    """The `Anchor` port over one file, which one process at a time may hold. Thread-safe."""

    def __init__(self, path: str) -> None:
        """Open the anchor at `path`, or begin one if nothing or an empty file is there.

        Raises:
            AnchorError: the directory is missing, the file unwritable, held by another daemon, or not an anchor.
        """
        self._path = path
        self._guard = threading.Lock()
        self._fd = _open(path)
        try:
            _lock(self._fd, path)
            if os.fstat(self._fd).st_size == 0:
                # Replacing the file leaves no moment with half an anchor; the new file is locked in its turn.
                _begin(path)
                os.close(self._fd)
                self._fd = _open(path)
                _lock(self._fd, path)
            self._newest = self._load()
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        return self._path

    @property
    def size(self) -> int:
        """The remembered size, in entries; 0 before the first."""
        return self._newest.head.size

    @property
    def written_at(self) -> float:
        """When the file was last written, Unix seconds. Raises OSError once it is closed."""
        return os.fstat(self._fd).st_mtime

    def read(self) -> Anchored | None:
        with self._guard:
            self._newest = self._load()
            return self._newest.head if self._newest.head.size else None

    def advance(self, head: Anchored) -> None:
        with self._guard:
            slot = _Slot(self._newest.number + 1, head)
            try:
                # The older slot has the parity of the new number.
                # The file is open with O_DSYNC: written is synced, in one call that gives up the interpreter lock once.
                _write_all(self._fd, _text(slot), slot.number % 2 * _SLOT_BYTES)
            except OSError as error:
                # The number stays, so that the next advance writes this slot again and not the good one.
                raise AnchorError(f"the anchor {self._path} cannot be written: {error.strerror}") from error
            self._newest = slot

    def close(self) -> None:
        """Let the file go; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _load(self) -> _Slot:
        try:
            data = os.pread(self._fd, _FILE_BYTES + 1, 0)
        except OSError as error:
            raise AnchorError(f"the anchor {self._path} cannot be read: {error.strerror}") from error
        if len(data) != _FILE_BYTES or b"greatseal-anchor-" not in data:
            raise AnchorError(
                f"{self._path} is neither empty nor an anchor of Greatseal; it is left alone. "
                "Put the right path into [log] anchor"
            )
        slots = [slot for start in (0, _SLOT_BYTES) if (slot := _parse(data[start : start + _SLOT_BYTES])) is not None]
        if not slots:
            raise AnchorError(
                f"the anchor {self._path} is damaged: neither of its slots is whole. Compare the log with another "
                "anchor or a client's receipt; then move the file away, and a new one begins at the next start"
            )
        return max(slots, key=lambda slot: slot.number)


def _open(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DSYNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise AnchorError(
            f"the anchor's directory {Path(path).parent} does not exist. Make it, or correct [log] anchor"
        ) from error
    except OSError as error:
        raise AnchorError(
            f"the anchor {path} cannot be opened for writing as uid {os.geteuid()}: {error.strerror}. "
            "It must be a regular file, or a new one in a directory, that the daemon's user may write"
        ) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise AnchorError(f"the anchor {path} is not a regular file")
    return fd


def _lock(fd: int, path: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise AnchorError(f"the anchor {path} is held by another daemon. Each daemon needs its own") from error


def _begin(path: str) -> None:
    part = Path(f"{path}.{os.getpid()}.part")
    try:
        with suppress(FileNotFoundError):
            part.unlink()
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for number in (0, 1):
                slot = _text(_Slot(number, Anchored(0, _EMPTY_ROOT)))
                _write_all(fd, slot.ljust(_SLOT_BYTES - 1) + b"\n", number * _SLOT_BYTES)
            os.fsync(fd)
        finally:
            os.close(fd)
        part.replace(path)
        directory = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise AnchorError(f"the anchor {path} cannot be made: {error.strerror}") from error


def _text(slot: _Slot) -> bytes:
    body = f"greatseal-anchor-v1 {slot.number:019d}\nsize {slot.head.size:019d}\nroot {slot.head.root.hex()}\n".encode()
    # Every slot has the same length, so that nothing of an older one shines through behind it.
    return body + f"check {hashlib.sha256(body).hexdigest()}\n".encode()


def _parse(slot: bytes) -> _Slot | None:
    match = _TEXT.match(slot)
    if match is None or hashlib.sha256(match[1]).hexdigest().encode() != match[5]:
        return None
    return _Slot(int(match[2]), Anchored(int(match[3]), bytes.fromhex(match[4].decode())))


def _write_all(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
