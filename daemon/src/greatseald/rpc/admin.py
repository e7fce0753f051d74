"""AdminService: what the operator asks over the admin socket. The file system says who may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from greatseal.v1 import admin_pb2
from greatseald.domain.errors import ArgumentInvalid
from greatseald.rpc.gate import local

if TYPE_CHECKING:
    import grpc

_SERVICE: Final = "/greatseal.v1.AdminService/"
_MAX_REASON: Final = 1024


class Operations(Protocol):
    """What can be asked of the running daemon."""

    async def backup(self, path: str) -> tuple[int, int]:
        """Copy the store to `path`; return the copy's log size in entries and its size in bytes."""
        ...

    async def reload(self) -> list[str]:
        """Read the configuration again; return what took effect and what did not, a sentence each."""
        ...

    async def release_key(self, name: str, reason: str) -> tuple[str, str]:
        """Put the halted key `name` back to work; return why it was halted and its public key's SHA-256."""
        ...

    async def reindex(self) -> int:
        """Build the search index anew; return how many entries there are to read."""
        ...

    async def prune(self, *, before: int | None, older_than: float | None, directory: str, note: str) -> Pruning:
        """Record that entries go which an export holds, and begin to drop them."""
        ...


class Pruning(Protocol):
    """Entries that are being dropped: those below `target`, by the admin entry at `entry`."""

    @property
    def target(self) -> int: ...
    @property
    def root(self) -> bytes: ...
    @property
    def entry(self) -> int: ...
    @property
    def limit(self) -> str: ...
    @property
    def by_owner(self) -> bool: ...


class AdminService:
    """`greatseal.v1.AdminService`."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The methods by path."""
        return {
            _SERVICE + "Backup": local(_SERVICE + "Backup", admin_pb2.BackupRequest.FromString, self.backup),
            _SERVICE + "Reload": local(_SERVICE + "Reload", admin_pb2.ReloadRequest.FromString, self.reload),
            _SERVICE + "ReleaseKey": local(
                _SERVICE + "ReleaseKey", admin_pb2.ReleaseKeyRequest.FromString, self.release_key
            ),
            _SERVICE + "RebuildIndex": local(
                _SERVICE + "RebuildIndex", admin_pb2.RebuildIndexRequest.FromString, self.rebuild_index
            ),
            _SERVICE + "PruneLog": local(_SERVICE + "PruneLog", admin_pb2.PruneLogRequest.FromString, self.prune_log),
        }

    async def backup(self, request: admin_pb2.BackupRequest) -> admin_pb2.BackupResponse:
        """Write a copy of the store."""
        log_size, size = await self._operations.backup(request.path)
        return admin_pb2.BackupResponse(log_size=log_size, bytes=size)

    async def reload(self, _request: admin_pb2.ReloadRequest) -> admin_pb2.ReloadResponse:
        """Reload the configuration."""
        return admin_pb2.ReloadResponse(notes=await self._operations.reload())

    async def release_key(self, request: admin_pb2.ReleaseKeyRequest) -> admin_pb2.ReleaseKeyResponse:
        """Release a halted key."""
        if len(request.reason) > _MAX_REASON:
            message = f"reason has {len(request.reason)} characters, and {_MAX_REASON} is the limit"
            raise ArgumentInvalid(message, field="reason")
        why, spki_sha256 = await self._operations.release_key(request.name.removeprefix("keys/"), request.reason)
        return admin_pb2.ReleaseKeyResponse(halted=why, spki_sha256=spki_sha256)

    async def prune_log(self, request: admin_pb2.PruneLogRequest) -> admin_pb2.PruneLogResponse:
        """Drop entries."""
        begun = await self._operations.prune(
            before=request.before if request.HasField("before") else None,
            older_than=request.older_than_days * 86_400.0 if request.HasField("older_than_days") else None,
            directory=request.directory,
            note=request.checkpoint,
        )
        return admin_pb2.PruneLogResponse(
            size=begun.target, root=begun.root, entry=begun.entry, limit=begun.limit, by_owner=begun.by_owner
        )

    async def rebuild_index(self, _request: admin_pb2.RebuildIndexRequest) -> admin_pb2.RebuildIndexResponse:
        """Build the search index anew."""
        return admin_pb2.RebuildIndexResponse(entries=await self._operations.reindex())
