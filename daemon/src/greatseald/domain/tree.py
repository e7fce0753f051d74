"""The log's Merkle tree: appended to by one thread, proven from by others.

SHA-256 as in RFC 6962, 2.1 (leaf = H(0x00 ‖ entry), node = H(0x01 ‖ left ‖ right)); full tiles as in
C2SP tlog-tiles (256 hashes of 32 bytes at level 8·L). Nothing is read or written here: tiles and
entries come through the functions that `load` is given.

What is kept in memory is bounded: of the leaf hashes and the seven levels above them the newest
`window` leaves (at least, twice as many at most), of each eight levels above those the newest few
thousand nodes. Only nodes of full tiles are let go, and only those that `mark` has declared durable,
so that a proof of any index in any earlier size can be made from the rest through `read_tile`.

    tree = Tree.load(head.size, head.frontier, store.tile, store.entries)
    mark = tree.mark()                                  # all before is durable
    tiles = tree.append([leaf_hash(entry) for entry in entries])
    ... commit entries, tiles, tree.root(), tree.frontier(); if it fails: tree.rewind(mark)
    proof = tree.prover(size).inclusion(index)          # in any thread, for any size ever committed

Threads: `mark`, `append`, `rewind`, `root` and `frontier` belong to one writer. `prover` and what it
returns may be used by any thread for sizes that are committed; nodes of such sizes never change. A
prover takes references to the lists of nodes under a lock and then reads without one: lists only
grow at the end, are cut only above committed sizes, and are replaced, not shortened, at the front.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

HASH_BYTES: Final = 32
TILE_WIDTH: Final = 256
TILE_HEIGHT: Final = 8
TILE_BYTES: Final = TILE_WIDTH * HASH_BYTES
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

WINDOW_LEAVES: Final = 65_536
"""Default of how many of the newest leaves are kept in memory, at least; about 5 MB, 10 MB at most."""

_UPPER_WINDOW: Final = 16 * TILE_WIDTH
_CACHED_TILES: Final = 64
_CACHED_UPPER_PARTS: Final = 4096

CompletedTile = tuple[int, int, bytes]
"""A hash tile that an append filled: its level (0 = leaves), its number, its 256 hashes (8,192 bytes)."""

ReadTile = Callable[[int, int], bytes | None]
ReadEntries = Callable[[int, int], Sequence[bytes]]

_sha256 = hashlib.sha256


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256 of a zero byte and the entry (RFC 6962, 2.1): 32 bytes."""
    return _sha256(b"\x00" + entry).digest()


class TreeDisagrees(Exception):
    """What the store holds does not add up to the head, or a part of it is missing.

    The log was edited, truncated or damaged: nothing may be signed on top of it.
    """


class _Nodes(NamedTuple):
    """The complete nodes of one level from number `base` on."""

    base: int
    hashes: list[bytes]


