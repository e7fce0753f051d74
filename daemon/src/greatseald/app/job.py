"""A request on its way through the signing path, and the call that it came with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from greatseald.domain.errors import GreatsealError, LogUnavailable, TokenLocked, TokenUnavailable

if TYPE_CHECKING:
    import asyncio

    from greatseald.app.admission import Admitted
    from greatseald.app.versions import Holding, SigningVersion
    from greatseald.domain.identity import Caller

_LOST: Final = "the daemon lost track of it"


@dataclass(slots=True, eq=False)
class Job:
    """An admitted request: what was committed and signed of it so far, or the error it ended with.

    `result` becomes the outcome's `res`; until a token has answered, nobody knows. `holding` is the
    token that is asked, `tried` those that failed it before, `movable` whether another could do it;
    `replayed` the version that had signed, where the signature is on record.
    """

    request: Admitted
    holding: Holding | None = None
    movable: bool = False
    placed: bool = False
    tried: list[Holding] = field(default_factory=list)
    intent_entry: bytes = b""
    intent_index: int = -1
    leaf_hash: bytes = b""
    signature: bytes = b""
    sequence: int = 0
    ckr: int = 0
    result: str = "unknown"
    why: str = _LOST
    outcome_entry: bytes = b""
    outcome_index: int = -1
    proof: tuple[bytes, bytes] = (b"", b"")
    replayed: SigningVersion | None = None
    error: GreatsealError | None = None

    @property
    def released(self) -> bool:
        """Whether its signature stands in the log and may leave."""
        return self.error is None and self.outcome_index >= 0

    @property
    def failure(self) -> GreatsealError:
        """Why it is not released."""
        return self.error or LogUnavailable(
            "the audit log broke before the request had an outcome; nothing was released"
        )

    @property
    def may_move(self) -> bool:
        """Whether it certainly was not signed, for a reason of its token's, and stands so in the log."""
        return (
            self.outcome_index >= 0
            and self.result in {"failed", "aborted"}
            and isinstance(self.error, TokenUnavailable | TokenLocked)
        )

    def again(self) -> None:
        """Make it the next attempt, which has an intent and an outcome of its own."""
        assert self.holding is not None  # noqa: S101 - it was asked
        self.tried.append(self.holding)
        self.request.open_attempt(self.request.attempt + 1)
        self.intent_index = self.outcome_index = -1
        self.intent_entry = self.outcome_entry = b""
        self.sequence = self.ckr = 0
        self.result, self.why, self.error = "unknown", _LOST, None

    def end(self, result: str, error: GreatsealError) -> None:
        """End it without a signature."""
        self.result, self.why, self.error = result, error.message, error


@dataclass(slots=True, eq=False)
class Call:
    """One call's jobs. Requests that join a job of another call wait for that call's `done`.

    `abandoned` is whether nobody waits for the answer any more.
    """

    caller: Caller
    peer: str
    started: float
    done: asyncio.Future[None]
    abandoned: bool = False
    jobs: list[Job] = field(default_factory=list)
    joined: list[tuple[int, Job, Call]] = field(default_factory=list)
