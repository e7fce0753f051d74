"""Request ids are UUIDv7, unique and increasing, whatever clock and threads do."""

from __future__ import annotations

import os
import threading
import uuid

import pytest

from greatseal.ids import RequestIds, new_request_id


def test_an_id_is_a_uuid_of_version_7_that_carries_its_millisecond():
    ids = RequestIds(clock=lambda: 1_700_000_000_123_456_789)
    made = ids.new()
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert made.int >> 80 == 1_700_000_000_123


def test_ids_increase_within_a_millisecond_and_when_the_clock_is_set_back():
    times = iter([5_000_000] * 1000 + [1_000_000] * 1000 + [6_000_000] * 1000)
    ids = RequestIds(clock=lambda: next(times))
    made = [ids.new() for _ in range(3000)]
    assert made == sorted(made)
    assert len(set(made)) == 3000


def test_a_full_counter_goes_on_in_the_next_millisecond():
    ids = RequestIds(clock=lambda: 7_000_000, random=lambda size: b"\xff" * size)
    ids.new()
    ids._counter = (1 << 26) - 2
    before = [ids.new() for _ in range(3)]
    assert before == sorted(set(before))
    assert before[-1].int >> 80 == 8


def test_threads_never_get_the_same_id():
    ids = RequestIds()
    made: list[list[uuid.UUID]] = [[] for _ in range(8)]
    threads = [threading.Thread(target=lambda mine=mine: mine.extend(ids.new() for _ in range(500))) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each for mine in made for each in mine}) == 4000
    assert all(mine == sorted(mine) for mine in made)


def test_the_text_is_canonical():
    text = new_request_id()
    assert str(uuid.UUID(text)) == text


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_does_not_repeat_ids():
    reading, writing = os.pipe()
    parent_before = new_request_id()
    child = os.fork()
    if child == 0:
        os.write(writing, new_request_id().encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    from_child = os.read(reading, 64).decode()
    os.close(reading)
    assert len({parent_before, from_child, new_request_id()}) == 3