class Tree:
    """An append-only RFC 6962 tree. See the module for who may call what."""

    def __init__(self, read_tile: ReadTile, window: int = WINDOW_LEAVES) -> None:
        """Start an empty tree; `load` is for a log that exists."""
        self._read_tile = read_tile
        self._window = max(TILE_WIDTH, window - window % TILE_WIDTH)
        self._size = 0
        # Entry l holds level l. An entry is replaced as a whole when its front is let go.
        self._levels: list[_Nodes] = [_Nodes(0, [])]
        # Held while several levels change together, and while a prover takes its references.
        self._lock = threading.Lock()
        self._tiles: OrderedDict[tuple[int, int], list[list[bytes]]] = OrderedDict()
        self._tiles_lock = threading.Lock()

    @classmethod
    def load(
        cls,
        size: int,
        frontier: bytes,
        read_tile: ReadTile,
        read_entries: ReadEntries,
        *,
        root: bytes | None = None,
        window: int = WINDOW_LEAVES,
    ) -> Tree:
        """Rebuild the tree of `size` entries from stored tiles and the entries after the last full one.

        `read_tile(level, index)` gives a full tile or None; `read_entries(start, end)` the entries'
        exact bytes. Reads up to 255 tiles a level: the ragged part of the level above is recomputed.

        Raises:
            TreeDisagrees: a tile or entry is missing, or they do not lead to `frontier` (and to
                `root`, where it is given).
        """
        tree = cls(read_tile, window)
        tree._size = size
        tree._levels = []
        for level in range(_tile_levels(size)):
            count = size >> (TILE_HEIGHT * level)
            base = count - count % TILE_WIDTH
            tree._fill(level, base, tree._ragged(level, base, count, read_entries))
        if not tree._levels:
            tree._levels = [_Nodes(0, [])]
        if tree.frontier() != frontier:
            message = (
                f"the stored entries and tiles do not lead to the log's head at size {size}: one of them was changed"
            )
            raise TreeDisagrees(message)
        if root is not None and tree.root() != root:
            message = f"the log's head at size {size} contradicts itself: its frontier leads to another root"
            raise TreeDisagrees(message)
        return tree

    @property
    def size(self) -> int:
        """Number of leaves."""
        return self._size

    def root(self) -> bytes:
        """The root hash, 32 bytes; SHA-256 of nothing for an empty tree."""
        root = b""
        size, level = self._size, 0
        while size:
            if size & 1:
                left = self._newest(level, size)
                root = _sha256(b"\x01" + left + root).digest() if root else left
            size >>= 1
            level += 1
        return root or EMPTY_ROOT

    def frontier(self) -> bytes:
        """The roots of the perfect subtrees that make up the tree, largest first, 32 bytes each."""
        parts = []
        size, level = self._size, 0
        while size:
            if size & 1:
                parts.append(self._newest(level, size))
            size >>= 1
            level += 1
        parts.reverse()
        return b"".join(parts)

    def append(self, leaf_hashes: Sequence[bytes]) -> list[CompletedTile]:
        """Append leaves (32 bytes each, from `leaf_hash`) and return the tiles that they filled, leaves' first."""
        sha256 = _sha256
        old, new = self._size, self._size + len(leaf_hashes)
        base, hashes = self._levels[0]
        hashes.extend(leaf_hashes)
        tiles: list[CompletedTile] = []
        level = 0
        before, after = old, new
        while True:
            if level % TILE_HEIGHT == 0 and before >> TILE_HEIGHT != after >> TILE_HEIGHT:
                for index in range(before >> TILE_HEIGHT, after >> TILE_HEIGHT):
                    start = index * TILE_WIDTH - base
                    data = b"".join(hashes[start : start + TILE_WIDTH])
                    tiles.append((level // TILE_HEIGHT, index, data))
            before >>= 1
            after >>= 1
            if before == after:
                break
            pairs = iter(hashes[2 * before - base : 2 * after - base])
            level += 1
            if level == len(self._levels):
                self._levels.append(_Nodes(0, []))
            base, hashes = self._levels[level]
            hashes.extend([sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)])
        self._size = new
        return tiles

    def mark(self) -> int:
        """Declare all appends so far durable and return the place that `rewind` goes back to."""
        if len(self._levels[0].hashes) >= 2 * self._window:
            self._let_go()
        return self._size

    def rewind(self, mark: int) -> None:
        """Undo every append since `mark`, the newest mark taken: their commit failed.

        Raises:
            ValueError: `mark` is above the size or before what is still in memory.
        """
        if not self._levels[0].base <= mark <= self._size:
            message = f"cannot rewind a tree of {self._size} leaves to {mark}"
            raise ValueError(message)
        with self._lock:
            self._size = mark
            for level, (base, hashes) in enumerate(self._levels):
                del hashes[max(0, (mark >> level) - base) :]

    def prover(self, size: int) -> Prover:
        """Return what makes proofs in the tree of `size` leaves, any size that was ever committed.

        Raises:
            ValueError: the tree is smaller.
        """
        with self._lock:
            if not 0 <= size <= self._size:
                message = f"the tree has {self._size} leaves, not {size}"
                raise ValueError(message)
            levels = self._levels.copy()
        return Prover(size, levels, self._old_node)

    def _newest(self, level: int, count: int) -> bytes:
        base, hashes = self._levels[level]
        return hashes[count - 1 - base]

    def _let_go(self) -> None:
        """Drop the oldest nodes but for the windows, whole tiles at a time."""
        with self._lock:
            for tile_level in range(_tile_levels(self._size)):
                keep = self._window if tile_level == 0 else _UPPER_WINDOW
                first = tile_level * TILE_HEIGHT
                base, hashes = self._levels[first]
                count = base + len(hashes)
                new_base = max(base, (count - keep) // TILE_WIDTH * TILE_WIDTH)
                if new_base == base:
                    continue
                for step, level in enumerate(range(first, min(first + TILE_HEIGHT, len(self._levels)))):
                    nodes = self._levels[level]
                    cut = new_base >> step
                    # A new list: a prover may be reading the old one.
                    self._levels[level] = _Nodes(cut, nodes.hashes[cut - nodes.base :])

    def _ragged(self, level: int, base: int, count: int, read_entries: ReadEntries) -> list[bytes]:
        """The hashes of tile level `level` from `base` to `count`, which no full tile holds."""
        if level:
            return [self._pyramid(level - 1, index)[-1][0] for index in range(base, count)]
        entries = read_entries(base, count)
        if len(entries) != count - base:
            message = (
                f"the log's head says {count} entries, and those from {base} on are {len(entries)}: some are missing"
            )
            raise TreeDisagrees(message)
        return [leaf_hash(entry) for entry in entries]

    def _fill(self, tile_level: int, base: int, hashes: list[bytes]) -> None:
        """Take `hashes` as the newest of a tile level and compute the seven levels above them."""
        for step in range(TILE_HEIGHT):
            if not self._size >> (tile_level * TILE_HEIGHT + step):
                return
            self._levels.append(_Nodes(base >> step, hashes))
            hashes = _parents(hashes)

    def _pyramid(self, tile_level: int, index: int) -> list[list[bytes]]:
        """A full tile's hashes and the eight levels above them, the last being its root. Any thread."""
        key = (tile_level, index)
        with self._tiles_lock:
            pyramid = self._tiles.get(key)
            if pyramid is not None:
                self._tiles.move_to_end(key)
                return pyramid
        data = self._read_tile(tile_level, index)
        if data is None or len(data) != TILE_BYTES:
            problem = "is missing" if data is None else f"has {len(data)} bytes instead of {TILE_BYTES}"
            message = f"the full hash tile {index} of level {tile_level} {problem}"
            raise TreeDisagrees(message)
        row = [data[start : start + HASH_BYTES] for start in range(0, TILE_BYTES, HASH_BYTES)]
        pyramid = [row]
        for _ in range(TILE_HEIGHT):
            row = _parents(row)
            pyramid.append(row)
        with self._tiles_lock:
            self._tiles[key] = pyramid
            if len(self._tiles) > _CACHED_TILES:
                self._tiles.popitem(last=False)
        return pyramid

    def _old_node(self, level: int, index: int) -> bytes:
        """A node that is no longer in memory, so within a full tile."""
        tile_level, step = divmod(level, TILE_HEIGHT)
        tile, place = divmod(index, TILE_WIDTH >> step)
        return self._pyramid(tile_level, tile)[step][place]


class Prover:
    """Makes proofs in the tree of one size. Cheap to make, meant to be used for a batch and dropped."""

    __slots__ = ("_base", "_full", "_levels", "_low", "_old_node", "_ragged", "_upper", "size")

    def __init__(self, size: int, levels: list[_Nodes], old_node: Callable[[int, int], bytes]) -> None:
        self.size = size
        self._levels = levels
        self._old_node = old_node
        self._full = size >> TILE_HEIGHT
        self._base = levels[0].base
        self._low = tuple(nodes.hashes for nodes in levels[:TILE_HEIGHT])
        self._ragged = self._right_edge()
        self._upper: dict[int, bytes] = {}

    def inclusion(self, index: int) -> bytes:
        """The inclusion proof of leaf `index`: 32-byte hashes from the leaf's sibling upwards, concatenated.

        RFC 9162, 2.1.3.1.

        Raises:
            ValueError: there is no such leaf in this size.
            TreeDisagrees: a stored tile is missing.
        """
        tile = index >> TILE_HEIGHT
        upper = self._upper.get(tile)
        if upper is None:
            upper = self._upper_part(index)
        if self._base <= index and tile < self._full:
            at = index - self._base
            l0, l1, l2, l3, l4, l5, l6, l7 = self._low
            return b"".join(
                (
                    l0[at ^ 1],
                    l1[at >> 1 ^ 1],
                    l2[at >> 2 ^ 1],
                    l3[at >> 3 ^ 1],
                    l4[at >> 4 ^ 1],
                    l5[at >> 5 ^ 1],
                    l6[at >> 6 ^ 1],
                    l7[at >> 7 ^ 1],
                    upper,
                )
            )
        return (self._low_part(index) if self._base <= index < self.size else self._path(index, 0, TILE_HEIGHT)) + upper

    def root(self) -> bytes:
        """The root of this prover's tree, 32 bytes; SHA-256 of nothing for an empty one (RFC 6962, 2.1)."""
        return self._range(0, self.size) if self.size else _sha256(b"").digest()

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the tree of `old` leaves is the beginning of that of `new`, at most this prover's size.

        RFC 9162, 2.1.4.1; empty where the sizes are equal or `old` is 0.

        Raises:
            ValueError: the sizes are not in order.
            TreeDisagrees: a stored tile is missing.
        """
        if not 0 <= old <= new <= self.size:
            message = f"no consistency proof leads from size {old} to {new} within {self.size}"
            raise ValueError(message)
        if old in {0, new}:
            return []
        proof: list[bytes] = []
        start, end, whole = 0, new, True  # whole: the range begins where the old tree does
        while end != old:
            split = start + _largest_power_below(end - start)
            if old <= split:
                proof.append(self._range(split, end))
                end = split
            else:
                proof.append(self._range(start, split))
                start, whole = split, False
        if not whole:
            proof.append(self._range(start, end))
        proof.reverse()
        return proof

    def _upper_part(self, index: int) -> bytes:
        """The proof's hashes from level 8 up, which all leaves of a tile share."""
        if not 0 <= index < self.size:
            message = f"a tree of {self.size} leaves has no leaf {index}"
            raise ValueError(message)
        part = self._path(index, TILE_HEIGHT, (self.size - 1).bit_length())
        if len(self._upper) >= _CACHED_UPPER_PARTS:
            self._upper.clear()
        self._upper[index >> TILE_HEIGHT] = part
        return part

    def _low_part(self, index: int) -> bytes:
        """`_path` up to level 8 for a leaf of the tile at the right edge, all of which is in memory."""
        at, left = index - self._base, self.size - self._base
        path = []
        for hashes, ragged in zip(self._low, self._ragged, strict=False):
            sibling = at ^ 1
            if sibling < left:
                path.append(hashes[sibling])
            elif sibling == left:
                path.append(ragged)
            at >>= 1
            left >>= 1
        return b"".join(path)

    def _path(self, index: int, first: int, end: int) -> bytes:
        """The siblings of leaf `index`'s ancestors at the levels from `first` to `end` (excluded)."""
        if index >= self.size:
            message = f"a tree of {self.size} leaves has no leaf {index}"
            raise ValueError(message)
        path = []
        place, count = index >> first, self.size >> first
        for level in range(first, min(end, (self.size - 1).bit_length())):
            sibling = place ^ 1
            if sibling < count:
                base, hashes = self._levels[level]
                path.append(hashes[sibling - base] if sibling >= base else self._old_node(level, sibling))
            elif sibling == count and self._ragged[level]:
                path.append(self._ragged[level])
            place >>= 1
            count >>= 1
        return b"".join(path)

    def _right_edge(self) -> list[bytes]:
        """For each level the hash of the leaves that make up no complete node there; empty where there are none."""
        ragged = b""
        edge = []
        count, level = self.size, 0
        while count:
            edge.append(ragged)
            if count & 1:
                node = self._node(level, count - 1)
                ragged = _sha256(b"\x01" + node + ragged).digest() if ragged else node
            count >>= 1
            level += 1
        edge.append(ragged)
        return edge

    def _node(self, level: int, index: int) -> bytes:
        base, hashes = self._levels[level]
        return hashes[index - base] if index >= base else self._old_node(level, index)

    def _range(self, start: int, end: int) -> bytes:
        """The hash of leaves `start` to `end` (excluded), a subtree of some RFC 6962 tree."""
        count = end - start
        if count & (count - 1) == 0:
            level = count.bit_length() - 1
            return self._node(level, start >> level)
        split = start + _largest_power_below(count)
        return _sha256(b"\x01" + self._range(start, split) + self._range(split, end)).digest()


def _parents(hashes: list[bytes]) -> list[bytes]:
    """The complete nodes above a row of nodes whose first is a left child."""
    pairs = iter(hashes)
    return [_sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=False)]


def _tile_levels(size: int) -> int:
    """How many tile levels have at least one complete node."""
    return (size.bit_length() + TILE_HEIGHT - 1) // TILE_HEIGHT


def _largest_power_below(count: int) -> int:
    """The largest power of two smaller than `count`, which is at least 2."""
    return 1 << ((count - 1).bit_length() - 1)
