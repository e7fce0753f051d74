"""SHA-256 of every file of a model, on all cores, in constant memory, and of one moment only.

Each worker is a thread with one buffer of 1 MiB; hashlib and read release the interpreter's lock, so
threads reach what the cores have. Small files travel in batches, large ones alone and first, so that
no worker is left with a 50 GB shard at the end; a core that is left over then reads ahead (`chunks`).

A model that changes while it is read is refused. Every file is opened without following links and
must be the file that was listed (device, inode, size, both times), before its first byte and after
its last; and when all are read, the directory is listed again and must be the same. File systems
stamp times coarsely, so a model that was written to in the last moment is given one more before it
is listed: otherwise two writes could carry one stamp.

    listing = settled(model, ignored)
    digests = hash_files(listing.files, progress=lambda done, total: ...)
    require_unchanged(model, ignored, listing)
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Final

from greatseal.oms.chunks import CHUNK_BYTES, chunks
from greatseal.oms.errors import ModelChanged, ModelRefused, printable
from greatseal.oms.listing import IgnoredPaths, Listing, ModelFile, Stamp, list_model

Progress = Callable[[int, int], None]
"""Called with the bytes hashed so far and the bytes in all, on the calling thread."""

_BATCH_BYTES: Final = 8 << 20
_BATCH_FILES: Final = 128
_TICK_SECONDS: Final = 0.1
# Four ticks of the slowest kernel clock in use (100 Hz), whose tick is the step of file times.
SETTLE_NS: Final = 40_000_000
"""How old a file's times have to be, in ns, for the next write to be told from the last by them."""


def settled(model: Path, ignored: IgnoredPaths) -> Listing:
    """The files of `model`, listed when none was written to within the step of file times."""
    listing = list_model(model, ignored)
    newest = max((file.stamp.ctime_ns for file in listing.files), default=0)
    age = time.time_ns() - newest
    if 0 <= age < SETTLE_NS:
        time.sleep((SETTLE_NS - age) / 1e9)
        listing = list_model(model, ignored)
    return listing


def hash_files(
    files: Sequence[ModelFile], *, progress: Progress | None = None, workers: int | None = None
) -> dict[str, bytes]:
    """The SHA-256 (32 bytes) of each file by name. Raises ModelChanged, or ModelRefused where one cannot be read."""
    total = sum(file.stamp.size for file in files)
    batches = _batches(files)
    count = max(1, min(workers or available_cores(), len(batches)))
    stop = Event()
    tallies = [_Tally() for _ in range(count)]
    digests: dict[str, bytes] = {}
    remaining = iter(batches)
    with ThreadPoolExecutor(count, thread_name_prefix="greatseal-hash") as pool:
        running = [pool.submit(_work, remaining, stop, tally) for tally in tallies]
        try:
            _follow(running, tallies, total, progress)
        finally:
            stop.set()
        for future in running:
            digests.update(future.result())
    return digests


def require_unchanged(model: Path, ignored: IgnoredPaths, before: Listing) -> None:
    """Raise ModelChanged where `model` does not hold exactly the files, in the state, that were listed."""
    after = {file.name: file.stamp for file in list_model(model, ignored).files}
    for file in before.files:
        if after.pop(file.name, None) != file.stamp:
            raise _changed(file.name)
    for name in after:
        raise ModelChanged(
            f"'{printable(name)}' appeared while the model was read; try again when it is at rest", path=name
        )


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Tally:
    """Bytes that one worker has hashed; written by it alone."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = 0


def _batches(files: Sequence[ModelFile]) -> list[list[ModelFile]]:
    """Files in groups for one worker each, most bytes first."""
    batches: list[list[ModelFile]] = []
    size = 0
    for file in sorted(files, key=lambda file: file.stamp.size, reverse=True):
        if not batches or size + file.stamp.size > _BATCH_BYTES or len(batches[-1]) == _BATCH_FILES:
            batches.append([])
            size = 0
        batches[-1].append(file)
        size += file.stamp.size
    return batches


def _follow(
    running: list[Future[dict[str, bytes]]], tallies: list[_Tally], total: int, progress: Progress | None
) -> None:
    tick = None if progress is None else _TICK_SECONDS
    pending: Iterable[Future[dict[str, bytes]]] = running
    while pending:
        done, pending = wait(pending, timeout=tick, return_when=FIRST_EXCEPTION)
        if progress is not None:
            progress(sum(tally.done for tally in tallies), total)
        if any(future.exception() is not None for future in done):
            return


def _work(batches: Iterable[list[ModelFile]], stop: Event, tally: _Tally) -> dict[str, bytes]:
    """Take batches until none is left. A list iterator is safe to share: `next` on it is one step of the interpreter."""
    buffer = bytearray(CHUNK_BYTES)
    digests: dict[str, bytes] = {}
    try:
        for batch in batches:
            for file in batch:
                if stop.is_set():
                    return digests
                digests[file.name] = _hash_file(file, buffer, stop, tally)
    except BaseException:
        stop.set()
        raise
    return digests


def _hash_file(file: ModelFile, buffer: bytearray, stop: Event, tally: _Tally) -> bytes:
    try:
        # NONBLOCK: a pipe put in the file's place must not hang us; regular files ignore it.
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:  # it was a file when listed
            raise _changed(file.name) from None
        raise _unreadable(file.name, error) from None
    try:
        if Stamp.of(os.fstat(descriptor)) != file.stamp:
            raise _changed(file.name)
        digest = hashlib.sha256()
        left = file.stamp.size
        with closing(chunks(descriptor, left, buffer)) as parts:
            for part in parts:
                digest.update(part)
                left -= len(part)
                tally.done += len(part)
                if stop.is_set():
                    break
        if left and not stop.is_set():
            raise _changed(file.name)
        if Stamp.of(os.fstat(descriptor)) != file.stamp:
            raise _changed(file.name)
        return digest.digest()
    except OSError as error:
        raise _unreadable(file.name, error) from None
    finally:
        os.close(descriptor)


def _changed(name: str) -> ModelChanged:
    return ModelChanged(
        f"'{printable(name)}' changed while the model was read; try again when it is at rest", path=name
    )


def _unreadable(name: str, error: OSError) -> ModelRefused:
    return ModelRefused(f"'{printable(name)}' cannot be read: {error.strerror}", path=name)
