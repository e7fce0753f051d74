"""Keeps the search index: follows the log off the release path, a small part of one core at most, less while many sign.

An index that is missing, damaged, or of another history is built anew from the log. Until it has caught up,
and wherever it cannot be used, searches read the log (`app/search.py`), so that no result lacks an entry.

    indexing = Indexing(index=SqliteSearchIndex(...), log=log, shortage=reserve.shortage)
    await indexing.run()        # until cancelled
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from greatseald.domain.errors import EntryPruned, LogUnavailable
from greatseald.ports.search_index import IndexUnusable

if TYPE_CHECKING:
    from collections.abc import Callable

    from greatseald.app.audit import AuditLog
    from greatseald.domain.entry_query import EntryQuery
    from greatseald.ports.search_index import SearchIndex

_log = structlog.get_logger("greatseald.index")

_AT_ONCE: Final = 512
_IDLE_SECONDS: Final = 1.0
_REST: Final = 9
"""Pauses are so many times as long as the work: a tenth of one core while it catches up."""
_LONG_REST: Final = 99
_BUSY: Final = 64
"""Entries that the log grows by between two looks; from there on the pauses are long, as signatures come first."""
_TROUBLE_SECONDS: Final = 60.0


class Indexing:
    """The index of one log and what it covers. Belongs to the event loop.

    Attributes:
        first: the first entry that it covers.
        size: the entry after the last one; 0 while it cannot be used.
    """

    def __init__(self, *, index: SearchIndex, log: AuditLog, shortage: Callable[[], str | None]) -> None:
        """Keep `index` of `log`. `shortage` tells why nothing more should be written to the volume."""
        self._index = index
        self._log = log
        self._shortage = shortage
        self._again = False
        self._seen = 0
        self.first = 0
        self.size = 0

    @property
    def behind(self) -> int:
        """Entries of the log that a search still reads one by one."""
        return max(0, self._log.size - self.size)

    def rebuild(self) -> None:
        """Build the index anew, from now on."""
        self._again = True
        self.size = 0

    async def run(self) -> None:
        """Follow the log until cancelled."""
        opened = False
        while True:
            try:
                if not opened or self._again:
                    await self._open(anew=self._again)
                    opened, self._again = True, False
                pause = await self._step()
            except IndexUnusable as error:
                _log.warning("index_dropped", why=str(error), searches="read the log until it is built again")
                opened, self._again, self.size = False, True, 0
                pause = _TROUBLE_SECONDS
            except LogUnavailable:
                pause = _TROUBLE_SECONDS  # the log's own trouble is told elsewhere
            await asyncio.sleep(pause)

    async def candidates(
        self, query: EntryQuery, low: int, high: int, count: int, *, descending: bool
    ) -> list[int] | None:
        """As the port's; None also where the index cannot be used now."""
        try:
            return await asyncio.to_thread(self._index.candidates, query, low, high, count, descending=descending)
        except IndexUnusable as error:
            _log.warning("index_unusable", why=str(error))
            self.rebuild()
            return None

    def close(self) -> None:
        """Release the file."""
        self._index.close()

    async def _open(self, *, anew: bool) -> None:
        if not anew:
            try:
                covered = await asyncio.to_thread(self._index.covered)
            except IndexUnusable as error:
                _log.warning("index_dropped", why=str(error), searches="read the log until it is built again")
            else:
                if covered.size == 0 or (
                    covered.size <= self._log.size
                    and await asyncio.to_thread(self._log.root, covered.size) == covered.root
                ):
                    self.first, self.size = covered.first, covered.size
                    return
                _log.warning("index_dropped", why="it is of another history than this log", size=covered.size)
        self.first = self.size = await self._log.pruned_size()
        await asyncio.to_thread(self._index.reset, self.first)

    async def _step(self) -> float:
        """Take in the next entries; return how long to rest."""
        if self.size >= self._log.size:
            return _IDLE_SECONDS
        if self._shortage() is not None:
            return _TROUBLE_SECONDS
        begun = time.perf_counter()
        grown, self._seen = self._log.size - self._seen, self._log.size
        try:
            entries = await self._log.entries(self.size, self.size + _AT_ONCE)
        except EntryPruned:
            self.rebuild()
            return 0
        end = self.size + len(entries)
        root = await asyncio.to_thread(self._log.root, end)
        await asyncio.to_thread(self._index.add, self.size, entries, root)
        if not self._again:
            self.size = end
        return (time.perf_counter() - begun) * (_LONG_REST if grown > _BUSY else _REST)
