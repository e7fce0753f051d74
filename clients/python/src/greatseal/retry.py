"""When a call may be sent again, and after how long.

Only `Unavailable` is retried, and `InFlight` where the daemon said when: both promise that the same
request id gives the same signature. Waits double, are drawn at random below that (so that callers
refused together do not come back together), and never end after the caller's deadline.

    pause = Backoff().pause(error, attempt=0, remaining=deadline.remaining())     # None: give up
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from greatseal.errors import DeadlineExceeded, GreatsealError


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on a monotonic clock, in seconds."""

    at: float
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """Return the deadline so many seconds from now."""
        return cls(clock() + seconds, clock)

    def left(self) -> float:
        """Return the seconds that are left, 0 or less once it has passed."""
        return self.at - self.clock()

    def remaining(self) -> float:
        """Return the seconds that are left.

        Raises:
            DeadlineExceeded: none are.
        """
        left = self.left()
        if left <= 0:
            message = "the time was over before this could be sent: raise --timeout, or the profile's timeout"
            raise DeadlineExceeded(message)
        return left


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait between tries, in seconds.

    Attributes:
        initial: bound of the first wait.
        factor: by which the bound grows.
        maximum: bound of every wait that the daemon did not name.
        draw: a number from 0 to 1.
    """

    initial: float = 0.1
    factor: float = 2.0
    maximum: float = 5.0
    draw: Callable[[], float] = field(default=random.random, repr=False)

    def pause(self, error: GreatsealError, attempt: int, remaining: float) -> float | None:
        """Return the seconds to wait before sending the same request again; None: do not.

        Args:
            error: how the try failed.
            attempt: how many tries failed before this one.
            remaining: seconds that the caller has left.
        """
        if not error.retryable:
            return None
        bound = min(self.maximum, self.initial * self.factor ** min(attempt, 32))
        told = getattr(error, "retry_after", None)
        # Half of the bound is certain, so that a daemon that is starting is not asked at once again.
        pause = bound * (1 + self.draw()) / 2 if told is None else told + bound * self.draw()
        return pause if pause < remaining else None
