"""Searching the log finds what it should, for a bounded price a page, in both orders."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from greatseald.app.search import CHUNK, MOST_EXAMINED, LogSearch, Page
from greatseald.domain import entries as entry_format
from greatseald.domain.entry_query import EntryQuery, read
from greatseald.domain.errors import EntryPruned

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def _ts(minutes: float) -> str:
    return entry_format.timestamp((START + timedelta(minutes=minutes)).timestamp())


def _sample(count: int, seed: int = 1) -> list[bytes]:
    """Entries of all kinds, a minute apart; outcomes long after their intents too."""
    draw = random.Random(seed)
    found: list[bytes] = []
    opened: list[int] = []
    for index in range(count):
        value: dict[str, Any] = {"ts": _ts(index), "v": 1}
        kind = draw.choice(["intent", "outcome", "outcome", "denied", "admin"])
        if kind == "outcome" and not opened:
            kind = "intent"
        value["t"] = kind
        if kind in {"intent", "denied"}:
            value["key"] = {"name": draw.choice(["keys/release", "keys/scratch"])}
            value["cli"] = {"id": draw.choice(["spiffe://a/one", "spiffe://a/two", "spiffe://b/one"])}
        if kind == "intent":
            value["tbs"] = f"{index:064x}"[::-1]
            value["subj"] = {"name": draw.choice(["llama", "llama-2", "gemma"]), "digest": f"{index:08x}" + "ab" * 28}
            opened.append(index)
        if kind == "outcome":
            intent = opened.pop(draw.randrange(len(opened)))
            value |= {"intent": {"index": intent}, "tbs": json.loads(found[intent])["tbs"]}
            value["res"] = draw.choice(["signed", "failed", "unknown", "aborted"])
        found.append(json.dumps(value).encode())
    return found


class _Log:
    def __init__(self, entries: list[bytes], pruned: int = 0) -> None:
        self.all = entries
        self.pruned = pruned
        self.given = 0

    async def entries(self, start: int, end: int) -> list[bytes]:
        if start < self.pruned:
            raise EntryPruned("it was")
        found = self.all[start:end]
        self.given += len(found)
        return found

    async def pruned_size(self) -> int:
        return self.pruned

    async def following(
        self, at: int, low: int, high: int, count: int, *, descending: bool
    ) -> tuple[list[tuple[int, bytes]], int]:
        places = range(at, low - 1, -1) if descending else range(at, high)
        there = [index for index in places if index >= self.pruned or b'"t": "admin"' in self.all[index]][:count]
        self.given += len(there)
        end = low - 1 if descending else high
        step = -1 if descending else 1
        return [(index, self.all[index]) for index in there], there[-1] + step if len(there) == count else end


def _pages(log: _Log, query: EntryQuery, *, limit: int, descending: bool, with_intents: bool = False) -> list[Page]:
    async def go() -> list[Page]:
        search, size, pages = LogSearch(log), len(log.all), []
        at: int | None = size - 1 if descending else 0
        while at is not None:
            page = await search.page(query, at, limit, size, descending=descending, with_intents=with_intents)
            pages.append(page)
            at = page.following
        return pages

    return asyncio.run(go())


def _expected(entries: list[bytes], query: EntryQuery) -> list[int]:
    facts = [read(data) for data in entries]
    return [
        index
        for index, fact in enumerate(facts)
        if query.matches(fact, facts[fact.intent.index] if fact.intent is not None else None)
    ]


QUERIES = [
    EntryQuery(),
    EntryQuery(types=frozenset({"denied", "admin"})),
    EntryQuery(results=frozenset({"failed", "denied"})),
    EntryQuery(key="keys/scratch"),
    EntryQuery(caller="spiffe://a/*", results=frozenset({"signed"})),
    EntryQuery(subject="llama"),
    EntryQuery(subject="llama*", key="keys/release"),
    EntryQuery(digest="000000f0"),
    EntryQuery(since=_ts(300), until=_ts(420)),
    EntryQuery(since=_ts(10_000)),
    EntryQuery(until=_ts(-1)),
    EntryQuery(caller="nobody"),
]


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("limit", [1, 7, CHUNK, 1000])
def test_a_search_finds_what_matches_and_nothing_twice(query: EntryQuery, limit: int, descending: bool):
    log = _Log(_sample(900))
    pages = _pages(log, query, limit=limit, descending=descending)
    found = [index for page in pages for index, _ in page.entries]
    assert found == sorted(_expected(log.all, query), reverse=descending)
    assert all(len(page.entries) <= limit for page in pages)


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("descending", [False, True])
def test_of_a_pruned_log_what_is_left_is_found(query: EntryQuery, descending: bool):
    """Admin entries of before, and outcomes whose intents are still there."""
    log = _Log(_sample(900), pruned=400)
    pages = _pages(log, query, limit=7, descending=descending, with_intents=True)
    found = [index for page in pages for index, _ in page.entries]
    facts = [read(data) for data in log.all]

    def judged(index: int) -> bool:
        intent = facts[index].intent
        gone = intent is not None and intent.index < log.pruned and query.needs_intent
        return (index >= log.pruned or facts[index].t == "admin") and not gone

    assert found == sorted(filter(judged, _expected(log.all, query)), reverse=descending)
    assert all(index >= log.pruned for page in pages for index, _ in page.intents)


def test_the_conditions_mean_what_they_say():
    log = _sample(900)
    for index in _expected(log, EntryQuery(caller="spiffe://a/*", results=frozenset({"failed"}))):
        outcome = json.loads(log[index])
        assert (outcome["t"], outcome["res"]) == ("outcome", "failed")
        assert json.loads(log[outcome["intent"]["index"]])["cli"]["id"].startswith("spiffe://a/")
    assert _expected(log, EntryQuery(subject="llama"))
    assert not {json.loads(log[i]).get("subj", {}).get("name") for i in _expected(log, EntryQuery(subject="llama"))} & {
        "llama-2",
        "gemma",
    }


def test_a_page_costs_a_bounded_number_of_entries_even_where_nothing_matches():
    log = _Log(_sample(3 * MOST_EXAMINED))
    pages = _pages(log, EntryQuery(caller="nobody"), limit=100, descending=False)
    assert len(pages) > 3
    assert not any(page.entries for page in pages)
    # Outcomes whose intents are far away are read one by one, and are dearer.
    assert log.given / len(pages) < 1.2 * MOST_EXAMINED


def test_the_last_hours_of_a_long_log_cost_what_they_hold():
    log = _Log(_sample(20_000))
    found = _pages(log, EntryQuery(since=_ts(19_990)), limit=1000, descending=True)
    assert [index for page in found for index, _ in page.entries] == list(range(19_999, 19_989, -1))
    assert log.given < 1000


def test_the_intents_of_a_page_come_with_it_once():
    log = _Log(_sample(900))
    query = EntryQuery(results=frozenset({"signed"}))
    for page in _pages(log, query, limit=10, descending=True, with_intents=True):
        wanted = {json.loads(data)["intent"]["index"] for _, data in page.entries}
        assert {index for index, _ in page.intents} == wanted
        assert all(log.all[index] == data for index, data in page.intents)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"[]", b'{"t":1}', b"[" * 10_000, b'{"t":"outcome","intent":{"index":99999999999999999999}}'],
)
def test_entries_that_cannot_be_read_match_nothing_and_stop_nothing(data: bytes):
    log = _Log(
        [*_sample(20), data, b'{"t":"outcome","res":"signed","intent":{"index":4611686018427387904}}', *_sample(5)]
    )
    found = _pages(log, EntryQuery(key="keys/*"), limit=100, descending=False, with_intents=True)
    indexes = [index for page in found for index, _ in page.entries]
    assert 20 not in indexes
    assert 21 not in indexes
    assert len(_pages(log, EntryQuery(), limit=100, descending=True, with_intents=True)[0].entries) == len(log.all)
