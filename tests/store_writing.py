"""Writes a log through a store as a front does: tree, tiles, head, retry when another was faster.

writer = StoreWriter(store, boot)
intent = writer.write([b"intent"], opens=True)
writer.write([b"outcome"], closes=[intent])
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from greatseald.domain.tree import Tree, leaf_hash
from greatseald.ports.store import Append, Closing, Head, HeadMoved, NewRequest, RequestKey, Store, Tile

HASH = bytes(range(32))
"""A request's hash where it does not matter which."""


def mac(size: int, root: bytes, frontier: bytes) -> bytes:
    """Stands in for the head's MAC, whose key the store never has."""
    return hashlib.sha256(b"%d" % size + root + frontier).digest()


class StoreWriter:
    def __init__(self, store: Store, boot: bytes) -> None:
        self.store = store
        self.boot = boot
        self.tree = Tree(store.tile)
        self.retries = 0
        self.catch_up()

    def catch_up(self) -> None:
        head = self.store.head()
        if head is None:
            return
        assert head.mac == mac(head.size, head.root, head.frontier)
        if self.tree.size:  # as a front does: only what is new
            self.tree.mark()
            self.tree.append([leaf_hash(entry) for entry in self.store.entries(self.tree.size, head.size)])
            assert self.tree.root() == head.root
            return
        self.tree = Tree.load(head.size, head.frontier, self.store.tile, self.store.entries, root=head.root)

    def build(
        self,
        entries: Sequence[bytes],
        *,
        opens: bool = False,
        closes: Sequence[int] = (),
        requests: Sequence[RequestKey] = (),
        time_ms: int = 1_000,
    ) -> Append:
        """Build the append of `entries` (they all open, or close `closes` in order) and leave the tree as it is."""
        mark, size = self.tree.mark(), self.tree.size
        tiles = [Tile(*tile) for tile in self.tree.append([leaf_hash(entry) for entry in entries])]
        root, frontier = self.tree.root(), self.tree.frontier()
        head = Head(self.tree.size, root, frontier, mac(self.tree.size, root, frontier))
        self.tree.rewind(mark)
        indexes = range(size, size + len(entries))
        return Append(
            size,
            list(entries),
            head,
            self.boot,
            time_ms,
            tiles,
            opened=list(indexes) if opens else [],
            closed=[Closing(intent, outcome) for intent, outcome in zip(closes, indexes, strict=False)],
            requests=[NewRequest(key, HASH, index) for key, index in zip(requests, indexes, strict=False)],
        )

    def commit(self, batch: Append) -> None:
        self.store.append(batch)
        self.tree.append([leaf_hash(entry) for entry in batch.entries])

    def write(
        self,
        entries: Sequence[bytes],
        *,
        opens: bool = False,
        closes: Sequence[int] = (),
        requests: Sequence[RequestKey] = (),
        time_ms: int = 1_000,
    ) -> int:
        """Append, again and again while others are faster; return the first entry's index."""
        while True:
            batch = self.build(entries, opens=opens, closes=closes, requests=requests, time_ms=time_ms)
            try:
                self.commit(batch)
            except HeadMoved:
                self.retries += 1
                self.catch_up()
            else:
                return batch.expected_size


def check_log(store: Store) -> list[bytes]:
    """Recompute the whole tree from the entries, compare it with head and tiles, and return the entries."""
    head = store.head()
    if head is None:
        return []
    entries = store.entries(0, head.size)
    assert len(entries) == head.size
    tree = Tree(store.tile, window=1 << 30)
    tiles = tree.append([leaf_hash(entry) for entry in entries])
    assert (tree.root(), tree.frontier()) == (head.root, head.frontier)
    for level, number, data in tiles:
        assert store.tile(level, number) == data
    return entries
