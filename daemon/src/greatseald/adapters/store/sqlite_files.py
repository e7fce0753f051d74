"""The files of an SQLite log: where they may lie, who may hold them, what their modes are.

    log.db         the database, 0600; SQLite gives log.db-wal and log.db-shm the same mode
    log.db.lock    locked (flock) by the daemon that owns the database; holds its pid for people

The lock file is never removed: whoever removed it could let a second daemon lock a new file of the
same name. What counts is the lock, which ends with its process, not the text.

Everything here runs before SQLite opens the database: closing any descriptor of an open database
would drop SQLite's own POSIX locks on it.
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

from greatseald.ports.store import StoreUnusable

_MAGIC: Final = b"SQLite format 3\x00"
_HEADER_BYTES: Final = 100

MOUNTS: Final = "/proc/self/mountinfo"

_REMOTE: Final = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "davfs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs",
        "nfs", "nfs4", "ocfs2", "pvfs2", "smb3", "smbfs", "fuse.ceph", "fuse.curlftpfs", "fuse.davfs2",
        "fuse.gcsfuse", "fuse.glusterfs", "fuse.mount.s3fs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs",
    }
)  # fmt: skip
"""File systems on which locks, shared memory or fsync do not hold what SQLite needs of them."""


class LockFile:
    """An exclusive lock beside a database, held until `release` or the end of the process."""

    def __init__(self, database: str) -> None:
        """Take the lock of `database` (a path).

        Raises:
            StoreUnusable: another process holds it (the message names its pid), or the file cannot be made.
        """
        self.path = f"{database}.lock"
        try:
            # 0600 from the first moment, and never through a link that somebody left there.
            self._fd: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnusable(f"cannot make the lock file {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 64, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            self._fd = None
            if not isinstance(error, BlockingIOError):
                raise StoreUnusable(f"cannot lock {self.path}: {error.strerror}") from error
            raise StoreUnusable(
                f"{database} is in use by another process, pid {holder or 'unknown'} (it holds {self.path}). "
                "Stop that process first; one database has one daemon"
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the lock go; idempotent."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def require_place(database: str, mounts: str = MOUNTS) -> None:
    """Check that the directory of `database` exists, is writable and lies on a local file system.

    Raises:
        StoreUnusable: naming the directory and the cure.
    """
    directory = Path(database).parent
    if not directory.is_dir():
        raise StoreUnusable(
            f"the log's directory {directory} does not exist. Make it (mode 0700), or correct [store] url"
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise StoreUnusable(
            f"the log's directory {directory} is not writable for uid {os.geteuid()}. "
            "Give it to the daemon's user (chown, chmod 0700), or mount it read-write"
        )
    kind = file_system(str(directory), mounts)
    if kind in _REMOTE:
        raise StoreUnusable(
            f"the log's directory {directory} lies on {kind}, where SQLite's locks and fsync cannot be relied on. "
            "Put it on a local file system, or use a postgresql:// store"
        )


def file_system(path: str, mounts: str = MOUNTS) -> str:
    """Return the type of the file system that `path` lies on, or "" where the system does not say.

    Source: proc_pid_mountinfo(5): field 5 is the mount point, octal-escaped; the type follows ` - `.
    """
    try:
        lines = Path(mounts).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in lines:
        head, separator, tail = line.partition(" - ")
        fields = head.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # A later mount hides an earlier one at the same point.
        if inside and len(point) >= len(best):
            best, kind = point, tail.split(" ", 1)[0]
    return kind


def prepare(database: str) -> bool:
    """Check the database's file, or make it (empty, 0600); return whether it was there with content.

    Raises:
        StoreUnusable: no regular file, not writable, not an SQLite database.
    """
    path = Path(database)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnusable(
            f"the log's database {path} cannot be opened for writing as uid {os.geteuid()}: {error.strerror}. "
            "It must be a regular file that the daemon's user owns, mode 0600"
        ) from error
    try:
        if not path.is_file():
            raise StoreUnusable(f"the log's database {path} is not a regular file")
        header = os.pread(fd, _HEADER_BYTES, 0)
        os.fsync(fd)
    except OSError as error:
        raise StoreUnusable(f"the log's database {path} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
    sync_directory(path.parent)
    if not header:
        return False
    require_header(header, str(path))
    return True


def close_to_others(database: str) -> None:
    """Take away what group and world may do with the database's files, however they came by it. Raises OSError."""
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{database}{suffix}").chmod(0o600)


def require_header(header: bytes, path: str) -> None:
    """Check the first bytes of an SQLite file (SQLite's file format, section 1.3). Raises StoreUnusable."""
    size = int.from_bytes(header[16:18], "big")
    # 1 stands for 65,536, which does not fit into the field.
    sound = size == 1 or (size >= 512 and size & (size - 1) == 0)
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC) or not sound:
        raise StoreUnusable(
            f"{path} is damaged or not an SQLite database: its header is wrong. Restore it from a backup"
        )


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
