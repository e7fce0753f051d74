"""C2SP tlog-tiles: where tiles stand, what they hold, and the tree that makes them.

A tile holds up to 256 hashes of 32 bytes: those of the tree's level 8·L from 256·N on. A bundle holds
the entries of a tile of level 0, each behind its length in two bytes. Tiles at the right edge are
partial and named by their width.

    tile/0/x001/234     full          tile/0/x001/235.p/17     17 hashes wide
    tile/entries/x001/234

Source: c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from greatseal.checkpoint import EMPTY_ROOT, HASH_BYTES
from greatseal.errors import VerificationFailed
from greatseal.tlog import node_hash

WIDTH: Final = 256
TILE_BYTES: Final = WIDTH * HASH_BYTES
MAX_ENTRY_BYTES: Final = 16 * 1024
MAX_BUNDLE_BYTES: Final = WIDTH * (2 + MAX_ENTRY_BYTES)


class Tile(NamedTuple):
    """A tile, full or partial: `data` is its hashes one after the other."""

    level: int
    number: int
    data: bytes

    def path(self) -> str:
        """Where it stands below the log's directory."""
        return tile_path(str(self.level), self.number, len(self.data) // HASH_BYTES)


def tile_path(level: str, number: int, width: int = WIDTH) -> str:
    """Return the path of a tile, or of a bundle where `level` is `entries`."""
    groups = [f"{number % 1000:03d}"]
    while number >= 1000:
        number //= 1000
        groups.append(f"x{number % 1000:03d}")
    partial = "" if width == WIDTH else f".p/{width}"
    return f"tile/{level}/{'/'.join(reversed(groups))}{partial}"


def pack(entries: Sequence[bytes]) -> bytes:
    """Return a bundle of entries, each below 64 KiB."""
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def unpack(data: bytes, count: int, what: str) -> list[bytes]:
    """Return the `count` entries of a bundle.

    Raises:
        VerificationFailed: it holds more or fewer, or one that is larger than any entry.
    """
    found: list[bytes] = []
    at = 0
    while at < len(data) and len(found) < count:
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data) or end - at - 2 > MAX_ENTRY_BYTES:
            break
        found.append(data[at + 2 : end])
        at = end
    if at != len(data) or len(found) != count:
        message = f"{what} is not a bundle of {count} entries"
        raise VerificationFailed(message)
    return found


class TileTree:
    """The tree of a log whose leaves come one after the other, as tiles; holds the right edge only."""

    def __init__(self) -> None:
        self.size = 0
        self._levels: list[list[bytes]] = []

    @classmethod
    def from_tiles(cls, tiles: Sequence[Tile]) -> TileTree:
        """The tree whose partial tiles are these, one a level from 0 on, empty ones included."""
        tree = cls()
        tree._levels = [[*_hashes(tile.data)] for tile in tiles]
        tree.size = sum(len(level) << 8 * height for height, level in enumerate(tree._levels))
        return tree

    def append(self, leaf: bytes) -> Iterator[Tile]:
        """Add a leaf's hash; gives the tiles that it makes full."""
        self.size += 1
        level = 0
        while True:
            if level == len(self._levels):
                self._levels.append([])
            row = self._levels[level]
            row.append(leaf)
            if len(row) < WIDTH:
                return
            self._levels[level] = []
            yield Tile(level, (self.size >> 8 * (level + 1)) - 1, b"".join(row))
            leaf = _fold(row)
            level += 1

    def partial(self) -> list[Tile]:
        """The partial tiles at the right edge, one a level, empty ones included."""
        return [Tile(level, self.size >> 8 * (level + 1), b"".join(row)) for level, row in enumerate(self._levels)]

    def root(self) -> bytes:
        """The root of the leaves so far."""
        perfect: list[bytes] = []
        for row in reversed(self._levels):
            at = 0
            for height in range(7, -1, -1):
                if len(row) >> height & 1:
                    perfect.append(_fold(row[at : at + (1 << height)]))
                    at += 1 << height
        if not perfect:
            return EMPTY_ROOT
        root = perfect[-1]
        for left in perfect[-2::-1]:
            root = node_hash(left, root)
        return root


def _hashes(data: bytes) -> Iterator[bytes]:
    return (data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))


def _fold(row: Sequence[bytes]) -> bytes:
    """The hash above a power of two of hashes."""
    sha256 = hashlib.sha256
    while len(row) > 1:
        pairs = iter(row)
        row = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
    return row[0]
