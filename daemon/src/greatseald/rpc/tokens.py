"""TokenService: what a caller may know of the tokens, and taking them out of service."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from greatseal.algorithms import Algorithm
from greatseal.v1 import token_pb2
from greatseald.domain.errors import ArgumentInvalid, TokenUnknown
from greatseald.domain.policy import DRAIN, QUARANTINE, READ_KEYS, READ_TOKENS, RESUME
from greatseald.ports.tokens import BreakerState, TokenState
from greatseald.rpc import conversion

if TYPE_CHECKING:
    from collections.abc import Mapping

    import grpc

    from greatseald.app.access import Access
    from greatseald.app.keys import KeyRing
    from greatseald.app.tokens import TokenControl
    from greatseald.ports.tokens import Token
    from greatseald.rpc.gate import Call, Gate

_SERVICE: Final = "/greatseal.v1.TokenService/"
_PAGE: Final = 50
_MAX_PAGE: Final = 1000
_NAME: Final = re.compile(r"tokens/([^/]{1,63})")
_STATES: Final[dict[TokenState, token_pb2.TokenState.ValueType]] = {
    TokenState.STARTING: token_pb2.STARTING,
    TokenState.READY: token_pb2.READY,
    TokenState.UNAVAILABLE: token_pb2.UNREACHABLE,
    TokenState.LOCKED: token_pb2.LOCKED,
    TokenState.DRAINING: token_pb2.DRAINING,
    TokenState.DRAINED: token_pb2.DRAINED,
    TokenState.QUARANTINED: token_pb2.QUARANTINED,
}
_BREAKERS: Final[dict[BreakerState, token_pb2.BreakerState.ValueType]] = {
    BreakerState.CLOSED: token_pb2.CLOSED,
    BreakerState.OPEN: token_pb2.OPEN,
    BreakerState.HALF_OPEN: token_pb2.HALF_OPEN,
}


_Change = token_pb2.DrainTokenRequest | token_pb2.QuarantineTokenRequest | token_pb2.ResumeTokenRequest


class TokenService:
    """`greatseal.v1.TokenService`."""

    def __init__(self, tokens: Mapping[str, Token], keys: KeyRing, access: Access, control: TokenControl) -> None:
        self._tokens = tokens
        self._keys = keys
        self._access = access
        self._control = control

    def handlers(self, gate: Gate) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The methods by path."""
        return {
            _SERVICE + "GetToken": gate.unary(
                _SERVICE + "GetToken", token_pb2.GetTokenRequest.FromString, self.get_token
            ),
            _SERVICE + "ListTokens": gate.unary(
                _SERVICE + "ListTokens", token_pb2.ListTokensRequest.FromString, self.list_tokens
            ),
            _SERVICE + "DrainToken": gate.unary(
                _SERVICE + "DrainToken", token_pb2.DrainTokenRequest.FromString, self.drain_token
            ),
            _SERVICE + "QuarantineToken": gate.unary(
                _SERVICE + "QuarantineToken", token_pb2.QuarantineTokenRequest.FromString, self.quarantine_token
            ),
            _SERVICE + "ResumeToken": gate.unary(
                _SERVICE + "ResumeToken", token_pb2.ResumeTokenRequest.FromString, self.resume_token
            ),
        }

    async def get_token(self, call: Call, request: token_pb2.GetTokenRequest) -> token_pb2.Token:
        """Return one token."""
        await self._access.require(call.caller, call.peer, READ_TOKENS)
        token = self._tokens.get(_bare(request.name))
        if token is None:
            message = f"there is no token {request.name}: `greatseal tokens list` shows those that there are"
            raise TokenUnknown(message, token=request.name)
        return self._shown(call, token)

    async def list_tokens(self, call: Call, request: token_pb2.ListTokensRequest) -> token_pb2.ListTokensResponse:
        """Return a page of the tokens, by name."""
        await self._access.require(call.caller, call.peer, READ_TOKENS)
        size = conversion.page_size(request.page_size, _PAGE, _MAX_PAGE)
        after = conversion.read_page_token("tokens", request.page_token) if request.page_token else ""
        names = sorted(name for name in self._tokens if name > after)
        following = conversion.write_page_token("tokens", names[size - 1]) if len(names) > size else ""
        shown = [self._shown(call, self._tokens[name]) for name in names[:size]]
        return token_pb2.ListTokensResponse(tokens=shown, next_page_token=following)

    async def drain_token(self, call: Call, request: token_pb2.DrainTokenRequest) -> token_pb2.Token:
        """Have a token finish what it has, and take nothing new."""
        return await self._change(call, DRAIN, request)

    async def quarantine_token(self, call: Call, request: token_pb2.QuarantineTokenRequest) -> token_pb2.Token:
        """Take a token out of service at once."""
        return await self._change(call, QUARANTINE, request)

    async def resume_token(self, call: Call, request: token_pb2.ResumeTokenRequest) -> token_pb2.Token:
        """Put a token back into service."""
        return await self._change(call, RESUME, request)

    async def _change(self, call: Call, action: str, request: _Change) -> token_pb2.Token:
        policy = await self._access.require(call.caller, call.peer, action)
        token = await self._control.change(
            call.caller, call.peer, policy, action, _bare(request.name), request.reason, request.request_id
        )
        return self._shown(call, token)

    def _shown(self, call: Call, token: Token) -> token_pb2.Token:
        rules = [rule for _, rule in self._access.rules_of(call.caller)]
        held = [
            (version, holding)
            for version in self._keys.versions()
            for holding in version.holdings
            if holding.token is token
        ]
        names = {version.key for version, _ in held}
        proven = {algorithm for _, holding in held for algorithm in holding.algorithms}
        info = token.info
        shown = token_pb2.Token(
            name=f"tokens/{token.name}",
            state=_STATES[token.state],
            state_detail=token.detail or token.awaited,
            keys=sorted(f"keys/{name}" for name in names if any(rule.allows(READ_KEYS, name, "") for rule in rules)),
        )
        load = token.load
        shown.waiting, shown.in_flight, shown.breaker = load.waiting, load.in_flight, _BREAKERS[load.breaker]
        if load.operation_seconds:
            shown.operation_time.FromMicroseconds(int(load.operation_seconds * 1e6))
        if load.last_success:
            shown.last_success_time.FromMilliseconds(int(load.last_success * 1e3))
        if info is not None:
            shown.serial, shown.label, shown.manufacturer = info.serial, info.label, info.manufacturer
            shown.model, shown.firmware, shown.sessions = info.model, info.firmware, info.sessions
            shown.capabilities.extend(
                token_pb2.Capability(
                    algorithm=conversion.algorithm_to_wire(algorithm),
                    advertised=algorithm in info.advertised,
                    proven=algorithm in proven,
                )
                for algorithm in Algorithm
                if algorithm in info.advertised or algorithm in proven
            )
        return shown


def _bare(resource: str) -> str:
    match = _NAME.fullmatch(resource)
    if match is None:
        message = f"{resource[:80]!r} is not a token's name: write tokens/NAME"
        raise ArgumentInvalid(message, field="name")
    return match[1]
