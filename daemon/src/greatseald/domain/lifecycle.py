"""The states of a key version, and what leads from one to another.

PRE_GENERATED is a key pair that nobody may use yet, ENABLED one that signs, DISABLED one that does
not. A version is destroyed after a delay in which that can be cancelled. COMPROMISED is for good: its
object can still be destroyed, and the version stays COMPROMISED, so that nobody takes what it signed
for sound later. Whatever its state, a version verifies for ever.

    next_state(VersionState.ENABLED, Change.DISABLE)        # VersionState.DISABLED

Whatever is not in `TRANSITIONS` is refused. The diagram in docs/user-guide/keys.md is held against it.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from greatseald.domain.errors import TransitionRefused


class VersionState(str, Enum):
    """Where a key version is in its life."""

    PRE_GENERATED = "PRE_GENERATED"
    ENABLED = "ENABLED"
    DISABLED = "DISABLED"
    DESTROY_SCHEDULED = "DESTROY_SCHEDULED"
    DESTROYED = "DESTROYED"
    COMPROMISED = "COMPROMISED"


class Change(str, Enum):
    """What can be asked of a key version."""

    ENABLE = "enable"
    DISABLE = "disable"
    SCHEDULE = "schedule destruction"
    CANCEL = "cancel destruction"
    DESTROY = "destroy"
    COMPROMISE = "compromise"


_S = VersionState
_C = Change

TRANSITIONS: Final[dict[tuple[VersionState, Change], VersionState]] = {
    (_S.PRE_GENERATED, _C.ENABLE): _S.ENABLED,
    (_S.PRE_GENERATED, _C.SCHEDULE): _S.DESTROY_SCHEDULED,
    (_S.PRE_GENERATED, _C.COMPROMISE): _S.COMPROMISED,
    (_S.ENABLED, _C.DISABLE): _S.DISABLED,
    (_S.ENABLED, _C.COMPROMISE): _S.COMPROMISED,
    (_S.DISABLED, _C.ENABLE): _S.ENABLED,
    (_S.DISABLED, _C.SCHEDULE): _S.DESTROY_SCHEDULED,
    (_S.DISABLED, _C.COMPROMISE): _S.COMPROMISED,
    (_S.DESTROY_SCHEDULED, _C.CANCEL): _S.DISABLED,
    (_S.DESTROY_SCHEDULED, _C.DESTROY): _S.DESTROYED,
    (_S.DESTROY_SCHEDULED, _C.COMPROMISE): _S.COMPROMISED,
    (_S.DESTROYED, _C.COMPROMISE): _S.COMPROMISED,
    (_S.COMPROMISED, _C.SCHEDULE): _S.COMPROMISED,
    (_S.COMPROMISED, _C.CANCEL): _S.COMPROMISED,
    (_S.COMPROMISED, _C.DESTROY): _S.COMPROMISED,
}


def next_state(state: VersionState, change: Change) -> VersionState:
    """Return the state that a change leads to.

    Raises:
        TransitionRefused: it leads nowhere from this state; the message lists what does.
    """
    found = TRANSITIONS.get((state, change))
    if found is None:
        possible = ", ".join(sorted(each.value for held, each in TRANSITIONS if held is state))
        message = f"a version that is {state.value} cannot {change.value}; it can: {possible}"
        raise TransitionRefused(message, state=state.value)
    return found
