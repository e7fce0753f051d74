"""The blob of a commit: what goes in comes out, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greatseald.adapters.store.packed import PackedError, count, cut, pack, unpack

entries_of = st.lists(st.binary(max_size=300), min_size=1, max_size=20)


@given(entries_of, st.integers(-3, 25), st.integers(-3, 25))
def test_any_range_comes_out_as_it_went_in(entries: list[bytes], start: int, end: int) -> None:
    blob = pack(entries)
    assert count(blob) == len(entries)
    assert unpack(blob, start, end) == entries[max(start, 0) : max(end, 0)]


@given(st.lists(entries_of, min_size=1, max_size=6), st.data())
def test_a_range_is_cut_across_commits(commits: list[list[bytes]], data: st.DataObject) -> None:
    log = [entry for commit in commits for entry in commit]
    start = data.draw(st.integers(0, len(log) - 1))
    end = data.draw(st.integers(start + 1, len(log) + 3))
    rows, size = [], 0
    for commit in commits:
        first, size = size, size + len(commit)
        if size > start and first < end:
            rows.append((size, pack(commit)))
    assert cut(rows, start, end) == log[start:end]


def test_the_layout_is_what_it_says() -> None:
    assert pack([b"one", b"", b"three"]).hex() == "03000000030000000000000005000000" + b"onethree".hex()


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused_or_add_up(blob: bytes) -> None:
    try:
        entries = unpack(blob, 0, 1 << 40)
    except PackedError:
        return
    assert pack(entries) == blob


@pytest.mark.parametrize("blob", [b"", b"\1\0\0", b"\xff\xff\xff\xff", pack([b"a", b"b"])[:-1], pack([b"a"]) + b"x"])
def test_a_damaged_blob_is_refused(blob: bytes) -> None:
    with pytest.raises(PackedError):
        unpack(blob, 0, 1)


def test_a_gap_between_commits_is_refused() -> None:
    rows = [(2, pack([b"0", b"1"])), (4, pack([b"3"]))]
    with pytest.raises(PackedError, match="begins at 3, not at 2"):
        cut(rows, 0, 4)
    with pytest.raises(PackedError, match="begins at 3, not at 2"):
        cut(rows[1:], 2, 4)
