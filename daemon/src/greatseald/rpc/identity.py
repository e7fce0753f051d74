"""IdentityService: how the daemon sees the caller. It needs no rule."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from greatseal.v1 import identity_pb2

if TYPE_CHECKING:
    import grpc

    from greatseald.app.access import Access
    from greatseald.rpc.gate import Call, Gate

_SERVICE: Final = "/greatseal.v1.IdentityService/"


class IdentityService:
    """`greatseal.v1.IdentityService`."""

    def __init__(self, access: Access, *, version: str, origin: str) -> None:
        self._access = access
        self._version = version
        self._origin = origin

    def handlers(self, gate: Gate) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The methods by path."""
        return {
            _SERVICE + "WhoAmI": gate.unary(_SERVICE + "WhoAmI", identity_pb2.WhoAmIRequest.FromString, self.who_am_i)
        }

    async def who_am_i(self, call: Call, _request: identity_pb2.WhoAmIRequest) -> identity_pb2.WhoAmIResponse:
        """Tell the caller who it is and what it may do."""
        caller = call.caller
        grants = [
            identity_pb2.Grant(
                policy_id=policy_id,
                actions=rule.actions,
                keys=[f"keys/{name}" for name in rule.keys],
                payload_types=rule.payload_types,
            )
            for policy_id, rule in self._access.rules_of(caller)
        ]
        return identity_pb2.WhoAmIResponse(
            client=caller.id,
            certificate_serial=caller.serial,
            certificate_sha256=caller.cert_sha256,
            certificate_expiry=caller.not_after.strftime("%Y-%m-%dT%H:%M:%SZ"),
            grants=grants,
            server_version=self._version,
            log_origin=self._origin,
            server_time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        )
