"""gRPC server reflection, off unless `[server] reflection = true`: grpcurl and the like ask what there is.

It passes the gate as everything does, and needs the action `reflect`, asked anew for every message.
Both names of the protocol are served, v1 and v1alpha, whose messages are the same
(https://github.com/grpc/grpc/blob/master/doc/server-reflection.md). The services listed are those of
the network's port.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from grpc_reflection.v1alpha import reflection, reflection_pb2

from greatseald.domain.policy import REFLECT

if TYPE_CHECKING:
    import grpc

    from greatseald.app.access import Access
    from greatseald.rpc.gate import Call, Gate

_METHODS: Final = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")
)
_SERVICES: Final = tuple(f"greatseal.v1.{name}Service" for name in ("Audit", "Identity", "Key", "Signing", "Token"))


class ReflectionService:
    """`grpc.reflection.v1.ServerReflection`."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._servicer = reflection.aio.ReflectionServicer(_SERVICES)

    def handlers(self, gate: Gate) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The methods by path."""
        parse = reflection_pb2.ServerReflectionRequest.FromString
        return {path: gate.dialog(path, parse, self.answer) for path in _METHODS}

    def answer(self, call: Call, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Answer each request of a stream, as long as the caller is allowed to ask."""
        answers: AsyncIterator[Any] = self._servicer.ServerReflectionInfo(self._allowed(call, requests), None)
        return answers

    async def _allowed(self, call: Call, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            await self._access.require(call.caller, call.peer, REFLECT)
            yield request
