"""The port to tokens: what holds keys and signs, wherever it runs.

A token answers every operation exactly once, whatever happens to its host: signed, failed (it
certainly did not sign) or unknown (it may have). `sign` therefore raises only before anything was
handed over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol

from greatseal.algorithms import Algorithm


class Operation(NamedTuple):
    """One thing to sign: the intent's index and leaf hash (32 bytes) that permit it, and the digest itself.

    For an algorithm that signs messages (Ed25519) `message` is the message, and `tbs` its SHA-256.
    """

    intent_index: int
    leaf_hash: bytes
    tbs: bytes
    message: bytes = b""


class Signed(NamedTuple):
    """The signature of operation number `position` of the call: DER for ECDSA, modulus-sized for RSA, 64 bytes for Ed25519.

    `sequence` is its number in the host's ledger.
    """

    position: int
    signature: bytes
    sequence: int


class NotSigned(NamedTuple):
    """Operation number `position` gave no signature.

    `unknown` says whether the token may have signed all the same; `ckr` is the PKCS#11 return value
    or 0; `detail` is for people. `retry` says whether another attempt may succeed; `locked` whether an operator is needed.
    """

    position: int
    unknown: bool
    ckr: int
    detail: str
    sequence: int
    retry: bool
    locked: bool


SignResult = Signed | NotSigned


ALGORITHM_REFUSED: Final = frozenset({0x54, 0x62, 0x63, 0x68, 0x70, 0x71})
"""PKCS#11 return values by which a token says that the key does not do what was asked of it: CKR_FUNCTION_NOT_SUPPORTED,
KEY_SIZE_RANGE, KEY_TYPE_INCONSISTENT, KEY_FUNCTION_NOT_PERMITTED, MECHANISM_INVALID and MECHANISM_PARAM_INVALID."""


class TokenState(str, Enum):
    """Where a token is. An operator has put it into the last three, and it stays there until an operator resumes it."""

    STARTING = "starting"
    READY = "ready"
    UNAVAILABLE = "unavailable"
    LOCKED = "locked"
    DRAINING = "draining"
    DRAINED = "drained"
    QUARANTINED = "quarantined"


WITHDRAWN: Final = frozenset({TokenState.DRAINING, TokenState.DRAINED, TokenState.QUARANTINED})
"""The states of a token that an operator has taken out of service."""


class BreakerState(str, Enum):
    """Whether a token that failed is used: closed, left alone for a while, or tried with one operation at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class TokenLoad(NamedTuple):
    """How busy a token is, and how fast.

    `waiting` operations no host has yet, `in_flight` its host has; `operation_seconds` is how long one
    takes in one of its `sessions`, and 0 while that was not measured; `late` for how many seconds its next
    result has been overdue; `last_success` the Unix time of the last signature of this boot, 0 before the first.
    """

    waiting: int
    in_flight: int
    operation_seconds: float
    sessions: int
    late: float
    breaker: BreakerState
    last_success: float


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """What a token says of itself. Strings are stripped of padding; empty means unknown.

    `sessions` is how many its host works with; `advertised` the algorithms that it lists mechanisms for.
    """

    serial: str
    label: str
    manufacturer: str
    model: str
    firmware: str
    sessions: int = 0
    advertised: tuple[Algorithm, ...] = ()


class TokenKey(NamedTuple):
    """A private key found in a token: its public half as SubjectPublicKeyInfo (DER) and what it can do there.

    `attestation` is the chain (DER, the key's first) by which a token that attests its keys says how it
    holds this one, and `custody` that in words; both are empty where it says nothing.
    """

    spki: bytes
    algorithms: tuple[Algorithm, ...]
    attestation: tuple[bytes, ...] = ()
    custody: str = ""


class OperatorAct(NamedTuple):
    """What an operator did at a token's host, on its machine: noted there before it is done, and in the log before its effect.

    `action` is unlock, lock, change-pin or unblock; `uid` and `user` who did it, by the kernel's word; `result` how it
    ended ("interrupted": the host died over it). `id` is a random one: an act that is told twice is the same act.
    """

    id: str
    at: str
    action: str
    uid: int
    user: str
    result: str = "interrupted"
    detail: str = ""


class Token(Protocol):
    """One token, reached through its host."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        ...

    @property
    def state(self) -> TokenState:
        """Where it is now."""
        ...

    @property
    def detail(self) -> str:
        """Why it is not ready, for people; empty when it is."""
        ...

    @property
    def awaited(self) -> str:
        """What a person is asked to do at the token just now, such as to touch it; empty when nothing is."""
        ...

    @property
    def info(self) -> TokenInfo | None:
        """What it said of itself, None until it was reached."""
        ...

    @property
    def load(self) -> TokenLoad:
        """How busy it is, and how fast."""
        ...

    def withdraw(self, state: TokenState, why: str) -> None:
        """Take it out of service: `state` is DRAINED or QUARANTINED, `why` is for people. Returns at once.

        What its host has is finished; what no host has yet is finished too for DRAINED, and fails for
        QUARANTINED, certainly not signed. Then its host ends and lets go of the device.
        """
        ...

    async def restore(self) -> None:
        """Put it back into service. No effect on one that is not withdrawn."""
        ...

    async def start(self) -> None:
        """Start or reach the host and bring the token up in the background; never raises for a token that is absent."""
        ...

    async def stop(self) -> None:
        """End the host, after what it works on; idempotent."""
        ...

    async def find_key(self, uri: str) -> TokenKey:
        """Find the one private key that an RFC 7512 reference means.

        Raises:
            TokenUnavailable: not found (naming what there is), or the token cannot be reached.
            TokenLocked: an operator is needed.
        """
        ...

    def sign(
        self, uri: str, algorithm: Algorithm, operations: Sequence[Operation], *, movable: bool = False
    ) -> AsyncIterator[list[SignResult]]:
        """Sign `operations` with the key that `uri` means, yielding results in chunks as they come, any order.

        Every operation gets exactly one result. Operations of the same key and algorithm that are
        asked for within one tick of the event loop travel in one frame. `movable` says that another
        token could do them: those that no host has yet fail, certainly not signed, once this token is late.
        """
        ...
