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
