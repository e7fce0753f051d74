"""The log's tree: roots, frontiers, tiles and proofs of any place in any size, however it came to that size."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greatseal.tlog import RootHash, split_hashes, verify_consistency, verify_inclusion
from greatseald.domain.tree import EMPTY_ROOT, TILE_BYTES, Tree, TreeDisagrees, leaf_hash

# The eight leaves, the roots of their first 1 … 8, and proofs, as the Certificate Transparency
# project published them with RFC 6962 and every implementation since has tested against.
CT_LEAVES = [
    bytes.fromhex(each)
    for each in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def naive_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """RFC 6962, 2.1.1."""
    if len(leaves) == 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_consistency(m: int, leaves: Sequence[bytes], *, whole: bool = True) -> list[bytes]:
    """RFC 6962, 2.1.2."""
    if m == len(leaves):
        return [] if whole else [naive_root(leaves)]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m <= k:
        return [*naive_consistency(m, leaves[:k], whole=whole), naive_root(leaves[k:])]
    return [*naive_consistency(m - k, leaves[k:], whole=False), naive_root(leaves[:k])]


class Log:
    """Entries and tiles as a store would keep them, beside the tree that is tested."""

    def __init__(self, window: int = 1 << 16) -> None:
        self.entries: list[bytes] = []
        self.tiles: dict[tuple[int, int], bytes] = {}
        self.tiles_read = 0
        self.window = window
        self.tree = Tree(self.read_tile, window)

    @property
    def leaves(self) -> list[bytes]:
        return [leaf_hash(each) for each in self.entries]

    def read_tile(self, level: int, index: int) -> bytes | None:
        self.tiles_read += 1
        return self.tiles.get((level, index))

    def read_entries(self, start: int, end: int) -> list[bytes]:
        return self.entries[start:end]

    def append(self, count: int) -> None:
        self.tree.mark()
        added = [b"entry %d" % each for each in range(len(self.entries), len(self.entries) + count)]
        self.entries += added
        for level, index, data in self.tree.append([leaf_hash(each) for each in added]):
            assert (level, index) not in self.tiles
            self.tiles[level, index] = data

    def reload(self) -> None:
        self.tree = self.loaded()

    def loaded(self, frontier: bytes | None = None, root: bytes | None = None) -> Tree:
        return Tree.load(
            len(self.entries),
            self.tree.frontier() if frontier is None else frontier,
            self.read_tile,
            self.read_entries,
            root=root,
            window=self.window,
        )


def fast_roots(leaves: Sequence[bytes]) -> list[bytes]:
    """The root of every size from 0 on; RootHash itself is held against RFC 6962 in test_tlog."""
    tree = RootHash()
    roots = [tree.root()]
    for leaf in leaves:
        tree.append(leaf)
        roots.append(tree.root())
    return roots


def test_it_has_the_published_roots():
    tree = Tree(lambda _level, _index: None)
    assert tree.root() == EMPTY_ROOT == hashlib.sha256(b"").digest()
    for entry, root in zip(CT_LEAVES, CT_ROOTS, strict=True):
        tree.append([leaf_hash(entry)])
        assert tree.root().hex() == root


def test_every_place_in_every_small_size_is_proven_as_the_rfc_says():
    log = Log()
    log.append(300)
    leaves = log.leaves
    for size in [*range(1, 34), 63, 64, 65, 127, 128, 129, 200, 254, 255, 256, 257, 258, 299, 300]:
        prover = log.tree.prover(size)
        for index in range(size):
            assert list(split_hashes(prover.inclusion(index))) == naive_path(index, leaves[:size]), (size, index)


def test_every_proof_in_every_size_up_to_300_leads_to_the_root():
    log = Log()
    roots = [log.tree.root()]
    for size in range(1, 301):
        log.append(1)
        roots.append(log.tree.root())
        prover = log.tree.prover(size)
        assert prover.root() == roots[size]
        for index, leaf in enumerate(log.leaves):
            verify_inclusion(index, size, leaf, split_hashes(prover.inclusion(index)), roots[size])
    assert roots == fast_roots(log.leaves)


def test_every_two_sizes_up_to_130_are_proven_consistent_as_the_rfc_says():
    log = Log()
    log.append(130)
    leaves = log.leaves
    prover = log.tree.prover(130)
    for new in range(1, 131):
        for old in range(1, new + 1):
            assert prover.consistency(old, new) == naive_consistency(old, leaves[:new]), (old, new)


def test_the_frontier_is_the_roots_of_the_perfect_subtrees_largest_first():
    log = Log()
    log.append(7)
    leaves = log.leaves
    assert log.tree.frontier() == naive_root(leaves[:4]) + naive_root(leaves[4:6]) + leaves[6]
    assert Log().tree.frontier() == b""


def test_tiles_hold_the_hashes_of_256_neighbours_at_every_level():
    log = Log(window=256)
    for count in (255, 1, 1, 700, 3000, 61_000, 600):
        log.append(count)
    leaves = log.leaves
    assert sum(level == 0 for level, _ in log.tiles) == len(leaves) // 256
    assert [index for level, index in log.tiles if level == 1] == [0]
    assert log.tiles[0, 3] == b"".join(leaves[768:1024])
    assert len(log.tiles[1, 0]) == TILE_BYTES
    assert log.tiles[1, 0][32 * 255 :] == naive_root(leaves[255 * 256 : 256 * 256])


def test_a_group_that_crosses_many_tiles_equals_one_by_one():
    one, many = Log(), Log()
    many.append(1000)
    for _ in range(1000):
        one.append(1)
    assert one.tiles == many.tiles
    assert one.tree.root() == many.tree.root()
    assert one.tree.frontier() == many.tree.frontier()


@settings(deadline=None, max_examples=40)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["append", "undo", "reload"]), st.integers(0, 700)), max_size=14),
    window=st.sampled_from([256, 512, 1 << 16]),
    data=st.data(),
)
def test_however_it_grew_its_proofs_hold(steps: list[tuple[str, int]], window: int, data: st.DataObject):
    log = Log(window)
    for what, count in steps:
        if what == "append":
            log.append(count)
        elif what == "undo":
            mark = log.tree.mark()
            log.tree.append([b"\xee" * 32] * count)
            log.tree.rewind(mark)
        else:
            log.reload()
    leaves = log.leaves
    size = len(leaves)
    roots = fast_roots(leaves)
    assert log.tree.size == size
    assert log.tree.root() == roots[-1]
    if not size:
        return
    past = data.draw(st.integers(1, size))
    prover = log.tree.prover(past)
    assert prover.root() == roots[past]
    for index in [*data.draw(st.lists(st.integers(0, past - 1), min_size=1, max_size=20)), 0, past - 1]:
        verify_inclusion(index, past, leaves[index], split_hashes(prover.inclusion(index)), roots[past])
    old = data.draw(st.integers(0, past))
    verify_consistency(old, past, prover.consistency(old, past), roots[old], roots[past])


def test_what_left_the_window_is_proven_from_tiles():
    log = Log(window=256)
    for _ in range(90):
        log.append(1000)
    leaves, roots = log.leaves, fast_roots(log.leaves)
    kept = sum(len(nodes.hashes) for nodes in log.tree._levels)
    assert kept < 8000
    for size in (90_000, 65_536, 65_537, 70_001, 1_023, 256, 1):
        prover = log.tree.prover(size)
        assert prover.root() == roots[size]
        for index in {0, 1, size // 3, size // 2, size - 2, size - 1} & set(range(size)):
            verify_inclusion(index, size, leaves[index], split_hashes(prover.inclusion(index)), roots[size])
        for old in (1, 255, 256, 300, 40_000, size - 1, size):
            if old <= size:
                verify_consistency(old, size, prover.consistency(old, size), roots[old], roots[size])
    assert log.tiles_read > 0


def test_a_loaded_tree_goes_on_as_if_it_had_never_stopped():
    log = Log()
    for count in (1, 254, 1, 1, 65_000, 279, 1, 3):
        log.append(count)
        loaded = log.loaded(root=log.tree.root())
        assert loaded.size == log.tree.size
        assert loaded.root() == log.tree.root()
        more = [leaf_hash(b"more %d" % each) for each in range(1030)]
        mark, loaded_mark = log.tree.mark(), loaded.mark()
        assert loaded.append(more) == log.tree.append(more)
        assert loaded.frontier() == log.tree.frontier()
        log.tree.rewind(mark)
        loaded.rewind(loaded_mark)
        assert loaded.root() == log.tree.root()


class TestAnEditedStoreIsNotLoaded:
    def log(self) -> Log:
        log = Log()
        log.append(256 * 300 + 17)
        return log

    def test_another_frontier(self):
        log = self.log()
        frontier = bytearray(log.tree.frontier())
        frontier[40] ^= 1
        with pytest.raises(TreeDisagrees, match="was changed"):
            log.loaded(bytes(frontier))

    def test_a_shorter_frontier(self):
        log = self.log()
        with pytest.raises(TreeDisagrees):
            log.loaded(log.tree.frontier()[:-32])

    def test_another_root(self):
        with pytest.raises(TreeDisagrees, match="another root"):
            self.log().loaded(root=b"\x00" * 32)

    def test_an_edited_entry_after_the_last_full_tile(self):
        log = self.log()
        log.entries[256 * 300 + 2] = b"edited"
        with pytest.raises(TreeDisagrees, match="was changed"):
            log.loaded()

    def test_a_missing_entry(self):
        log = self.log()
        frontier = log.tree.frontier()
        with pytest.raises(TreeDisagrees, match="some are missing"):
            Tree.load(len(log.entries) + 1, frontier, log.read_tile, log.read_entries)

    @pytest.mark.parametrize("tile", [(0, 299), (0, 256), (1, 0)])
    def test_an_edited_tile_of_the_right_edge(self, tile: tuple[int, int]):
        log = self.log()
        log.tiles[tile] = b"\xaa" + log.tiles[tile][1:]
        with pytest.raises(TreeDisagrees):
            log.loaded()

    @pytest.mark.parametrize("data", [None, b"short"])
    def test_a_missing_or_short_tile(self, data: bytes | None):
        log = self.log()
        del log.tiles[0, 270]
        if data is not None:
            log.tiles[0, 270] = data
        with pytest.raises(TreeDisagrees, match="tile 270 of level 0"):
            log.loaded()


def test_an_append_that_failed_leaves_no_trace_in_tiles_or_proofs():
    log = Log()
    log.append(700)
    root, frontier = log.tree.root(), log.tree.frontier()
    mark = log.tree.mark()
    lost = log.tree.append([b"\xbb" * 32] * 900)
    assert lost
    log.tree.rewind(mark)
    assert (log.tree.size, log.tree.root(), log.tree.frontier()) == (700, root, frontier)
    with pytest.raises(ValueError, match="700 leaves"):
        log.tree.prover(701)
    log.append(900)
    assert log.tree.root() == fast_roots(log.leaves)[-1]


def test_rewinding_to_what_never_was_is_refused():
    log = Log(window=256)
    log.append(2000)
    log.tree.mark()
    with pytest.raises(ValueError, match="cannot rewind"):
        log.tree.rewind(2001)
    with pytest.raises(ValueError, match="cannot rewind"):
        log.tree.rewind(3)


@pytest.mark.parametrize("index", [-1, -257, 10, 256, 10**9])
def test_a_leaf_outside_the_tree_has_no_proof(index: int):
    log = Log()
    log.append(10)
    with pytest.raises(ValueError, match="no leaf"):
        log.tree.prover(10).inclusion(index)


@pytest.mark.parametrize(("old", "new"), [(-1, 5), (6, 5), (5, 11)])
def test_sizes_out_of_order_have_no_consistency_proof(old: int, new: int):
    log = Log()
    log.append(10)
    with pytest.raises(ValueError, match="no consistency proof"):
        log.tree.prover(10).consistency(old, new)


def test_proofs_hold_while_another_thread_appends_rewinds_and_lets_go():
    log = Log(window=256)
    log.append(3000)
    roots = {3000: log.tree.root()}
    committed, stop = [3000], threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for round_number in range(150):
                log.append(97)
                roots[len(log.entries)] = log.tree.root()
                committed[0] = len(log.entries)
                mark = log.tree.mark()
                log.tree.append([bytes([round_number]) * 32] * 300)
                log.tree.rewind(mark)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            failures.append(error)
        finally:
            stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    proofs = 0
    while not stop.is_set():
        size = committed[0]
        prover = log.tree.prover(size)
        for index in (0, size // 2, size - 300, size - 97, size - 1):
            verify_inclusion(
                index, size, leaf_hash(b"entry %d" % index), split_hashes(prover.inclusion(index)), roots[size]
            )
            proofs += 1
    writer.join()
    assert not failures
    assert proofs
