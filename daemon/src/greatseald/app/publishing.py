"""Keeps the log published as C2SP tiles: once an interval what is new, off the release path.

What leaves the daemon here is a released checkpoint, so that the anchor knows of it first. A place that
cannot be reached is tried again for ever, with pauses that grow, and is an alarm; one that holds another
history stops the publishing for good, and is one too. Signing knows nothing of either. At a start the
published head counts as an anchor: the log must equal or extend it.

    publishing = Publishing(place=TileDirectory(...), log=log, interval=10.0)
    await publishing.run()      # until cancelled
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from greatseald.app.recovery import check_anchor
from greatseald.domain.errors import LogUnavailable
from greatseald.ports.anchor import Anchored
from greatseald.ports.tiles import TilesDisagree, TilesUnavailable

if TYPE_CHECKING:
    from greatseald.app.audit import AuditLog
    from greatseald.domain.tree import Tree
    from greatseald.ports.tiles import TilePlace

_log = structlog.get_logger("greatseald.tiles")

_LONGEST_PAUSE: Final = 300.0
_REMIND_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class _Remembered:
    """What a place has published, as an anchor that was read."""

    name: str
    head: Anchored | None

    def read(self) -> Anchored | None:
        return self.head

    def advance(self, head: Anchored) -> None:
        raise NotImplementedError  # the tiles are written first, and that is not a start's business


def check_published(tree: Tree, place: TilePlace) -> None:
    """Check at start that the log equals or extends what was published.

    A place that cannot be read, or holds what this log's key did not sign, proves nothing against the log: that
    is an alarm, and publishing finds out again.

    Raises:
        LogRefused: this log's key signed a longer or another history there.
    """
    try:
        head = place.read()
    except (TilesUnavailable, TilesDisagree) as error:
        _log.error("tiles_unreadable", why=str(error))
        return
    check_anchor(tree, _Remembered(f"{place.name} (published tiles)", head))


class Publishing:
    """Publishes one log to one place. Belongs to the event loop.

    Attributes:
        published: the size of the newest checkpoint that is known to stand there, in entries.
        published_at: when it was put or found there, Unix seconds; 0 before that.
        failing: whether the last attempt failed, or the place disagrees.
        disagrees: why nothing is published any more; empty while all is well.
    """

    def __init__(self, *, place: TilePlace, log: AuditLog, interval: float) -> None:
        """Publish `log` to `place` every `interval` seconds."""
        self._place = place
        self._log = log
        self._interval = interval
        self.published = 0
        self.published_at = 0.0
        self.failing = False
        self.disagrees = ""
        self._stopping = False

    @property
    def behind(self) -> int:
        """Entries of the log that are not published yet."""
        return max(0, self._log.size - self.published)

    async def run(self) -> None:
        """Publish until cancelled, or until the place disagrees."""
        pause, reminded = self._interval, 0.0
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self._publish()
            except TilesDisagree as error:
                self.failing, self.disagrees = True, str(error)
                _log.error(
                    "tiles_disagree", place=self._place.name, why=str(error), publishing="stopped until a restart"
                )
                return
            except (TilesUnavailable, LogUnavailable) as error:
                if not self.failing or loop.time() - reminded > _REMIND_SECONDS:
                    reminded = loop.time()
                    _log.error("tiles_failing", place=self._place.name, behind=self.behind, why=str(error))
                self.failing = True
                pause = min(2 * pause, max(_LONGEST_PAUSE, self._interval))
            else:
                if self.failing:
                    _log.info("tiles_recovered", place=self._place.name, size=self.published)
                self.failing, pause = False, self._interval
            # Several fronts that publish to one place should not meet there every time.
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311 - spreads load, guards nothing

    async def _publish(self) -> None:
        head = await self._log.checkpoint()
        anchored = Anchored(head.size, head.root)
        work = asyncio.ensure_future(
            asyncio.to_thread(self._place.publish, anchored, head.note, self._entries, self._log.root)
        )
        try:
            self.published = await asyncio.shield(work)
        except asyncio.CancelledError:
            # The thread reads the store, which must not be closed under it.
            self._stopping = True
            await asyncio.gather(work, return_exceptions=True)
            raise
        self.published_at = time.time()

    def _entries(self, start: int, end: int) -> list[bytes]:
        if self._stopping:
            message = "the daemon is stopping; the next start publishes the rest"
            raise LogUnavailable(message)
        return self._log.read(start, end)
