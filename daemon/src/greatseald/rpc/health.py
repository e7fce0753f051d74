"""`grpc.health.v1.Health`, the standard health service, over its two small messages.

The messages have one field each, so they are read and written here rather than by a further
dependency: `HealthCheckRequest{string service = 1}`, `HealthCheckResponse{ServingStatus status = 1}`
(https://github.com/grpc/grpc/blob/master/doc/health-checking.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError

from greatseald.domain.errors import EntryNotFound, Overloaded
from greatseald.domain.policy import READ_TOKENS
from greatseald.ports.tokens import TokenState

if TYPE_CHECKING:
    from collections.abc import Mapping

    import grpc

    from greatseald.app.access import Access
    from greatseald.domain.identity import Caller
    from greatseald.ports.tokens import Token
    from greatseald.rpc.gate import Call, Gate

_SERVICE: Final = "/grpc.health.v1.Health/"
_MAX_WATCHERS: Final = 256
_SERVED: Final = frozenset(
    {"", "grpc.health.v1.Health"} | {f"greatseal.v1.{name}Service" for name in ("Signing", "Key", "Audit", "Identity")}
)

_TOKENS: Final = "greatseal.v1.tokens/"

_SERVING: Final = 1
_NOT_SERVING: Final = 2
_SERVICE_UNKNOWN: Final = 3


@dataclass(frozen=True, slots=True)
class _Status:
    """HealthCheckResponse."""

    status: int

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """Field 1, varint."""
        return bytes((0x08, self.status))


class HealthService:
    """Says whether this front can sign: one answer for every service, for they share the log.

    And, as `greatseal.v1.tokens/NAME`, whether a token is ready, to those who may read tokens; for
    others there is no such service.
    """

    def __init__(self, tokens: Mapping[str, Token], access: Access) -> None:
        self._tokens = tokens
        self._access = access
        self._serving = False
        self._closing = False
        self._changed = asyncio.Event()
        self._watchers = 0

    @property
    def serving(self) -> bool:
        """What is answered now."""
        return self._serving

    def set_serving(self, serving: bool) -> None:
        """Answer so from now on, and tell those who watch."""
        if serving != self._serving:
            self._serving = serving
            self._wake()

    def tokens_changed(self) -> None:
        """Tell those who watch a token what has become of it."""
        self._wake()

    def close(self) -> None:
        """Answer NOT_SERVING and end every watch, so that a drain need not wait for them."""
        self._serving = False
        self._closing = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def handlers(self, gate: Gate) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The methods by path."""
        return {
            _SERVICE + "Check": gate.unary(_SERVICE + "Check", parse_service, self.check, always=True),
            _SERVICE + "Watch": gate.stream(_SERVICE + "Watch", parse_service, self.watch),
        }

    def _status(self, caller: Caller, service: str) -> _Status:
        token = self._token(caller, service)
        if token is not None:
            ready = token.state is TokenState.READY and not self._closing
            return _Status(_SERVING if ready else _NOT_SERVING)
        if service not in _SERVED:
            return _Status(_SERVICE_UNKNOWN)
        return _Status(_SERVING if self._serving else _NOT_SERVING)

    def _token(self, caller: Caller, service: str) -> Token | None:
        """The token that a service's name means to this caller."""
        name = service.removeprefix(_TOKENS)
        if name == service or not self._access.rules.decide(caller, READ_TOKENS):
            return None
        return self._tokens.get(name)

    async def check(self, call: Call, service: str) -> _Status:
        """Answer once."""
        status = self._status(call.caller, service)
        if status.status == _SERVICE_UNKNOWN:
            raise EntryNotFound(f"there is no service {service[:80]!r} here")
        return status

    async def watch(self, call: Call, service: str) -> AsyncIterator[_Status]:
        """Answer now and at each change."""
        if self._watchers >= _MAX_WATCHERS:
            raise Overloaded(f"{_MAX_WATCHERS} callers watch the health already, and that is the limit")
        self._watchers += 1
        try:
            sent = None
            while True:
                # Before the status is sent, which takes a while: it may close meanwhile.
                changed, closing = self._changed, self._closing
                status = self._status(call.caller, service)
                if status != sent:
                    yield status
                    sent = status
                if closing:
                    return
                await changed.wait()
        finally:
            self._watchers -= 1


def parse_service(data: bytes) -> str:
    """Read HealthCheckRequest: the service's name.

    Raises:
        DecodeError: the bytes are no such message, or carry anything more.
    """
    if not data:
        return ""
    length = data[1] if len(data) > 1 else 0
    if data[0] != 0x0A or length > 127 or len(data) != 2 + length:
        raise DecodeError("not a HealthCheckRequest")
    try:
        return data[2:].decode()
    except UnicodeDecodeError as error:
        raise DecodeError("not UTF-8") from error
