"""A file in chunks: all of it and in order, whichever way it is read, and nothing left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from greatseal.oms import chunks

CHUNK = 512
TRIAL = 4 * CHUNK


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which a file of some kilobytes goes through every stretch."""
    monkeypatch.setattr(chunks, "_AHEAD_BYTES", CHUNK)
    monkeypatch.setattr(chunks, "_TRIAL_BYTES", TRIAL)
    monkeypatch.setattr(chunks, "_STRETCH_BYTES", 4 * TRIAL)


@pytest.fixture(params=["whole reads", "short reads"])
def reads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads as a local disk gives them, and as a network may: fewer bytes than there is room for."""
    real = os.preadv
    if request.param == "short reads":
        monkeypatch.setattr(os, "preadv", lambda file, to, at: real(file, [memoryview(to[0])[: 1 + at % 300]], at))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(os.urandom(TRIAL))
    descriptor = os.open(tmp_path / "file", os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def read(descriptor: int, size: int) -> bytes:
    with closing(chunks.chunks(descriptor, size, bytearray(CHUNK))) as parts:
        return b"".join(map(bytes, parts))


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "greatseal-read"]


@pytest.mark.usefixtures("reads")
@pytest.mark.parametrize(
    "size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, TRIAL, TRIAL + 1, 2 * TRIAL, 3 * TRIAL - 7, 23 * TRIAL + 5]
)
def test_every_byte_comes_once_and_in_order(opened: int, size: int):
    content = os.urandom(size)
    os.ftruncate(opened, 0)
    os.pwrite(opened, content, 0)
    assert read(opened, size) == content
    assert not readers()


@pytest.mark.parametrize("faster", ["_inline", "_ahead"])
def test_the_faster_way_is_gone_on_with_and_the_other_tried_again(
    opened: int, monkeypatch: pytest.MonkeyPatch, faster: str
):
    os.ftruncate(opened, 16 * TRIAL)
    clock = [0.0]
    monkeypatch.setattr(chunks, "perf_counter", lambda: clock[0])
    used: list[tuple[str, int]] = []

    def watched(name: str, real):
        def way(descriptor: int, position: int, end: int, buffer: bytearray):
            used.append((name, (end - position) // TRIAL))
            clock[0] += (end - position) * (1 if name == faster else 2)
            return real(descriptor, position, end, buffer)

        return way

    for name in ("_inline", "_ahead"):
        monkeypatch.setattr(chunks, name, watched(name, getattr(chunks, name)))
    assert len(read(opened, 16 * TRIAL)) == 16 * TRIAL
    slower = {"_inline": "_ahead", "_ahead": "_inline"}[faster]
    assert used == [
        ("_inline", 1),
        ("_ahead", 1),
        *[(faster, 4), (slower, 1)],
        *[(faster, 4), (slower, 1)],
        (faster, 4),
    ]


@pytest.mark.parametrize("way", ["_inline", "_ahead"])
class TestBothWays:
    @pytest.fixture(autouse=True)
    def only(self, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
        monkeypatch.setattr(chunks, "_inline", getattr(chunks, way))

    def test_a_file_that_is_shorter_ends_early(self, opened: int):
        assert len(read(opened, TRIAL + 1)) == TRIAL
        assert not readers()

    def test_an_error_is_raised_where_the_chunks_are_taken(self, opened: int, monkeypatch: pytest.MonkeyPatch):
        real = os.preadv

        def broken(descriptor: int, buffers: list[bytearray], offset: int) -> int:
            if offset >= 2 * CHUNK:
                raise OSError(5, "Input/output error")
            return real(descriptor, buffers, offset)

        monkeypatch.setattr(os, "preadv", broken)
        with closing(chunks.chunks(opened, TRIAL, bytearray(CHUNK))) as parts:
            taken = len(next(parts)) + len(next(parts))
            with pytest.raises(OSError, match="Input/output"):
                next(parts)
        assert taken == 2 * CHUNK
        assert not readers()

    def test_whoever_stops_early_leaves_nobody_reading(self, opened: int):
        with closing(chunks.chunks(opened, TRIAL, bytearray(CHUNK))) as parts:
            assert next(parts)
        assert not readers()
