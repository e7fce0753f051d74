"""Searching the log: a page at a time, each for a bounded price.

Nobody keeps an index on the release path, so a search looks at entries one after the other. A page
ends when it is full, or when as many entries were looked at as one page may cost; whoever wants more
asks again. Every few hundred entries the work goes back through the event loop, and one search runs
at a time: signatures in between wait for a millisecond, not for a search.

Times are found by bisection, so that "the last two hours" of a long log costs what two hours hold.
That takes clocks that never were over an hour wrong; entries beyond that may be missed.

    page = await LogSearch(log.entries).page(EntryQuery(key="keys/release"), start=0, limit=100, size=log.size)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from greatseald.domain import entries as entry_format
from greatseald.domain.entry_query import EntryQuery, Facts, read

CHUNK: Final = 256
MOST_EXAMINED: Final = 8192
"""Entries that one page may cost; an intent that is read by itself counts as eight."""
PAGE_BYTES: Final = 2 * 1024 * 1024
"""A page ends after so many bytes of entries: gRPC clients take 4 MiB unless told otherwise."""
CLOCK_SLACK: Final = timedelta(hours=1)
_LONE_READ: Final = 8

Entries = Callable[[int, int], Awaitable[list[bytes]]]
Indexed = tuple[int, bytes]


@dataclass(slots=True)
class Page:
    """Entries found, the intents of its outcomes where asked for, and the index to go on from (None at the end)."""

    entries: list[Indexed] = field(default_factory=list)
    intents: list[Indexed] = field(default_factory=list)
    following: int | None = None


class LogSearch:
    """Searches one log.

    Args:
        entries: gives the exact bytes from the first index to the second (excluded), clipped to the log.
    """

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._turn = asyncio.Semaphore(1)

    async def page(
        self,
        query: EntryQuery,
        start: int,
        limit: int,
        size: int,
        *,
        descending: bool = False,
        with_intents: bool = False,
    ) -> Page:
        """Return the next page.

        Args:
            query: what is asked for.
            start: the first index to look at.
            limit: most entries of the page, at least 1.
            size: of the log, in entries.
            descending: towards index 0.
            with_intents: whether the intents of its outcomes are wanted too.
        """
        if query.is_empty and not with_intents:
            return await _Search(self._entries, query, limit).run(start, 0, size, descending=descending)
        async with self._turn:
            low = await self._first_at(query.since, -CLOCK_SLACK, size) if query.since else 0
            high = await self._first_at(query.until, CLOCK_SLACK, size) if query.until else size
            search = _Search(self._entries, query, limit)
            page = await search.run(start, low, high, descending=descending)
            if with_intents:
                page.intents = await search.intents_of(page.entries)
            return page

    async def _first_at(self, moment: str, slack: timedelta, size: int) -> int:
        """The first index whose time is not before `moment` and some slack, where times only grow."""
        wanted = _shifted(moment, slack)
        low, high = 0, size
        while low < high:
            middle = (low + high) // 2
            facts = read((await self._entries(middle, middle + 1))[0])
            low, high = (middle + 1, high) if facts.ts < wanted else (low, middle)
        return low


class _Search:
    """One page being filled."""

    def __init__(self, entries: Entries, query: EntryQuery, limit: int) -> None:
        self._entries = entries
        self._query = query
        self._limit = limit
        self._left = MOST_EXAMINED
        self._bytes = 0
        self._intents: dict[int, bytes] = {}

    async def run(self, start: int, low: int, high: int, *, descending: bool) -> Page:
        page = Page()
        at = min(start, high - 1) if descending else max(start, low)
        while low <= at < high:
            if len(page.entries) >= self._limit:
                page.following = at
                return page
            count = CHUNK if not self._query.is_empty else min(CHUNK, self._limit - len(page.entries))
            begin = max(low, at + 1 - count) if descending else at
            data = await self._entries(begin, min(begin + count, high, at + 1 if descending else high))
            if not data:
                return page
            chunk = list(enumerate(data, begin))
            if descending:
                chunk.reverse()
            for index, entry in chunk:
                if self._left <= 0 or len(page.entries) >= self._limit:
                    page.following = index
                    return page
                self._left -= 1
                if not await self._wanted(entry, begin, data):
                    continue
                self._bytes += len(entry)
                if page.entries and self._bytes > PAGE_BYTES:
                    page.following = index
                    return page
                page.entries.append((index, entry))
            at = begin - 1 if descending else begin + len(data)
        return page

    async def intents_of(self, found: Sequence[Indexed]) -> list[Indexed]:
        """The intents of outcomes that are not among what was found, by index."""
        here = {index for index, _ in found}
        wanted = {facts.intent.index: index for index, entry in found if (facts := read(entry)).intent is not None}
        return [
            (index, await self._intent(index, 0, []))
            for index, outcome in sorted(wanted.items())
            if index not in here and 0 <= index < outcome
        ]

    async def _wanted(self, entry: bytes, begin: int, around: list[bytes]) -> bool:
        if self._query.is_empty:
            return True
        facts = read(entry)
        if not self._query.may_match(facts):
            return False
        intent: Facts | None = None
        if facts.t == "outcome" and self._query.needs_intent:
            if facts.intent is None or facts.intent.index < 0:
                return False
            intent = read(await self._intent(facts.intent.index, begin, around))
        return self._query.matches(facts, intent)

    async def _intent(self, index: int, begin: int, around: list[bytes]) -> bytes:
        if begin <= index < begin + len(around):
            return around[index - begin]
        known = self._intents.get(index)
        if known is None:
            self._left -= _LONE_READ
            known = b"".join(await self._entries(index, index + 1))
            self._intents[index] = known
        return known


def _shifted(moment: str, slack: timedelta) -> str:
    try:
        return entry_format.timestamp((datetime.fromisoformat(moment) + slack).timestamp())
    except (OverflowError, ValueError):
        return moment
