"""When a token that fails is tried again: at once, soon, then after a growing while; never not at all.

    failures     0        1, 2                      3 and more
    breaker      closed   closed, restart at once   open, for 1 s, 2 s, … 30 s, then half-open: one try

A fresh host that is ready is the first half of a try, and makes the breaker half-open. `trying` is
true from the failure until an operation succeeds, and limits the token to one operation at a time,
so that a module that crashes on every signature costs one `unknown` a try and not a window full of them.
"""

from __future__ import annotations

from typing import Final

from greatseald.domain.tokens import TokenSettings
from greatseald.ports.tokens import BreakerState

_DELAYS: Final = (0.0, 0.2, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
_CLOSED_FAILURES: Final = 2


_REPLUG_SECONDS: Final = 2.0


def breaker_of(settings: TokenSettings) -> Breaker:
    """The breaker of a token: a person who puts a YubiKey back waits for it, so it is soon looked for again."""
    return Breaker(_REPLUG_SECONDS if settings.kind == "yubikey-piv" else None)


class Breaker:
    """The failures of one token since its last success; `longest` is the longest pause, in seconds, that it makes."""

    def __init__(self, longest: float | None = None) -> None:
        self._failures = 0
        self._probing = False
        self._longest = _DELAYS[-1] if longest is None else longest

    @property
    def state(self) -> BreakerState:
        """What it does with the token."""
        if self._failures and self._probing:
            return BreakerState.HALF_OPEN
        return BreakerState.OPEN if self._failures > _CLOSED_FAILURES else BreakerState.CLOSED

    @property
    def open(self) -> bool:
        """Whether the token is left alone."""
        return self.state is BreakerState.OPEN

    @property
    def trying(self) -> bool:
        """Whether the token failed before and has not succeeded since."""
        return self._failures > 0

    def failed(self) -> float:
        """Note a failure; returns the seconds to wait before the next try."""
        self._failures += 1
        self._probing = False
        return min(self._longest, _DELAYS[min(self._failures, len(_DELAYS)) - 1])

    def trip(self) -> None:
        """Open at once: what failed would fail for the very next operation as well."""
        self._failures = max(self._failures, _CLOSED_FAILURES)

    def probe(self) -> None:
        """Let the token be tried: a fresh host is ready for one operation."""
        self._probing = True

    def succeeded(self) -> None:
        """Note a success: closed."""
        self._failures = 0
        self._probing = False
