"""The other end of the admin socket: what the daemon's own commands ask of a daemon that runs.

answer = backup(Path("run/admin.sock"), Path("/backup/log.db"))     # None where no daemon listens
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote

import grpc

from greatseal.v1 import admin_pb2, admin_pb2_grpc

CONNECT_SECONDS: Final = 5.0
BACKUP_SECONDS: Final = 3600.0
ANSWER_SECONDS: Final = 120.0


class AdminRefused(Exception):
    """The daemon answered with an error; the message is the daemon's, `code` gRPC's name for its kind."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class BackupMade:
    """The size of the copied log in entries, and of the copy in bytes."""

    log_size: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class KeyReleased:
    """Why the key had been halted, and the SHA-256 of the public key that it signs with now, hexadecimal."""

    halted: str
    spki_sha256: str


def backup(socket: Path, target: Path) -> BackupMade | None:
    """Let the daemon behind `socket` write a copy of its store to `target`; return None if nobody listens there.

    Raises:
        AdminRefused: the daemon could not, and says why.
    """
    request = admin_pb2.BackupRequest(path=str(target))
    answer = _ask(socket, lambda stub: stub.Backup(request, timeout=BACKUP_SECONDS))
    return None if answer is None else BackupMade(answer.log_size, answer.bytes)


def reload(socket: Path) -> list[str] | None:
    """Let the daemon read its configuration again; return what took effect and what waits, None if nobody listens.

    Raises:
        AdminRefused: the file has problems, or the reload cannot be recorded; the old settings stay.
    """
    answer = _ask(socket, lambda stub: stub.Reload(admin_pb2.ReloadRequest(), timeout=ANSWER_SECONDS))
    return None if answer is None else list(answer.notes)


def release_key(socket: Path, name: str, reason: str) -> KeyReleased | None:
    """Let the daemon put a halted key back to work; return None if nobody listens.

    Raises:
        AdminRefused: there is no such key, it is not halted, or its token or the log cannot be used.
    """
    request = admin_pb2.ReleaseKeyRequest(name=name, reason=reason)
    answer = _ask(socket, lambda stub: stub.ReleaseKey(request, timeout=ANSWER_SECONDS))
    return None if answer is None else KeyReleased(answer.halted, answer.spki_sha256)


@dataclass(frozen=True, slots=True)
class PruneBegun:
    """Entries below `size` go, by the admin entry at `entry`; see the proto."""

    size: int
    root: bytes
    entry: int
    limit: str
    by_owner: bool


def prune(
    socket: Path, directory: str, checkpoint: str, *, before: int | None, older_than_days: int | None
) -> PruneBegun | None:
    """Let the daemon record that entries go which an export holds, and drop them; return None if nobody listens.

    Raises:
        AdminRefused: the checkpoint is not its log's, or nothing may go.
    """
    request = admin_pb2.PruneLogRequest(
        directory=directory, checkpoint=checkpoint, before=before, older_than_days=older_than_days
    )
    answer = _ask(socket, lambda stub: stub.PruneLog(request, timeout=ANSWER_SECONDS))
    if answer is None:
        return None
    return PruneBegun(answer.size, answer.root, answer.entry, answer.limit, answer.by_owner)


def reindex(socket: Path) -> int | None:
    """Let the daemon build its search index anew; return how many entries it has to read, None if nobody listens.

    Raises:
        AdminRefused: it keeps none.
    """
    answer = _ask(socket, lambda stub: stub.RebuildIndex(admin_pb2.RebuildIndexRequest(), timeout=ANSWER_SECONDS))
    return None if answer is None else int(answer.entries)


def _ask(socket: Path, call: Callable[[admin_pb2_grpc.AdminServiceStub], Any]) -> Any:
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
            return call(admin_pb2_grpc.AdminServiceStub(channel))
        except grpc.RpcError as error:
            refused = cast("grpc.Call", error)
            raise AdminRefused(refused.details() or "no reason was given", refused.code().name) from error
