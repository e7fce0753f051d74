"""Merkle tree hashes and proofs of RFC 6962 and RFC 9162, verified; the C2SP tlog-proof text.

    verify_inclusion(index, size, leaf_hash(entry), proof, root)
    verify_consistency(old_size, new_size, proof, old_root, new_root)

Hashes are 32 bytes. A proof is a sequence of hashes from the leaf's side to the root's; its length is
determined by the sizes and is checked before anything is hashed. Everything raises `ProofInvalid`.

`RootHash` recomputes the root of a whole log from its entries, one after the other, in constant
memory: what an auditor does.

A tlog-proof carries index, proof and checkpoint, never the entry; its `extra` line is authenticated
by nothing and is neither written nor read here.

Sources: RFC 9162, 2.1.3.2 and 2.1.4.2; c2sp.org/tlog-proof.
"""

from __future__ import annotations

import base64
import binascii
import copy
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from greatseal.checkpoint import EMPTY_ROOT, HASH_BYTES, MAX_TREE_SIZE
from greatseal.note import MAX_NOTE_BYTES
from greatseal.verification import ProofInvalid

MAX_PROOF_HASHES: Final = 63
"""Longest inclusion proof: the height of a tree of 2^63 - 1 leaves."""
MAX_TLOG_PROOF_CHARS: Final = MAX_NOTE_BYTES + 8192

_HEADER: Final = "c2sp.org/tlog-proof@v1"
_INDEX: Final = re.compile("index (0|[1-9][0-9]{0,18})")


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256 of a zero byte and the entry."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256 of a byte 1 and both children's hashes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def split_hashes(concatenated: bytes) -> tuple[bytes, ...]:
    """Cut concatenated 32-byte hashes apart.

    Raises:
        ProofInvalid: the length is no multiple of 32, or there are more than 63.
    """
    if len(concatenated) % HASH_BYTES or len(concatenated) > MAX_PROOF_HASHES * HASH_BYTES:
        raise ProofInvalid(f"a proof of {len(concatenated)} bytes is not up to {MAX_PROOF_HASHES} hashes of 32 bytes")
    return tuple(concatenated[start : start + HASH_BYTES] for start in range(0, len(concatenated), HASH_BYTES))


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Verify that the leaf with hash `leaf` stands at `index` in the tree of `size` leaves under `root`.

    Raises:
        ProofInvalid: it does not, or the proof has another length than this place in this tree takes.
    """
    _check_hashes([root])
    computed = inclusion_root(index, size, leaf, proof)
    if computed != root:
        raise ProofInvalid(
            f"the inclusion proof of leaf {index} does not lead to the root of the tree of {size} leaves"
        )


def inclusion_root(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """Return the root that an inclusion proof leads to: of a tree whose root is proven in another way.

    Raises:
        ProofInvalid: the proof has another length than this place in this tree takes.
    """
    if not 0 <= index < size <= MAX_TREE_SIZE:
        raise ProofInvalid(f"a tree of {size} leaves has no leaf {index}")
    _check_hashes([leaf, *proof])
    # Up to `inner` levels the path turns as the index says; above, every sibling is on the left.
    inner = (index ^ (size - 1)).bit_length()
    expected = inner + (index >> inner).bit_count()
    if len(proof) != expected:
        raise ProofInvalid(f"an inclusion proof of leaf {index} of {size} has {expected} hashes, not {len(proof)}")
    # node_hash written out: a batch of a thousand receipts comes through here forty thousand times.
    sha256 = hashlib.sha256
    computed, turns = leaf, index
    for sibling in proof[:inner]:
        data = b"\x01" + sibling + computed if turns & 1 else b"\x01" + computed + sibling
        computed = sha256(data).digest()
        turns >>= 1
    for sibling in proof[inner:]:
        computed = sha256(b"\x01" + sibling + computed).digest()
    return computed


def verify_consistency(old_size: int, new_size: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Verify that the tree of `old_size` leaves under `old_root` is the beginning of the new one.

    The proof is empty where the sizes are equal or the old tree is empty.

    Raises:
        ProofInvalid: it is not, or the proof has another length than these sizes take.
    """
    if not 0 <= old_size <= new_size <= MAX_TREE_SIZE:
        raise ProofInvalid(f"a tree cannot shrink from {old_size} to {new_size} leaves")
    _check_hashes([old_root, new_root, *proof])
    if old_size == 0 and old_root != EMPTY_ROOT:
        raise ProofInvalid("the old tree is empty and has another root than the empty tree's")
    if old_size == new_size and old_root != new_root:
        raise ProofInvalid(f"two trees of {old_size} leaves have different roots: the log was forked")
    if old_size in {0, new_size}:
        if proof:
            raise ProofInvalid(
                f"a consistency proof from {old_size} to {new_size} leaves is empty, and this one is not"
            )
        return
    _verify_growth(old_size, new_size, proof, old_root, new_root)


