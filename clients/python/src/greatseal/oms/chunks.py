"""A file in chunks, in flat memory, as fast as the machine gives it to who hashes them.

A single large file keeps one core busy hashing. Where another core idles, a second thread that reads
ahead saves the time of reading; where none does, handing buffers between threads costs more than it
saves. Only trying tells, so stretches of a large file try both ways and go on with the faster one.

    with closing(chunks(descriptor, size, bytearray(CHUNK_BYTES))) as parts:
        for part in parts:          # ends early where the file does
            digest.update(part)     # valid until the next one
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import closing
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from typing import Final

CHUNK_BYTES: Final = 1 << 20
"""What `buffer` should hold."""

_TRIAL_BYTES: Final = 32 << 20
_STRETCH_BYTES: Final = 512 << 20
# Few and small, so that what one core has read is still in a cache when the other one takes it.
_AHEAD_BUFFERS: Final = 3
_AHEAD_BYTES: Final = 512 << 10

Chunks = Generator[memoryview, None, None]
_Way = Callable[[int, int, int, bytearray], Chunks]


def chunks(descriptor: int, size: int, buffer: bytearray) -> Chunks:
    """Give a file's bytes from its beginning, `size` of them or until it ends; more where it has grown.

    Args:
        descriptor: an open file; it has to stay open until the generator is closed.
        size: bytes that are expected.
        buffer: memory to read into, the caller's.

    Raises:
        OSError: the file cannot be read.
    """
    if size <= _TRIAL_BYTES:
        return _inline(descriptor, 0, size, buffer)
    return _large(descriptor, size, buffer)


def _large(descriptor: int, size: int, buffer: bytearray) -> Chunks:
    position = 0
    way: _Way = _inline
    other: _Way = _ahead
    measured = 0.0
    length = _TRIAL_BYTES
    while True:
        began, start, end = perf_counter(), position, min(size, position + length)
        with closing(way(descriptor, position, end, buffer)) as parts:
            for part in parts:
                position += len(part)
                yield part
        if position < end or position >= size:
            return
        speed = (position - start) / (perf_counter() - began)
        if measured and length == _TRIAL_BYTES:  # both ways are known: on with the better one
            length, faster, measured = _STRETCH_BYTES, speed > measured, 0.0
        else:  # this one is known now: try the other
            length, faster, measured = _TRIAL_BYTES, False, speed
        if not faster:
            way, other = other, way


def _inline(descriptor: int, position: int, end: int, buffer: bytearray) -> Chunks:
    view = memoryview(buffer)
    while position < end:
        count = os.preadv(descriptor, [buffer], position)
        if not count:
            return
        position += count
        yield view[:count]


def _ahead(descriptor: int, position: int, end: int, _buffer: bytearray) -> Chunks:
    """As `_inline`, from a thread that reads on while the caller works on what it has."""
    free: SimpleQueue[bytearray | None] = SimpleQueue()
    full: SimpleQueue[memoryview | BaseException] = SimpleQueue()

    def read() -> None:
        at = position
        try:
            while at < end and (buffer := free.get()) is not None:
                count = os.preadv(descriptor, [buffer], at)
                full.put(memoryview(buffer)[:count])
                if not count:
                    return
                at += count
        except BaseException as error:  # noqa: BLE001 -- raised where the chunks are taken
            full.put(error)

    for _ in range(_AHEAD_BUFFERS):
        free.put(bytearray(_AHEAD_BYTES))
    thread = Thread(target=read, name="greatseal-read", daemon=True)
    thread.start()
    try:
        while position < end:
            part = full.get()
            if isinstance(part, BaseException):
                raise part
            if not part:
                return
            position += len(part)
            yield part
            whole = part.obj
            assert isinstance(whole, bytearray)  # noqa: S101 - what it was made of
            free.put(whole)
    finally:
        free.put(None)
        thread.join()
