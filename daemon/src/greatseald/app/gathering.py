"""Gathers what the event loop submits to the log into rounds worth their price, and runs small ones in place.

A round of one entry costs nearly what a round of thirty costs: a commit, a checkpoint, the anchor. gRPC
hands calls to the event loop one at a time, so that whoever commits at the first of them commits
thirty times. A round is cut

- at once, when its caller is alone: nobody else would come;
- when the loop has gone `_QUIET_TURNS` turns without anything new to write;
- when it holds `_FULL` entries, or the first of them has waited `_PATIENCE` seconds in a loop that is
  never quiet.

There is no timer: turns of the loop are counted, and an idle loop takes them in microseconds. A round
that is cut is run where it stands, on the loop, as long as the store is on a local disk that answers
fast: a hand-over to the writer's thread and back, and the interpreter lock won back from a busy loop,
take as long as the commit. Batches, what forgets old requests, slow disks and stores across a network have
the thread.

    done = await gathering.submit(work)

Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from greatseald.domain.errors import LogUnavailable

if TYPE_CHECKING:
    from greatseald.app.writer import LogWriter, Work

_FULL: Final = 64
"""Entries and pairs to prove of a round on the loop: a millisecond. What is larger is a batch, and worth its hand-over."""

_QUIET_TURNS: Final = 32
"""Turns of the loop without anything new. A call takes about ten from its arrival to its intent."""

_PATIENCE: Final = 0.006
"""Seconds, and no more, that an entry waits for others to come while the loop is busy with them."""


class Gathering:
    """What waits for the next round on the loop."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer
        self._works: list[Work] = []
        self._entries = 0
        self._since = 0.0
        self._quiet = 0

    async def submit(self, work: Work, *, alone: bool = False) -> Work:
        """Have work written and wait until it is.

        `alone` says that nothing else is under way, so that there is nobody to wait for.

        Raises:
            LogUnavailable: the log is broken, or broke before the work was written.
        """
        count = len(work.entries) + len(work.prove)
        if count > _FULL or work.forget_before_ms is not None or not self._writer.fast:
            self._writer.submit(work)
        elif alone and not self._works:
            if self._writer.run_here([work]):
                return work
            self._writer.submit(work)
        else:
            if not self._works:
                self._since = time.perf_counter()
                asyncio.get_running_loop().call_soon(self._turn)
            self._works.append(work)
            self._entries += count
            self._quiet = 0
        return await work.future

    def hand_over(self) -> None:
        """Give what is gathered to the writer's thread."""
        for work in self._take():
            try:
                self._writer.submit(work)
            except LogUnavailable as error:
                work.fail(error)

    def _turn(self) -> None:
        """One turn of the loop: cut the round, or wait for another turn."""
        if not self._works:
            return
        self._quiet += 1
        waiting = self._quiet < _QUIET_TURNS and self._entries < _FULL and time.perf_counter() - self._since < _PATIENCE
        if waiting:
            asyncio.get_running_loop().call_soon(self._turn)
            return
        works = self._take()
        try:
            if not self._writer.run_here(works):
                for work in works:
                    self._writer.submit(work)
                return
        except LogUnavailable as error:
            for work in works:
                work.fail(error)
            return
        for work in works:
            work.finish()

    def _take(self) -> list[Work]:
        works, self._works, self._entries = self._works, [], 0
        return works
