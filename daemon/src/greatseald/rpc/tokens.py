"""TokenService: what a caller may know of the tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from greatseal.algorithms import Algorithm
from greatseal.v1 import token_pb2
from greatseald.domain.errors import ArgumentInvalid, TokenUnknown
from greatseald.domain.policy import READ_KEYS, READ_TOKENS
from greatseald.ports.tokens import TokenState
from greatseald.rpc import conversion

if TYPE_CHECKING:
    from collections.abc import Mapping

    import grpc

    from greatseald.app.access import Access
    from greatseald.app.keys import KeyRing
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
}


class TokenService:
    """`greatseal.v1.TokenService`."""

    def __init__(self, tokens: Mapping[str, Token], keys: KeyRing, access: Access) -> None:
        self._tokens = tokens
        self._keys = keys
        self._access = access

    def handlers(self, gate: Gate) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The methods by path."""
        return {
            _SERVICE + "GetToken": gate.unary(
                _SERVICE + "GetToken", token_pb2.GetTokenRequest.FromString, self.get_token
            ),
            _SERVICE + "ListTokens": gate.unary(
                _SERVICE + "ListTokens", token_pb2.ListTokensRequest.FromString, self.list_tokens
            ),
        }

    async def get_token(self, call: Call, request: token_pb2.GetTokenRequest) -> token_pb2.Token:
        """Return one token."""
        await self._access.require(call.caller, call.peer, READ_TOKENS)
        match = _NAME.fullmatch(request.name)
        if match is None:
            message = f"{request.name[:80]!r} is not a token's name: write tokens/NAME"
            raise ArgumentInvalid(message, field="name")
        token = self._tokens.get(match[1])
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
