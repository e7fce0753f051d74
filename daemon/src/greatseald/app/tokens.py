"""Taking tokens out of service and putting them back, as an operator asks.

    commit the admin entry → remember → effect

Draining finishes what was accepted; a quarantine finishes only what a host has, and what waits fails, certainly
not signed. Either way the token's host ends, and the token stays out across restarts until it is
resumed. What an operator asks holds for this daemon; other fronts have tokens of their own.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import structlog

from greatseald.app.admission import parse_request_id
from greatseald.domain.errors import ArgumentInvalid, LogUnavailable, RequestIdReused, TokenUnknown
from greatseald.domain.policy import DRAIN, QUARANTINE
from greatseald.ports.tokens import TokenState
from greatseald.ports.withdrawals import Withdrawal, WithdrawalsUnusable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from greatseald.app.audit import AuditLog
    from greatseald.domain.entries import Policy
    from greatseald.domain.identity import Caller
    from greatseald.ports.tokens import Token
    from greatseald.ports.withdrawals import Withdrawals

_log = structlog.get_logger("greatseald.tokens")

_MAX_REASON: Final = 512
_MAX_REQUESTS: Final = 1024
_WITHDRAWALS: Final = {DRAIN: TokenState.DRAINED, QUARANTINE: TokenState.QUARANTINED}


class TokenControl:
    """The tokens' operators' requests, one at a time. Belongs to the event loop."""

    def __init__(self, tokens: Mapping[str, Token], memory: Withdrawals, log: AuditLog) -> None:
        self._tokens = tokens
        self._memory = memory
        self._log = log
        self._one_at_a_time = asyncio.Lock()
        self._answered: OrderedDict[tuple[str, bytes], bytes] = OrderedDict()

    def recall(self) -> None:
        """Withdraw what was withdrawn before the restart. Called before the tokens are started.

        Raises:
            WithdrawalsUnusable: it is not known.
        """
        for name, (state, why) in self._memory.read().items():
            if name in self._tokens:
                self._tokens[name].withdraw(state, why)

    async def change(
        self, caller: Caller, peer: str, policy: Policy, action: str, name: str, reason: str, request_id: str
    ) -> Token:
        """Carry out one of the actions drainToken, quarantineToken and resumeToken, which `policy` allows; return the token.

        The same request again changes nothing. So does what is so already, but for its entry in the log.

        Raises:
            ArgumentInvalid: the request id or the reason is malformed, or a quarantined token is to be drained.
            TokenUnknown: there is no such token.
            RequestIdReused: another request was made under this id.
            LogUnavailable: it cannot be recorded or remembered; nothing has changed.
        """
        identity = caller.id, parse_request_id(request_id)
        if len(reason) > _MAX_REASON or not reason.isprintable():
            message = f"reason is one line of at most {_MAX_REASON} characters"
            raise ArgumentInvalid(message, field="reason")
        token = self._tokens.get(name)
        if token is None:
            message = f"there is no token tokens/{name[:63]}: `greatseal tokens list` shows those that there are"
            raise TokenUnknown(message, token=f"tokens/{name[:63]}")
        request = hashlib.sha256(f"{action}\0{name}\0{reason}".encode()).digest()
        async with self._one_at_a_time:
            before = self._answered.get(identity)
            if before is not None and before != request:
                raise RequestIdReused.of(request_id)
            if before is None:
                if action == DRAIN and token.state is TokenState.QUARANTINED:
                    message = f"token {name} is quarantined, which is more than drained: resume it first"
                    raise ArgumentInvalid(message, field="name")
                self._log.require_writable()
                await self._log.record_admin(
                    "token",
                    token=name,
                    asked=action,
                    why=reason,
                    client=caller.id,
                    cert_serial=caller.serial,
                    peer=peer,
                    policy=list(policy.ids),
                    request=request_id,
                )
                await self._carry_out(token, action, reason)
                self._answered[identity] = request
                while len(self._answered) > _MAX_REQUESTS:
                    self._answered.popitem(last=False)
        return token

    async def _carry_out(self, token: Token, action: str, reason: str) -> None:
        state = _WITHDRAWALS.get(action)
        if state is None:
            await self._remember(lambda: self._memory.remove(token.name))
            _log.warning("token_resumed", token=token.name, why=reason)
            await token.restore()
            return
        why = f"token {token.name}: an operator has {state.value} it: {reason or 'no reason was given'}"
        await self._remember(lambda: self._memory.put(token.name, Withdrawal(state, why)))
        _log.warning("token_withdrawn", token=token.name, state=state.value, why=reason)
        token.withdraw(state, why)

    async def _remember(self, change: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(change)
        except WithdrawalsUnusable as error:
            raise LogUnavailable(f"nothing has changed, because it would be forgotten at a restart: {error}") from error
