"""The anchors that are other parties, put together: witnesses that cosign."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from greatseald.adapters.witness import HttpWitness
from greatseald.app.witnessing import WITNESS, Witnessing
from greatseald.config import FileProblem
from greatseald.ports.sightings import SightingsUnusable

if TYPE_CHECKING:
    from greatseald.adapters.metrics import PrometheusMetrics
    from greatseald.app.standing import Standing
    from greatseald.bootstrap.compose import OpenLog
    from greatseald.config import Settings
    from greatseald.ports.sightings import Sightings


@dataclass(slots=True)
class Outside:
    """Everybody outside who is asked about the log."""

    witnessing: Witnessing
    standing: Standing
    sightings: Sightings
    threads: ThreadPoolExecutor

    async def ask_all(self) -> None:
        """Ask everybody once. Who disagreed before and cannot be asked now disagrees still."""
        silent = await self.witnessing.ask_all()
        against = self.sightings.read().against
        for anchor in silent:
            if anchor in against:
                why = f"{against[anchor]} (it cannot be asked now whether that is settled: {self.sightings.name})"
                self.standing.contradict(anchor, why)

    def works(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs in the background."""
        yield self.witnessing.run()

    def close(self) -> None:
        """Begin nothing more; an exchange under way ends by its time-out."""
        self.threads.shutdown(wait=False, cancel_futures=True)


def build_outside(settings: Settings, opened: OpenLog, metrics: PrometheusMetrics) -> Outside:
    """Make everything that the `[log]` tables name.

    Raises:
        FileProblem: a certificate, or what is remembered, cannot be used.
    """
    table = settings.log
    # Apart from the event loop's own threads: an exchange with somebody who does not answer holds one for seconds.
    threads = ThreadPoolExecutor(max(1, 2 * len(table.witnesses)), thread_name_prefix="outside")
    try:
        witnesses = [HttpWitness(each.key, each.url, each.ca, each.timeout) for each in table.witnesses]
        for each in witnesses:
            metrics.watch_outside(WITNESS, each.key.name)
        witnessing = Witnessing(
            witnesses=witnesses,
            quorum=max((key.witnesses for key in settings.keys), default=0),
            log=opened.log,
            standing=opened.log.standing,
            sightings=opened.sightings,
            threads=threads,
            metrics=metrics,
            interval=table.witness_interval,
        )
        witnessing.begin()
    except (OSError, SightingsUnusable) as error:
        raise FileProblem(f"an anchor cannot be used: {error}") from error
    return Outside(witnessing, opened.log.standing, opened.sightings, threads)
