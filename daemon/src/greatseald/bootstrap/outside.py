"""The anchors that are other parties, put together: witnesses that cosign, authorities that stamp, peers."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from greatseal.note import NoteSigner
from greatseald.adapters.peers import open_peer
from greatseald.adapters.stamps import FileStamps
from greatseald.adapters.timestamps import HttpAuthority
from greatseald.adapters.witness import HttpWitness
from greatseald.app.peers import PEER, PeerWatch
from greatseald.app.timestamping import TIMESTAMP, Timestamping
from greatseald.app.witnessing import WITNESS, Witnessing
from greatseald.config import FileProblem, read_certificates, read_log_key
from greatseald.ports.sightings import SightingsUnusable
from greatseald.ports.stamps import StampsUnusable

if TYPE_CHECKING:
    from greatseald.adapters.metrics import PrometheusMetrics
    from greatseald.app.standing import Standing
    from greatseald.bootstrap.compose import OpenLog
    from greatseald.config import Settings, TimestampTable
    from greatseald.ports.sightings import Sightings


@dataclass(slots=True)
class Outside:
    """Everybody outside who is asked about the log."""

    witnessing: Witnessing
    stamping: list[Timestamping]
    stamps: FileStamps
    peers: PeerWatch
    standing: Standing
    sightings: Sightings
    threads: ThreadPoolExecutor

    async def ask_all(self) -> None:
        """Ask everybody once. Who disagreed before and cannot be asked now disagrees still."""
        silent = [*await self.witnessing.ask_all(), *await self.peers.ask_all()]
        against = self.sightings.read().against
        for anchor in silent:
            if anchor in against:
                why = f"{against[anchor]} (it cannot be asked now whether that is settled: {self.sightings.name})"
                self.standing.contradict(anchor, why)

    def works(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs in the background."""
        yield self.witnessing.run()
        if len(self.peers):
            yield self.peers.run()
        for stamping in self.stamping:
            yield stamping.run()

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
    count = 2 * len(table.witnesses) + len(table.timestamps) + len(table.peers)
    threads = ThreadPoolExecutor(max(1, count), thread_name_prefix="outside")
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
        log_key = NoteSigner(table.origin, read_log_key(table.key_file)).verifier
        for row in table.peers:
            metrics.watch_outside(PEER, row.name)
        peers = PeerWatch(
            peers=[open_peer(each, log_key.line()) for each in table.peers],
            log_key=log_key,
            log=opened.log,
            standing=opened.log.standing,
            sightings=opened.sightings,
            threads=threads,
            metrics=metrics,
            interval=table.peer_interval,
        )
        stamps = FileStamps(table.stamps)
        stamping = [_stamping(each, opened, stamps, threads, metrics) for each in table.timestamps]
    except (OSError, SightingsUnusable, StampsUnusable) as error:
        raise FileProblem(f"an anchor cannot be used: {error}") from error
    return Outside(witnessing, stamping, stamps, peers, opened.log.standing, opened.sightings, threads)


def _stamping(
    table: TimestampTable,
    opened: OpenLog,
    stamps: FileStamps,
    threads: ThreadPoolExecutor,
    metrics: PrometheusMetrics,
) -> Timestamping:
    metrics.watch_outside(TIMESTAMP, table.name)
    authority = HttpAuthority(table.name, table.url, table.ca, table.timeout, read_certificates(table.roots))
    stamping = Timestamping(
        authority=authority,
        interval=table.interval,
        log=opened.log,
        stamps=stamps,
        threads=threads,
        metrics=metrics,
    )
    stamping.begin()
    return stamping
