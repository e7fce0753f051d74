"""What becomes of an anchor outside that cannot be reached, an alarm, and of one that disagrees, the end of signing."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from greatseald.ports.sightings import SightingsUnusable

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from greatseald.app.standing import Standing
    from greatseald.ports.sightings import Sightings

_log = structlog.get_logger("greatseald.anchors")

FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
_REMIND_SECONDS: Final = 300.0


class OutsideMetrics(Protocol):
    """What is reported of anchors outside: `kind` is witness, timestamp or peer."""

    def outside_seen(self, kind: str, anchor: str, size: int) -> None:
        """It answered, and has seen the log up to this size."""
        ...

    def outside_failed(self, kind: str, anchor: str) -> None:
        """It gave no answer that can be used."""
        ...

    def outside_disagrees(self, kind: str, anchor: str) -> None:
        """It has seen another history."""
        ...


class Alarm:
    """Says that an anchor cannot be reached: at once, then now and then, and when it is back."""

    def __init__(self, kind: str, anchor: str, metrics: OutsideMetrics) -> None:
        self._kind = kind
        self._anchor = anchor
        self._metrics = metrics
        self._reminded = 0.0
        self.failures = 0
        self.pause = FIRST_PAUSE

    def failed(self, why: object) -> None:
        """It gave no answer."""
        self.failures += 1
        self._metrics.outside_failed(self._kind, self._anchor)
        now = time.monotonic()
        if self.failures == 1 or now - self._reminded > _REMIND_SECONDS:
            self._reminded = now
            _log.error("anchor_unreachable", kind=self._kind, anchor=self._anchor, failures=self.failures, why=str(why))
        self.pause = min(2 * self.pause, _LONGEST_PAUSE) if self.failures > 1 else FIRST_PAUSE

    def answered(self, size: int) -> None:
        """It answered, and has seen so many entries."""
        if self.failures:
            _log.info("anchor_reached_again", kind=self._kind, anchor=self._anchor, failures=self.failures)
        self.failures = 0
        self._metrics.outside_seen(self._kind, self._anchor, size)


class Contradiction:
    """Ends the signing because an anchor has seen another history, and remembers that over restarts."""

    def __init__(
        self, kind: str, standing: Standing, sightings: Sightings, threads: Executor, metrics: OutsideMetrics
    ) -> None:
        self._kind = kind
        self._standing = standing
        self._sightings = sightings
        self._threads = threads
        self._metrics = metrics

    async def tell(self, anchor: str, shown: str, why: str) -> None:
        """Sign no more: `anchor`, as it is remembered, disagrees; `shown` is its name in metrics."""
        self._standing.contradict(anchor, why)
        self._metrics.outside_disagrees(self._kind, shown)
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._sightings.dispute, anchor, why)
        except SightingsUnusable as error:
            _log.error("disagreement_not_remembered", anchor=anchor, why=str(error))
