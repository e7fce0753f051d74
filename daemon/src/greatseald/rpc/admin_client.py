"""The other end of the admin socket: what the daemon's own commands ask of a daemon that runs.

answer = backup(Path("run/admin.sock"), Path("/backup/log.db"))     # None where no daemon listens
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast
from urllib.parse import quote

import grpc

from greatseal.v1 import admin_pb2, admin_pb2_grpc

CONNECT_SECONDS: Final = 5.0
BACKUP_SECONDS: Final = 3600.0


class AdminRefused(Exception):
    """The daemon answered with an error; the message is the daemon's."""


@dataclass(frozen=True, slots=True)
class BackupMade:
    """The size of the copied log in entries, and of the copy in bytes."""

    log_size: int
    size_bytes: int


def backup(socket: Path, target: Path) -> BackupMade | None:
    """Let the daemon behind `socket` write a copy of its store to `target`; return None if nobody listens there.

    Raises:
        AdminRefused: the daemon could not, and says why.
    """
    if not socket.is_socket():
        return None
    # A Unix socket has no host name: without an authority gRPC would send the path as one.
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{quote(str(socket))}", options=options) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            return None
        try:
            answer = admin_pb2_grpc.AdminServiceStub(channel).Backup(
                admin_pb2.BackupRequest(path=str(target)), timeout=BACKUP_SECONDS
            )
        except grpc.RpcError as error:
            raise AdminRefused(cast("grpc.Call", error).details()) from error
    return BackupMade(answer.log_size, answer.bytes)
