"""AF_UNIX sockets of token hosts: made with their rights from the first moment, peers known by the kernel's word."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

BACKLOG: Final = 16
_CREDENTIALS: Final = struct.Struct("3i")


class SocketUnusable(Exception):
    """A socket cannot be made; the message names its path and what to do."""


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end (SO_PEERCRED): who connected, or who listened."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    return int(uid)


def bind(path: Path, group: int | None = None) -> socket.socket:
    """Listen on an AF_UNIX path, mode 0600, or 0660 for `group`; a stale socket there is replaced.

    Raises:
        SocketUnusable: somebody listens there, something else is there, or it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        if group is not None:
            os.chown(path, -1, group)
            path.chmod(0o660)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        message = f"socket {path} cannot be made: {error.strerror or error}"
        raise SocketUnusable(message) from error
    except SocketUnusable:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _remove_stale(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        message = f"{path} is there and is no socket: move it away"
        raise SocketUnusable(message)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                raise
            path.unlink()
            return
    message = f"another host listens on {path}"
    raise SocketUnusable(message)
