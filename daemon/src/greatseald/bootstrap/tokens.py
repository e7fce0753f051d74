"""The tokens of one boot: made from the configuration, watched, their keys read whenever one comes up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

import structlog

from greatseald.adapters.tokens.supervisor import SupervisedToken
from greatseald.domain.errors import GreatsealError, TokenUnavailable
from greatseald.ports.tokens import WITHDRAWN, TokenState

if TYPE_CHECKING:
    from greatseald.app.audit import AuditLog
    from greatseald.app.keys import KeyRing
    from greatseald.config import Settings
    from greatseald.ports.metrics import Metrics
    from greatseald.ports.tokens import OperatorAct

_log = structlog.get_logger("greatseald.tokens")

_SETTLE_SECONDS: Final = 15.0
"""The ready line waits so long for tokens that are still starting; one that hangs does not keep the others back."""
_MAX_DETAIL: Final = 512
_PASSING: Final = frozenset({TokenState.STARTING, TokenState.DRAINING})
"""States that are not recorded: what they lead to is."""

Spawn = Callable[[Coroutine[Any, Any, Any]], object]


class TokenWatch:
    """Makes the tokens and follows what becomes of them.

    A change between ready, unavailable, locked, drained and quarantined is recorded in the audit log as `admin` entry
    `token`, what an operator did at a host as `unlock`, `lock`, `change-pin` or `unblock`; whenever a token is ready, its
    keys are read again before anybody waits for them.
    """

    def __init__(self, settings: Settings, metrics: Metrics, on_fatal: Callable[[BaseException], None]) -> None:
        self._metrics = metrics
        self.tokens = {
            each.name: SupervisedToken(
                each, on_state=self._changed, on_touch=self._touch, on_act=self._acted, on_fatal=on_fatal
            )
            for each in settings.token_settings()
        }
        self._recorded: dict[str, TokenState] = {}
        self._were_ready: set[str] = set()
        self._reading: set[asyncio.Task[None]] = set()
        self._keys: KeyRing | None = None
        self._audit: AuditLog | None = None
        self._spawn: Spawn | None = None
        self.on_change: Callable[[], None] = lambda: None
        """Called after each change of a token's state."""

    async def start(self, keys: KeyRing, audit: AuditLog, spawn: Spawn) -> None:
        """Start every token's host and wait until each has come up, or failed, or taken too long."""
        self._keys, self._audit, self._spawn = keys, audit, spawn
        for name, token in self.tokens.items():
            if token.state in WITHDRAWN:  # since before this start, and each start says so again
                self._changed(name, token.state, token.detail)
            await token.start()
        await asyncio.gather(*(token.settled(_SETTLE_SECONDS) for token in self.tokens.values()))
        if self._reading:
            await asyncio.wait(self._reading, timeout=_SETTLE_SECONDS)

    async def stop(self) -> None:
        """End every host after what it works on."""
        self._audit = None
        await asyncio.gather(*(token.stop() for token in self.tokens.values()))

    def _changed(self, name: str, state: TokenState, detail: str) -> None:
        self._metrics.token_state(name, state.value)
        if state is TokenState.READY:
            self._were_ready.add(name)
            _log.info("token_ready", token=name, note=detail)
            self._read_keys(name)
        elif state is TokenState.STARTING:
            _log.info("token_starting", token=name, why=detail)
        else:
            _log.warning("token_not_ready", token=name, state=state.value, why=detail)
        if state is not TokenState.READY and name in self._were_ready:
            self._were_ready.discard(name)
            if state not in WITHDRAWN:
                self._metrics.host_restarted(name, "timeout" if "operation_timeout" in detail else "lost")
        if self._audit is not None and state not in _PASSING and self._recorded.get(name) is not state:
            self._recorded[name] = state
            self._record(name, state, detail)
        self.on_change()

    def _touch(self, name: str, what: str) -> None:
        """Show the operator that somebody has to touch the token; no audit entry, as each signature may want one."""
        self._metrics.touch_awaited(name, bool(what))
        if what:
            _log.warning("token_waits_for_touch", token=name, what=what)
        else:
            _log.info("token_touch_over", token=name)

    async def _acted(self, name: str, act: OperatorAct) -> None:
        """Write what an operator did at the token's host into the log, as `admin` entry named like the act.

        Raises:
            GreatsealError: the log cannot be written.
        """
        if self._audit is None:
            message = f"token {name}: what an operator did is written once the log is open"
            raise TokenUnavailable(message, token=name)
        await self._audit.record_admin(
            act.action,
            token=name,
            result=act.result,
            uid=act.uid,
            user=act.user,
            at=act.at,
            act=act.id,
            detail=act.detail[:_MAX_DETAIL],
        )
        _log.info("operator_acted", token=name, action=act.action, result=act.result, uid=act.uid, user=act.user)

    def _read_keys(self, name: str) -> None:
        if self._keys is None or self._audit is None:
            return
        task = asyncio.get_running_loop().create_task(_read_keys(self._keys, self.tokens[name], self._audit))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    def _record(self, name: str, state: TokenState, detail: str) -> None:
        if self._audit is not None and self._spawn is not None:
            self._spawn(_record(self._audit, name, state, detail[:_MAX_DETAIL]))


async def _read_keys(keys: KeyRing, token: SupervisedToken, audit: AuditLog) -> None:
    try:
        await keys.read_token(token, audit)
    except Exception:  # noqa: BLE001
        # One key that nobody foresaw must not keep the others from signing; it stays unavailable.
        _log.exception("keys_not_read", token=token.name)


async def _record(audit: AuditLog, name: str, state: TokenState, detail: str) -> None:
    try:
        await audit.record_admin("token", token=name, state=state.value, detail=detail)
    except GreatsealError as error:
        _log.error("token_state_not_recorded", token=name, why=error.message)
