"""Compares the log with what its peers have seen: other fronts, mirrors, exports.

A peer's checkpoint must be a beginning of our log, or all of it. One that is ahead of us is first taken for another
front's writing, and that is fetched; if it is ahead still, our database has lost entries, and going on would fork the log.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from greatseal.checkpoint import open_checkpoint
from greatseal.errors import VerificationFailed
from greatseald.app.alarms import Alarm, Contradiction
from greatseald.app.cosigning import Disagrees
from greatseald.app.recovery import WAY_OUT
from greatseald.domain.errors import LogUnavailable
from greatseald.ports.sightings import OutsideUnreachable, SightingsUnusable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from greatseal.checkpoint import Checkpoint
    from greatseal.note import VerifierKey
    from greatseald.app.alarms import OutsideMetrics
    from greatseald.app.audit import AuditLog
    from greatseald.app.standing import Standing
    from greatseald.ports.sightings import Peer, Sightings

_log = structlog.get_logger("greatseald.anchors")

PEER: Final = "peer"


class PeerWatch:
    """The peers of one front. Belongs to the event loop."""

    def __init__(
        self,
        *,
        peers: Sequence[Peer],
        log_key: VerifierKey,
        log: AuditLog,
        standing: Standing,
        sightings: Sightings,
        threads: Executor,
        metrics: OutsideMetrics,
        interval: float,
    ) -> None:
        """Compare with `peers` every `interval` seconds; blocking work runs on `threads`."""
        self._peers = [(peer, Alarm(PEER, peer.name, metrics)) for peer in peers]
        self._log_key = log_key
        self._log = log
        self._standing = standing
        self._sightings = sightings
        self._threads = threads
        self._contradiction = Contradiction(PEER, standing, sightings, threads, metrics)
        self._interval = interval

    def __len__(self) -> int:
        return len(self._peers)

    async def ask_all(self) -> list[str]:
        """Compare with every peer once; return the names, as they are remembered, of those that did not answer."""
        await asyncio.gather(*(self._compare(peer, alarm) for peer, alarm in self._peers))
        return [anchor_name(peer) for peer, alarm in self._peers if alarm.failures]

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            await self.ask_all()

    async def _compare(self, peer: Peer, alarm: Alarm) -> None:
        if self._standing.against:
            return
        run = asyncio.get_running_loop().run_in_executor
        try:
            note = await run(self._threads, peer.note)
            checkpoint = open_checkpoint(note, self._log_key)
            await self._require_ours(peer, checkpoint)
            await run(self._threads, self._sightings.remember, anchor_name(peer), note)
        except (OutsideUnreachable, VerificationFailed, SightingsUnusable, LogUnavailable) as error:
            alarm.failed(error)
        except Disagrees as error:
            await self._contradiction.tell(anchor_name(peer), peer.name, str(error))
        else:
            alarm.answered(checkpoint.size)

    async def _require_ours(self, peer: Peer, checkpoint: Checkpoint) -> None:
        have = await self._log.size_for(checkpoint.size)
        if checkpoint.size > have:
            raise Disagrees(
                f"peer {peer.name} has seen {checkpoint.size} entries, and the log has {have}: the database is an older "
                f"copy, and signing on it would fork the log. {WAY_OUT}"
            )
        if checkpoint.size and await self._log.root_at(checkpoint.size) != checkpoint.root:
            raise Disagrees(
                f"peer {peer.name} has seen other entries than the log's first {checkpoint.size}: the log was forked, or "
                "its history was rewritten"
            )


def anchor_name(peer: Peer) -> str:
    """Return a peer's name among all anchors."""
    return f"peer {peer.name}"
