"""What every store promises (`ports/store.py`), over SQLite and PostgreSQL alike."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from greatseald.ports.store import (
    Append,
    Attempt,
    Closing,
    FencesLost,
    Head,
    HeadMoved,
    NewRequest,
    OpenIntent,
    RequestKey,
    RequestsKnown,
    Store,
    StoreError,
    Tile,
)
from store_writing import HASH, StoreWriter, check_log

BOOT = bytes(range(16))
CALLER = b"c" * 16


def key(number: int, attempt: int = 1) -> RequestKey:
    return RequestKey(number.to_bytes(16, "big"), CALLER, attempt)


@pytest.fixture
def writer(store: Store) -> StoreWriter:
    return StoreWriter(store, BOOT)


def snapshot(store: Store) -> tuple[object, ...]:
    """Everything that the port shows."""
    known = [store.attempts(CALLER, key(number).request_id) for number in range(8)]
    return store.head(), store.entries(0, 1 << 40), store.open_intents(), known, store.tile(0, 0), store.tile(0, 1)


def test_an_empty_log_has_no_head(store: Store) -> None:
    assert store.head() is None
    assert store.entries(0, 10) == []
    assert store.tile(0, 0) is None
    assert store.open_intents() == []
    assert store.attempts(CALLER, key(1).request_id) == []


def test_a_store_that_is_sound_is_alive_whenever_it_is_asked(store: Store, writer: StoreWriter) -> None:
    store.check_alive()
    writer.write([b"a"])
    store.check_alive()
    writer.write([b"b"])
    assert check_log(store) == [b"a", b"b"]


def test_what_was_committed_is_read_back_exactly(store: Store, writer: StoreWriter) -> None:
    entries = [b"", b"a", b"\x00\xff" * 300, "ключ".encode(), os.urandom(16_384)]
    batch = writer.build(entries)
    writer.commit(batch)
    writer.write([b"second commit"])
    assert store.entries(0, 6) == [*entries, b"second commit"]
    assert store.head() is not None
    assert writer.build([b"x"]).expected_size == 6


@pytest.mark.parametrize(
    ("start", "end"), [(0, 0), (3, 3), (5, 2), (0, 1), (2, 5), (4, 7), (6, 99), (7, 99), (99, 120), (-3, 2)]
)
def test_ranges_are_clipped_to_the_log_and_cut_across_commits(
    start: int, end: int, store: Store, writer: StoreWriter
) -> None:
    for commit in ([b"0", b"1", b"2"], [b"3"], [b"4", b"5", b"6"]):
        writer.write(commit)
    assert store.entries(start, end) == [b"%d" % index for index in range(max(start, 0), min(end, 7))]


def test_full_tiles_are_kept(store: Store, writer: StoreWriter) -> None:
    writer.write([b"%d" % number for number in range(700)])
    assert len(store.tile(0, 0) or b"") == 8192
    assert len(store.tile(0, 1) or b"") == 8192
    assert store.tile(0, 2) is None
    check_log(store)


def test_a_batch_far_larger_than_usual(store: Store, writer: StoreWriter) -> None:
    entries = [b"%d" % number * 20 for number in range(5_000)]
    requests = [key(number) for number in range(5_000)]
    writer.write(entries, opens=True, requests=requests)
    writer.write([b"o%d" % number for number in range(5_000)], closes=range(5_000))
    assert store.attempts(CALLER, key(4_321).request_id) == [Attempt(1, HASH, 4_321, 9_321)]
    assert check_log(store)[:5_000] == entries


def test_the_size_must_be_the_expected_one(store: Store, writer: StoreWriter) -> None:
    stale = writer.build([b"late"], opens=True, requests=[key(1)])
    writer.write([b"first"])
    before = snapshot(store)
    with pytest.raises(HeadMoved):
        store.append(stale)
    early = Append(5, [b"x"], Head(6, bytes(32), bytes(32), bytes(32)), BOOT, 0)
    with pytest.raises(HeadMoved):
        store.append(early)
    assert snapshot(store) == before
    writer.write([b"goes on"])


def test_a_head_that_its_entries_do_not_lead_to_is_refused(store: Store, writer: StoreWriter) -> None:
    batch = writer.build([b"one", b"two"])
    batch.entries.pop()
    with pytest.raises(ValueError, match="do not give a head"):
        store.append(batch)
    with pytest.raises(ValueError, match="do not give a head"):
        store.append(Append(0, [], Head(0, bytes(32), b"", bytes(32)), BOOT, 0))
    assert store.head() is None


def test_a_fence_is_closed_once(store: Store, writer: StoreWriter) -> None:
    intent = writer.write([b"i0", b"i1", b"i2"], opens=True)
    writer.write([b"o1"], closes=[intent + 1])
    before = snapshot(store)
    with pytest.raises(FencesLost) as lost:
        writer.commit(writer.build([b"o0", b"o1", b"o7"], closes=[0, 1, 7], requests=[key(3)]))
    assert lost.value.intents == [1, 7]
    assert snapshot(store) == before
    writer.write([b"o0", b"o2"], closes=[0, 2])


def test_closing_one_fence_twice_in_one_append_is_refused(store: Store, writer: StoreWriter) -> None:
    writer.write([b"i0", b"i1"], opens=True)
    with pytest.raises(FencesLost) as lost:
        writer.commit(writer.build([b"o", b"o", b"o"], closes=[0, 1, 0]))
    assert lost.value.intents == [0]
    writer.write([b"o", b"o"], closes=[0, 1])


def test_an_attempt_is_recorded_once(store: Store, writer: StoreWriter) -> None:
    writer.write([b"i0", b"i1"], opens=True, requests=[key(1), key(2)])
    before = snapshot(store)
    with pytest.raises(RequestsKnown) as known:
        writer.commit(writer.build([b"x", b"y", b"z"], opens=True, requests=[key(2), key(3), key(1)]))
    assert known.value.keys == [key(2), key(1)]
    assert snapshot(store) == before
    writer.write([b"i2", b"i3"], opens=True, requests=[key(3), key(1, attempt=2)])


def test_one_attempt_twice_in_one_append_is_refused(store: Store, writer: StoreWriter) -> None:
    with pytest.raises(RequestsKnown) as known:
        writer.commit(writer.build([b"x", b"y"], opens=True, requests=[key(5), key(5)]))
    assert known.value.keys == [key(5)]
    assert store.head() is None


def test_of_several_reasons_the_most_fundamental_is_given(store: Store, writer: StoreWriter) -> None:
    writer.write([b"i"], opens=True, requests=[key(1)])
    stale = writer.build([b"x"], closes=[9], requests=[key(1)])
    with pytest.raises(FencesLost):
        store.append(stale)
    writer.write([b"moved"])
    with pytest.raises(HeadMoved):
        store.append(stale)


def test_attempts_tell_their_outcome_in_order(store: Store, writer: StoreWriter) -> None:
    writer.write([b"i0"], opens=True, requests=[key(1)])
    writer.write([b"o0"], closes=[0])
    writer.write([b"i2"], opens=True, requests=[key(1, attempt=2)])
    assert store.attempts(CALLER, key(1).request_id) == [Attempt(1, HASH, 0, 1), Attempt(2, HASH, 2, None)]
    assert store.attempts(b"d" * 16, key(1).request_id) == []


def test_the_same_id_of_two_callers_is_two_requests(store: Store, writer: StoreWriter) -> None:
    other = RequestKey(key(1).request_id, b"d" * 16, 1)
    writer.write([b"i0", b"i1"], opens=True, requests=[key(1), other])
    assert store.attempts(b"d" * 16, other.request_id) == [Attempt(1, HASH, 1, None)]


def test_intents_and_outcomes_may_share_an_append(store: Store, writer: StoreWriter) -> None:
    """As when a group commit finds both queued."""
    writer.write([b"i0", b"i1"], opens=True, requests=[key(1), key(2)])
    batch = writer.build([b"o0", b"i3", b"denied", b"o1"])
    batch.closed = [Closing(0, 2), Closing(1, 5)]
    batch.opened = [3]
    batch.requests = [NewRequest(key(3), HASH, 3)]
    writer.commit(batch)
    assert store.attempts(CALLER, key(2).request_id) == [Attempt(1, HASH, 1, 5)]
    assert store.attempts(CALLER, key(3).request_id) == [Attempt(1, HASH, 3, None)]
    check_log(store)


def test_a_restart_finds_everything(url: str, opened: Callable[..., Store]) -> None:
    first = opened(url, BOOT)
    writer = StoreWriter(first, BOOT)
    writer.write([b"%d" % number for number in range(300)], opens=True, requests=[key(1)])
    writer.write([b"o0", b"o1"], closes=[0, 1])
    head, tile = first.head(), first.tile(0, 0)
    first.close()
    second = opened(url)
    assert (second.head(), second.tile(0, 0)) == (head, tile)
    assert second.open_intents() == [OpenIntent(index, BOOT) for index in range(2, 300)]
    assert second.attempts(CALLER, key(1).request_id) == [Attempt(1, HASH, 0, 300)]
    check_log(second)
    StoreWriter(second, b"n" * 16).write([b"goes on"])


def test_the_own_boot_is_never_dead(store: Store, writer: StoreWriter) -> None:
    writer.write([b"i"], opens=True)
    assert store.open_intents() == []


def test_old_requests_are_forgotten_and_open_ones_stay(store: Store, writer: StoreWriter) -> None:
    writer.write([b"i0", b"i1"], opens=True, requests=[key(7), key(0)], time_ms=1_000)
    writer.write([b"o0"], closes=[0], time_ms=1_500)
    writer.write([b"i3"], opens=True, requests=[key(1)], time_ms=2_000)
    writer.write([b"o3"], closes=[3], time_ms=2_500)
    assert store.forget_requests(2_000, 100) == 1
    assert store.attempts(CALLER, key(7).request_id) == []
    assert store.attempts(CALLER, key(0).request_id) == [Attempt(1, HASH, 1, None)]
    assert store.attempts(CALLER, key(1).request_id) == [Attempt(1, HASH, 3, 4)]
    assert store.forget_requests(2_000, 100) == 0
    # A forgotten id is as good as new.
    writer.write([b"again"], opens=True, requests=[key(7)])


def test_forgetting_takes_no_more_than_it_was_told_and_gets_to_every_old_request(
    store: Store, writer: StoreWriter
) -> None:
    """Old and new ids mixed at random, as UUIDv4 ids are."""
    old = [key(number * 7919 % 1_000) for number in range(100)]
    new = [key(number * 7919 % 1_000) for number in range(100, 200)]
    writer.write([b"i%d" % number for number in range(100)], opens=True, requests=old, time_ms=1_000)
    writer.write([b"o%d" % number for number in range(100)], closes=range(100), time_ms=1_000)
    first = writer.write([b"n%d" % number for number in range(100)], opens=True, requests=new, time_ms=5_000)
    writer.write([b"o%d" % number for number in range(100)], closes=range(first, first + 100), time_ms=5_000)
    forgotten = [store.forget_requests(3_000, 20) for _ in range(40)]
    assert max(forgotten) <= 20
    assert sum(forgotten) == 100
    assert [store.attempts(CALLER, one.request_id) for one in old] == [[]] * 100
    assert all(store.attempts(CALLER, one.request_id) for one in new)


def test_readers_in_other_threads_see_whole_commits_only(store: Store, writer: StoreWriter) -> None:
    done = threading.Event()
    faults: list[str] = []

    def read() -> None:
        while not done.is_set():
            head = store.head()
            if head is None:
                continue
            # Commits have seven entries each; anything else would be half a commit.
            if head.size % 7:
                faults.append(f"head {head.size}")
            last = store.entries(head.size - 7, head.size)
            if last != [b"%d.%d" % (head.size // 7, place) for place in range(7)]:
                faults.append(f"entries {last!r}")

    readers = [threading.Thread(target=read) for _ in range(6)]
    for reader in readers:
        reader.start()
    try:
        for commit in range(1, 60):
            writer.write([b"%d.%d" % (commit, place) for place in range(7)])
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert faults == []


def test_a_closed_store_refuses_and_closing_again_is_harmless(store: Store, writer: StoreWriter) -> None:
    writer.write([b"a"])
    store.close()
    store.close()
    with pytest.raises(StoreError):
        store.head()
    with pytest.raises(StoreError):
        writer.commit(writer.build([b"b"]))


def test_tiles_of_several_levels(store: Store, writer: StoreWriter) -> None:
    batch = writer.build([b"x"])
    batch.tiles = [Tile(0, 2**33, b"a" * 8192), Tile(1, 3, b"b" * 8192)]
    writer.commit(batch)
    assert store.tile(0, 2**33) == b"a" * 8192
    assert store.tile(1, 3) == b"b" * 8192
    assert store.tile(0, 3) is None
