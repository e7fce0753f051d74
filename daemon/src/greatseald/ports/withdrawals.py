"""The port to the memory of withdrawn tokens: what an operator took out of service stays out across restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from greatseald.ports.tokens import TokenState


class WithdrawalsUnusable(Exception):
    """The memory of withdrawn tokens cannot be read or written; the message names it and what to do."""


class Withdrawal(NamedTuple):
    """That a token was taken out of service: DRAINED or QUARANTINED, and why, for people."""

    state: TokenState
    why: str


class Withdrawals(Protocol):
    """The withdrawn tokens by name. Safe for threads; every change is durable when it returns."""

    def read(self) -> dict[str, Withdrawal]:
        """Return the withdrawn tokens.

        Raises:
            WithdrawalsUnusable: it cannot be read: which tokens are out of service is not known.
        """
        ...

    def put(self, token: str, withdrawal: Withdrawal) -> None:
        """Remember a withdrawal in place of an earlier one.

        Raises:
            WithdrawalsUnusable: it cannot be written.
        """
        ...

    def remove(self, token: str) -> None:
        """Forget a withdrawal.

        Raises:
            WithdrawalsUnusable: it cannot be written.
        """
        ...
