"""How the entries of one commit stand in one blob: count, lengths, bytes.

    u32 count | u32 length of each | the entries, one after the other          (little-endian)

The lengths stand first, so that one entry can be cut out without a walk over the others, and the
whole is one value of one row: a commit costs one insert, however many entries it has.

    >>> blob = pack([b"one", b"three"])
    >>> unpack(blob, 1, 2)
    [b'three']
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

_LENGTH = 4


class PackedError(ValueError):
    """The bytes are not what `pack` makes: the row was damaged or edited."""


def pack(entries: Sequence[bytes]) -> bytes:
    """Return the blob of `entries` (each under 4 GiB)."""
    count = len(entries)
    return struct.pack(f"<{count + 1}I", count, *map(len, entries)) + b"".join(entries)


def count(blob: bytes) -> int:
    """Return how many entries the blob holds. Raises PackedError."""
    if len(blob) < _LENGTH:
        raise PackedError("a commit's blob is shorter than its count")
    number = int.from_bytes(blob[:_LENGTH], "little")
    if _LENGTH * (number + 1) > len(blob):
        raise PackedError(f"a commit's blob of {len(blob)} bytes claims {number} entries")
    return number


def unpack(blob: bytes, start: int, end: int) -> list[bytes]:
    """Return entries `start` (included) to `end` (excluded) of the blob, both clipped to it. Raises PackedError."""
    number = count(blob)
    lengths = struct.unpack_from(f"<{number}I", blob, _LENGTH)
    body = _LENGTH * (number + 1)
    if body + sum(lengths) != len(blob):
        raise PackedError(f"a commit's blob of {len(blob)} bytes does not have the length that its entries add up to")
    start, end = max(start, 0), min(end, number)
    if start >= end:
        return []
    first = body + sum(lengths[:start])
    bounds = accumulate(lengths[start:end], initial=first)
    return [blob[begin:stop] for begin, stop in pairwise(bounds)]


def cut(rows: Iterable[tuple[int, bytes]], start: int, end: int) -> list[bytes]:
    """Return entries `start` to `end` of the log from the commits (size after it, blob) that hold them, in order.

    Raises:
        PackedError: a blob is malformed, or the commits leave a gap.
    """
    found: list[bytes] = []
    for size, blob in rows:
        first = size - count(blob)
        if first != start + len(found) and (found or first > start):
            raise PackedError(f"the commit that ends at {size} begins at {first}, not at {start + len(found)}")
        found += unpack(blob, start - first, end - first)
    return found


ADMIN: bytes = b'"t":"admin"'
"""Stands in every entry of the type admin and in no other: a quotation mark within a JSON string is escaped."""


def to_keep(size: int, blob: bytes) -> list[tuple[int, bytes, bool]]:
    """Return what stays of a commit that ended at `size` when it is pruned: index, entry, whether it is an admin entry.

    Its admin entries, and its last one. Raises PackedError.
    """
    number = count(blob)
    first = size - number
    entries = unpack(blob, 0, number)
    return [
        (index, entry, ADMIN in entry)
        for index, entry in enumerate(entries, first)
        if index == size - 1 or ADMIN in entry
    ]
