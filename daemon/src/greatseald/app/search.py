"""Searching the log: a page at a time, each for a bounded price.

Where the index (`app/indexing.py`) covers the log and tells apart what is asked for, only its candidates are
read; elsewhere a search looks at entries one after the other. Either way each entry is judged by itself, so
that the index saves reading and decides nothing. A page ends when it is full, or when as many entries were
looked at as one page may cost; whoever wants more asks again. Every few hundred entries the work goes back
through the event loop, and one search runs at a time: signatures in between wait for a millisecond, not for
a search.

Times are found by bisection, so that "the last two hours" of a long log costs what two hours hold.
That takes clocks that never were over an hour wrong; entries beyond that may be missed.

    page = await LogSearch(log).page(EntryQuery(key="keys/release"), start=0, limit=100, size=log.size)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Protocol

from greatseald.domain import entries as entry_format
from greatseald.domain.entry_query import EntryQuery, Facts, read
from greatseald.domain.errors import EntryPruned

CHUNK: Final = 256
MOST_EXAMINED: Final = 8192
"""Entries that one page may cost; an intent that is read by itself counts as eight."""
PAGE_BYTES: Final = 2 * 1024 * 1024
"""A page ends after so many bytes of entries: gRPC clients take 4 MiB unless told otherwise."""
CLOCK_SLACK: Final = timedelta(hours=1)
_LONE_READ: Final = 8

Entries = Callable[[int, int], Awaitable[list[bytes]]]
Indexed = tuple[int, bytes]


class SearchedLog(Protocol):
    """What a search reads."""

    async def entries(self, start: int, end: int) -> list[bytes]:
        """Return the exact bytes from the first index to the second (excluded), clipped to the log.

        Raises:
            EntryPruned: the first was pruned.
        """
        ...

    async def following(
        self, at: int, low: int, high: int, count: int, *, descending: bool
    ) -> tuple[list[Indexed], int]:
        """Return up to `count` entries that are there from `at` on, within the bounds, and the index to go on from."""
        ...

    async def some(self, indexes: Sequence[int]) -> list[Indexed]:
        """Return those of the entries that are there, in the order asked for."""
        ...

    async def pruned_size(self) -> int:
        """Return the size below which only kept entries are there."""
        ...


class Candidates(Protocol):
    """The index as a search sees it: it covers `first` to `size` (excluded), nothing where `size` is 0."""

    @property
    def first(self) -> int: ...
    @property
    def size(self) -> int: ...

    async def candidates(
        self, query: EntryQuery, low: int, high: int, count: int, *, descending: bool
    ) -> list[int] | None:
        """Return up to `count` indexes that may match, in order; None where it cannot tell or cannot be used."""
        ...


async def first_at(entries: Entries, moment: str, low: int, high: int) -> int:
    """Return the first index from `low` to `high` whose time is not before `moment`, where times only grow."""
    while low < high:
        middle = (low + high) // 2
        facts = read((await entries(middle, middle + 1))[0])
        low, high = (middle + 1, high) if facts.ts < moment else (low, middle)
    return low


@dataclass(slots=True)
class Page:
    """Entries found, the intents of its outcomes where asked for, and the index to go on from (None at the end)."""

    entries: list[Indexed] = field(default_factory=list)
    intents: list[Indexed] = field(default_factory=list)
    following: int | None = None


class LogSearch:
    """Searches one log.

    Args:
        log: what is searched.
        index: what says where to look in a part of it.
    """

    def __init__(self, log: SearchedLog, index: Candidates | None = None) -> None:
        self._log = log
        self._index = index
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
            return await _Search(self._log, query, limit).run(start, 0, size, descending=descending)
        async with self._turn:
            low, high = await self._bounds(query, size)
            search = _Search(self._log, query, limit)
            page = Page()
            for source, first, end in await self._parts(query, low, high, descending=descending):
                await search.run(start, first, end, descending=descending, source=source, page=page)
                if page.following is not None:
                    break
            if with_intents:
                page.intents = await search.intents_of(page.entries)
            return page

    async def _parts(
        self, query: EntryQuery, low: int, high: int, *, descending: bool
    ) -> list[tuple[Candidates | None, int, int]]:
        """Cut the bounds into what is before the index, what it covers, and what is after it; in the order asked for."""
        index = self._index
        if index is None or query.is_empty or not index.size:
            return [(None, low, high)]
        first = max(low, index.first, await self._log.pruned_size())
        end = min(high, index.size)
        if first >= end or await index.candidates(query, first, end, 1, descending=descending) is None:
            return [(None, low, high)]
        parts: list[tuple[Candidates | None, int, int]] = [(None, low, first), (index, first, end), (None, end, high)]
        return parts[::-1] if descending else parts

    async def _bounds(self, query: EntryQuery, size: int) -> tuple[int, int]:
        """The indexes between which the times asked for lie, with some slack."""
        low, high = 0, size
        if query.since or query.until:
            mark = await self._log.pruned_size()
            if query.since:
                low = await first_at(self._log.entries, _shifted(query.since, -CLOCK_SLACK), mark, size)
                low = 0 if low == mark else low  # kept entries below may be as young
            if query.until:
                high = await first_at(self._log.entries, _shifted(query.until, CLOCK_SLACK), mark, size)
        return low, high


class _Search:
    """One page being filled."""

    def __init__(self, log: SearchedLog, query: EntryQuery, limit: int) -> None:
        self._log = log
        self._query = query
        self._limit = limit
        self._left = MOST_EXAMINED
        self._bytes = 0
        self._intents: dict[int, bytes] = {}

    async def run(
        self,
        start: int,
        low: int,
        high: int,
        *,
        descending: bool,
        source: Candidates | None = None,
        page: Page | None = None,
    ) -> Page:
        """Fill a page, one that was begun where given, with what lies within the bounds."""
        page = Page() if page is None else page
        at = min(start, high - 1) if descending else max(start, low)
        while low <= at < high:
            if len(page.entries) >= self._limit:
                page.following = at
                return page
            chunk, following = await self._chunk(source, at, low, high, self._limit - len(page.entries), descending)
            around = dict(chunk)
            for index, entry in chunk:
                if self._left <= 0 or len(page.entries) >= self._limit:
                    page.following = index
                    return page
                self._left -= 1
                if not await self._wanted(entry, around):
                    continue
                self._bytes += len(entry)
                if page.entries and self._bytes > PAGE_BYTES:
                    page.following = index
                    return page
                page.entries.append((index, entry))
            at = following
        return page

    async def _chunk(
        self, source: Candidates | None, at: int, low: int, high: int, wanted: int, descending: bool
    ) -> tuple[list[Indexed], int]:
        """The next entries to look at, and the index to go on from."""
        if source is not None:
            count = min(CHUNK, wanted)
            bounds = (low, at + 1) if descending else (at, high)
            found = await source.candidates(self._query, *bounds, count, descending=descending)
            if found is not None:
                self._left -= (_LONE_READ - 1) * len(found)
                end = low - 1 if descending else high
                step = -1 if descending else 1
                return await self._log.some(found), found[-1] + step if len(found) == count else end
        count = CHUNK if not self._query.is_empty else min(CHUNK, wanted)
        return await self._log.following(at, low, high, count, descending=descending)

    async def intents_of(self, found: Sequence[Indexed]) -> list[Indexed]:
        """The intents of outcomes that are not among what was found, by index."""
        here = {index for index, _ in found}
        wanted = {facts.intent.index: index for index, entry in found if (facts := read(entry)).intent is not None}
        intents = [
            (index, await self._intent(index, {}))
            for index, outcome in sorted(wanted.items())
            if index not in here and 0 <= index < outcome
        ]
        return [(index, entry) for index, entry in intents if entry]

    async def _wanted(self, entry: bytes, around: Mapping[int, bytes]) -> bool:
        if self._query.is_empty:
            return True
        facts = read(entry)
        if not self._query.may_match(facts):
            return False
        intent: Facts | None = None
        if facts.t == "outcome" and self._query.needs_intent:
            if facts.intent is None or facts.intent.index < 0:
                return False
            intent = read(await self._intent(facts.intent.index, around))
        return self._query.matches(facts, intent)

    async def _intent(self, index: int, around: Mapping[int, bytes]) -> bytes:
        """An outcome's intent; nothing where it was pruned."""
        if index in around:
            return around[index]
        known = self._intents.get(index)
        if known is None:
            self._left -= _LONE_READ
            try:
                known = b"".join(await self._log.entries(index, index + 1))
            except EntryPruned:
                known = b""
            self._intents[index] = known
        return known


def _shifted(moment: str, slack: timedelta) -> str:
    try:
        return entry_format.timestamp((datetime.fromisoformat(moment) + slack).timestamp())
    except (OverflowError, ValueError):
        return moment
