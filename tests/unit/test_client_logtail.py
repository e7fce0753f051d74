"""Following a log: nothing twice, nothing left out, and an end where the log is not what it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client_peer import Peer, served
from greatseal.client import Client
from greatseal.errors import LogRegressed, UsageError, VerificationFailed
from greatseal.logtail import STEP, LogTail
from greatseal.messages import EntryFilter
from greatseal.v1 import audit_pb2
from sample_log import SampleLog


@pytest.fixture
def peer() -> Peer:
    peer = Peer()
    peer.log = SampleLog(private_key=peer.log.private_key)
    peer.log.grow(20)
    return peer


@pytest.fixture
def client(peer: Peer, tmp_path: Path) -> Iterator[Client]:
    with served(peer, tmp_path) as profile, Client(profile) as client:
        yield client


def _taken(tail: LogTail) -> list[int]:
    return [entry.index for page in tail.step() for entry in page.entries]


@pytest.mark.parametrize("start", [0, 1, 7, 8, 19, 20])
def test_every_entry_comes_once_from_any_start(peer: Peer, client: Client, start: int):
    tail = LogTail(client, start)
    assert _taken(tail) == list(range(start, 20))
    assert _taken(tail) == []
    peer.log.grow(13)
    assert _taken(tail) == list(range(20, 33))


def test_more_than_a_step_comes_in_parts_that_are_each_proven(peer: Peer, client: Client):
    tail = LogTail(client, 5)
    peer.log.grow(STEP + 100)
    pages = list(tail.step())
    assert [len(page.entries) for page in pages] == [STEP, 115]


def test_a_step_that_was_left_in_the_middle_goes_on_there(peer: Peer, client: Client):
    tail = LogTail(client, 0)
    peer.log.grow(2 * STEP)
    first = next(iter(tail.step()))
    assert [entry.index for entry in first.entries] + _taken(tail) == list(range(2 * STEP + 20))


@pytest.mark.parametrize("wanted", [None, EntryFilter(key="keys/release")])
def test_a_log_that_is_shorter_or_another_ends_it(peer: Peer, client: Client, wanted: EntryFilter | None):
    tail = LogTail(client, 0, wanted)
    list(tail.step())
    whole = peer.log
    for size in (19, 20, 21):
        other = SampleLog(private_key=whole.private_key)
        other.append([b'{"another":"beginning"}'])
        other.grow(size - 1)
        peer.log = other
        with pytest.raises(LogRegressed) as caught:
            list(tail.step())
        assert caught.value.remembered == whole.note(20)
        assert caught.value.presented == other.note()


@pytest.mark.parametrize(
    "lie",
    [
        lambda entries: entries[2].__setattr__("data", entries[2].data.replace(b"reload", b"forged")),
        lambda entries: entries.__delitem__(2),
        lambda entries: entries.__delitem__(-1),
        lambda entries: entries[2].__setattr__("index", 21),
        lambda entries: entries[2].__setattr__("data", b"x" * 20_000),
        lambda entries: entries.reverse(),
        lambda entries: entries.append(entries[0]),
    ],
)
def test_what_the_checkpoint_does_not_cover_is_never_handed_out(
    peer: Peer, client: Client, monkeypatch: pytest.MonkeyPatch, lie: Callable[[Any], None]
):
    tail = LogTail(client, 0)
    list(tail.step())
    peer.log.grow(5)
    honest = peer.ListEntries

    def answer(request: Any) -> Any:
        page = honest(request)
        lie(page.entries)
        return page

    monkeypatch.setattr(peer, "ListEntries", answer)
    with pytest.raises(VerificationFailed):
        list(tail.step())
    assert tail.following == 20
    monkeypatch.undo()
    assert _taken(tail) == list(range(20, 25))


def test_a_start_beyond_the_end_is_refused(client: Client):
    with pytest.raises(UsageError, match="20 entries"):
        list(LogTail(client, 21).step())


def test_pages_that_never_end_are_refused(peer: Peer, client: Client, monkeypatch: pytest.MonkeyPatch):
    tokens = iter(range(10**9))

    def answer(_request: Any) -> Any:
        return audit_pb2.ListEntriesResponse(next_page_token=str(next(tokens)), log_size=20)

    monkeypatch.setattr(peer, "ListEntries", answer)
    with pytest.raises(VerificationFailed, match="do not end"):
        list(client.audit.entries(wanted=EntryFilter(key="keys/release")))
    assert next(tokens) < 30
