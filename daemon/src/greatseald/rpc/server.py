"""The two servers: the network's, over mTLS, and the operator's, on a Unix socket.

Every limit is set by name, because gRPC's defaults are chosen for friends: 4 MiB messages, handshakes
of two minutes, connections that live for ever, unlimited streams.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc

from greatseald.config import ServerSettings, split_endpoint
from greatseald.rpc.gate import Handlers

if TYPE_CHECKING:
    from greatseald.rpc.tls import ServerCertificates

_MAX_METADATA: Final = 8 * 1024
_MAX_RESPONSE: Final = 64 * 1024 * 1024
"""A batch of 1,000 with two entries of 16 KiB each is 32 MiB, and proofs."""
_SPARE_CALLS: Final = 64
"""gRPC's own limit of calls is so far above ours, whose refusal says when to come back."""

Methods: TypeAlias = "dict[str, grpc.RpcMethodHandler[Any, Any]]"


class CannotListenError(Exception):
    """The address cannot be listened on; the message says which and why."""


def _options(settings: ServerSettings) -> list[tuple[str, Any]]:
    return [
        # A second daemon on the port has to fail, not to share it.
        ("grpc.so_reuseport", 0),
        ("grpc.server_handshake_timeout_ms", int(settings.handshake_timeout * 1000)),
        # What is over our own limit by no more than a quarter gets an answer with a reason; the rest gRPC cuts off.
        ("grpc.max_receive_message_length", settings.max_message_bytes + settings.max_message_bytes // 4),
        ("grpc.max_send_message_length", _MAX_RESPONSE),
        ("grpc.max_concurrent_streams", settings.max_concurrent_calls + _SPARE_CALLS),
        ("grpc.max_metadata_size", _MAX_METADATA),
        ("grpc.absolute_max_metadata_size", 2 * _MAX_METADATA),
        # Old connections keep the certificates and CAs of their handshake: they end, with the calls on them
        # (without a grace period a stream outlives the age).
        ("grpc.max_connection_age_ms", int(settings.max_connection_age * 1000)),
        ("grpc.max_connection_age_grace_ms", int(settings.max_connection_age_grace * 1000)),
        ("grpc.max_connection_idle_ms", int(settings.max_connection_age * 1000)),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 2),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.default_compression_algorithm", 0),
    ]


class NetworkServer:
    """Serves the API over mTLS."""

    def __init__(self, settings: ServerSettings, certificates: ServerCertificates, methods: Methods) -> None:
        self._settings = settings
        self._server = grpc.aio.server(
            options=_options(settings), maximum_concurrent_rpcs=settings.max_concurrent_calls + _SPARE_CALLS
        )
        self._server.add_generic_rpc_handlers((Handlers(methods),))
        self._certificates = certificates

    def bind(self) -> str:
        """Take the address; return it with the real port, as `HOST:PORT`.

        Raises:
            CannotListenError: it is in use, not ours, or not permitted.
        """
        listen = self._settings.listen
        host, _ = split_endpoint(listen)
        try:
            port = self._server.add_secure_port(listen, self._certificates.credentials())
        except RuntimeError as error:
            message = f"cannot listen on {listen}: it is in use already (another greatseald?), or not an address of this machine"
            raise CannotListenError(message) from error
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Begin to answer."""
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Take no more connections or calls, and give those under way `grace` seconds."""
        await self._server.stop(grace)


class AdminServer:
    """Serves the operator on a Unix socket of mode 0600 in a directory of mode 0700."""

    def __init__(self, path: Path, methods: Methods) -> None:
        self._path = path
        self._server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", 64 * 1024)], maximum_concurrent_rpcs=8
        )
        self._server.add_generic_rpc_handlers((Handlers(methods),))

    async def start(self) -> None:
        """Take the socket and begin to answer.

        Raises:
            CannotListenError: the socket cannot be made.
        """
        try:
            self._server.add_insecure_port(f"unix:{self._path}")
            self._path.chmod(0o600)
        except (RuntimeError, OSError) as error:
            message = f"cannot make the admin socket {self._path}: its directory must exist and be writable"
            raise CannotListenError(message) from error
        await self._server.start()

    async def stop(self) -> None:
        """End, and take the socket away."""
        await self._server.stop(0.5)
        self._path.unlink(missing_ok=True)


def private_directory(path: Path) -> None:
    """Make a directory that only its owner can enter, or check that an existing one is so.

    Raises:
        CannotListenError: others can enter it, or it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        message = f"cannot make the directory {path} for the admin socket: {error.strerror}"
        raise CannotListenError(message) from error
    if status.st_mode & 0o077:
        message = f"others can enter {path}, where the admin socket goes: run chmod 700 {path}"
        raise CannotListenError(message)
    if status.st_uid != os.geteuid():
        message = f"{path}, where the admin socket goes, belongs to another user: run chown {os.geteuid()} {path}"
        raise CannotListenError(message)