def _verify_growth(old_size: int, new_size: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    # The largest perfect subtree at the old tree's right edge: where it is the whole old tree, its
    # hash is the old root and is left out of the proof.
    shift = (old_size & -old_size).bit_length() - 1
    start, last = old_size >> shift, (new_size - 1) >> shift
    index = start - 1
    inner = (index ^ last).bit_length()
    lefts = (index >> inner).bit_count()
    seeded = old_size & (old_size - 1) == 0
    expected = inner + lefts + (0 if seeded else 1)
    if len(proof) != expected:
        raise ProofInvalid(
            f"a consistency proof from {old_size} to {new_size} leaves has {expected} hashes, not {len(proof)}"
        )
    seed, path = (old_root, proof) if seeded else (proof[0], proof[1:])
    old, new = seed, seed
    for level, sibling in enumerate(path[:inner]):
        if index >> level & 1:
            old = node_hash(sibling, old)
            new = node_hash(sibling, new)
        else:
            new = node_hash(new, sibling)
    for sibling in path[inner:]:
        old = node_hash(sibling, old)
        new = node_hash(sibling, new)
    if old != old_root:
        raise ProofInvalid(f"the consistency proof does not lead to the root of the old tree of {old_size} leaves")
    if new != new_root:
        raise ProofInvalid(f"the consistency proof does not lead to the root of the new tree of {new_size} leaves")


class RootHash:
    """The root of a tree whose leaves come one after the other; memory grows with the logarithm only.

    >>> tree = RootHash()
    >>> tree.append(leaf_hash(b"entry"))
    >>> tree.root() == leaf_hash(b"entry")
    True
    """

    __slots__ = ("_perfect", "size")

    def __init__(self) -> None:
        self.size = 0
        self._perfect: list[bytes] = []

    @classmethod
    def from_last(cls, size: int, leaf: bytes, proof: Sequence[bytes]) -> Self:
        """The tree of `size` leaves, from the inclusion proof of its last one, to go on from there.

        All siblings of the last leaf are on its left: they are the perfect subtrees before it. This
        proves nothing by itself: compare `root()`.

        Raises:
            ProofInvalid: the proof has another length than the last leaf's, or hashes of other than 32 bytes.
        """
        if not 0 < size <= MAX_TREE_SIZE or len(proof) != (size - 1).bit_count():
            raise ProofInvalid(f"the inclusion proof of the last of {size} leaves does not have {len(proof)} hashes")
        _check_hashes([leaf, *proof])
        tree = cls()
        tree._perfect = list(reversed(proof))
        tree.size = size - 1
        tree.append(leaf)
        return tree

    def copy(self) -> Self:
        """Another tree of the same leaves."""
        return copy.deepcopy(self)

    def append(self, leaf: bytes) -> None:
        """Add the next leaf's hash."""
        size = self.size
        while size & 1:
            leaf = node_hash(self._perfect.pop(), leaf)
            size >>= 1
        self._perfect.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The root of the leaves so far."""
        if not self._perfect:
            return EMPTY_ROOT
        root = self._perfect[-1]
        for left in self._perfect[-2::-1]:
            root = node_hash(left, root)
        return root


@dataclass(frozen=True, slots=True)
class TlogProof:
    """An inclusion proof with the checkpoint (a signed note, exact text) that it leads to."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: str

    def text(self) -> str:
        """The C2SP text, without `extra` line."""
        hashes = "".join(f"{base64.b64encode(each).decode('ascii')}\n" for each in self.hashes)
        return f"{_HEADER}\nindex {self.index}\n{hashes}\n{self.checkpoint}"


def parse_tlog_proof(text: str) -> TlogProof:
    """Read a C2SP tlog-proof, verifying nothing but its form; the checkpoint's form is not looked at.

    Raises:
        ProofInvalid: malformed, too long, or it has an `extra` line.
    """
    if len(text) > MAX_TLOG_PROOF_CHARS:
        raise ProofInvalid(f"a tlog-proof of {len(text)} characters is over the limit of {MAX_TLOG_PROOF_CHARS}")
    head, separator, checkpoint = text.partition("\n\n")
    lines = head.split("\n")
    if lines[0] != _HEADER or not separator or not checkpoint:
        raise ProofInvalid(
            f"a tlog-proof begins with the line {_HEADER!r} and ends with a checkpoint after an empty line"
        )
    if len(lines) > 1 and lines[1].startswith("extra "):
        raise ProofInvalid("the tlog-proof has an extra line, which nothing authenticates: Greatseal writes none")
    match = _INDEX.fullmatch(lines[1]) if len(lines) > 1 else None
    if match is None or int(match[1]) > MAX_TREE_SIZE:
        raise ProofInvalid("the second line of a tlog-proof reads 'index <decimal number>'")
    if len(lines) - 2 > MAX_PROOF_HASHES:
        raise ProofInvalid(f"the tlog-proof has {len(lines) - 2} hashes, and {MAX_PROOF_HASHES} is the limit")
    return TlogProof(int(match[1]), tuple(map(_hash_line, lines[2:])), checkpoint)


def _hash_line(line: str) -> bytes:
    try:
        data = base64.b64decode(line.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ProofInvalid("a hash of the tlog-proof is not base64") from error
    if len(data) != HASH_BYTES or base64.b64encode(data).decode("ascii") != line:
        raise ProofInvalid("a hash of the tlog-proof is not the canonical base64 of 32 bytes")
    return data


def _check_hashes(hashes: list[bytes]) -> None:
    if [each for each in hashes if len(each) != HASH_BYTES]:
        raise ProofInvalid("a hash of the proof, or the root or leaf hash, does not have 32 bytes")
