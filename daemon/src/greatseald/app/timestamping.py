"""Has checkpoints stamped by RFC 3161 authorities now and then, beside the signing path.

A timestamp says that a checkpoint existed at a time, by another's clock: a history made up later has none. It tells
nobody of a fork, and no signature waits for it. Authorities that do not answer are an alarm.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

from greatseal.timestamps import Stamped
from greatseald.app.alarms import Alarm
from greatseald.ports.sightings import OutsideUnreachable
from greatseald.ports.stamps import StampsUnusable

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from greatseald.app.alarms import OutsideMetrics
    from greatseald.app.audit import AuditLog
    from greatseald.app.writer import SignedHead
    from greatseald.ports.stamps import Authority, Stamps

TIMESTAMP: Final = "timestamp"


class Timestamping:
    """One authority's round. Belongs to the event loop."""

    def __init__(
        self,
        *,
        authority: Authority,
        interval: float,
        log: AuditLog,
        stamps: Stamps,
        threads: Executor,
        metrics: OutsideMetrics,
    ) -> None:
        """Ask `authority` every `interval` seconds if the log has grown; blocking work runs on `threads`."""
        self._authority = authority
        self._interval = interval
        self._log = log
        self._stamps = stamps
        self._threads = threads
        self._alarm = Alarm(TIMESTAMP, authority.name, metrics)
        self._stamped = 0

    def begin(self) -> None:
        """Take up from what is kept. Reads a file. Raises StampsUnusable."""
        self._stamped = self._stamps.newest().get(self._authority.name, 0)

    async def run(self) -> None:
        """Have checkpoints stamped until cancelled."""
        while True:
            pause = self._interval
            if self._log.size > self._stamped and not self._log.standing.against:
                head = await self._log.checkpoint()
                try:
                    await asyncio.get_running_loop().run_in_executor(self._threads, self._stamp, head)
                except (OutsideUnreachable, StampsUnusable) as error:
                    self._alarm.failed(error)
                    pause = min(pause, self._alarm.pause * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load
                else:
                    self._stamped = head.size
                    self._alarm.answered(head.size)
            await asyncio.sleep(pause)

    def _stamp(self, head: SignedHead) -> None:
        response = self._authority.stamp(head.note.encode())
        self._stamps.append(Stamped(self._authority.name, head.note, response))
