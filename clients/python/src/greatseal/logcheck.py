"""Checking a whole log: every hash, every checkpoint, and what the entries say about each other.

`LogCheck` is fed the entries one after the other and keeps little: the tree's right edge, the
intents that are still open, eight bytes for each ECDSA signature. Where the entries do not lead to
a checkpoint's root, `first_difference` finds the first that is not the one the checkpoint covers,
by asking for consistency proofs; so what is named is the first bad index and not only the fact.

What the entries must say:
    - Each is JSON with `v` 1, a known `t` and the log's name.
    - Each intent is closed by at most one outcome, later, which repeats its leaf hash, key and tbs.
    - No key made two ECDSA signatures with one nonce over different digests.

Intents that are still open at the end are counted, not condemned: a signature may be in flight.

    check = LogCheck("greatseal.local/log")
    for entry in entries:
        check.add(entry.index, entry.data)
    check.problem, check.open_intents
"""

from __future__ import annotations

import base64
import binascii
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from greatseal import compactjson, tlog
from greatseal.errors import VerificationFailed
from greatseal.verification import ProofInvalid

if TYPE_CHECKING:
    from greatseal.logsignatures import SignatureCheck

MAX_ENTRY_BYTES: Final = 16 * 1024
MAX_OPEN: Final = 100_000
"""More open intents than any daemon has: what a check keeps is bounded."""
SNAPSHOT_EVERY: Final = 1024
_RESULTS: Final = frozenset({"signed", "failed", "unknown", "aborted"})


@dataclass(frozen=True, slots=True)
class Problem:
    """The first entry that is wrong, and how."""

    index: int
    message: str


class _Intent(NamedTuple):
    leaf: bytes
    spki_sha256: str
    tbs: str
    algorithm: str


class LogCheck:
    """Checks the entries of one log in their order.

    Args:
        origin: the log's name, which every entry repeats.
        beginning: the tree of the entries that are not read; the first one added follows them. What an
            outcome says of an intent among them is not checked.
        signatures: verifies what was signed; nothing does where None.

    Attributes:
        first: the index of the first entry that is read.
        problem: the first entry that contradicts the format or another one; None while there is none.
        counts: how many entries of each kind were seen, and outcomes by result as `outcome signed`.
    """

    def __init__(
        self, origin: str, beginning: tlog.RootHash | None = None, *, signatures: SignatureCheck | None = None
    ) -> None:
        self._origin = origin
        self._tree = beginning.copy() if beginning is not None else tlog.RootHash()
        self.first = self._tree.size
        self._signatures = signatures
        self._snapshots: list[tlog.RootHash] = []
        self._open: dict[int, _Intent] = {}
        self._closed_before: set[int] = set()
        # By their first byte, so that sorting takes the memory of a small part.
        self._nonces = [array("Q") for _ in range(256)]
        self.problem: Problem | None = None
        self.counts: dict[str, int] = {}

    @property
    def size(self) -> int:
        """How many entries the tree has: those added, and those before the first."""
        return self._tree.size

    @property
    def open_intents(self) -> list[int]:
        """The indexes of the intents that no outcome closed."""
        return list(self._open)

    def root(self) -> bytes:
        """The root of the entries so far, 32 bytes."""
        return self._tree.root()

    def add(self, index: int, data: bytes) -> None:
        """Take the next entry.

        Raises:
            VerificationFailed: its index is not the next, so that no tree can be computed.
        """
        if index != self.size:
            message = f"entry {self.size} is missing: the daemon answered with entry {index}"
            raise VerificationFailed(message)
        if (index - self.first) % SNAPSHOT_EVERY == 0:
            self._snapshots.append(self._tree.copy())
        leaf = tlog.leaf_hash(data)
        self._tree.append(leaf)
        self.read(index, leaf, data)

    def read(self, index: int, leaf: bytes, data: bytes) -> None:
        """Take what the next entry says, without the tree: for who computes that himself."""
        problem = self._read(index, leaf, data)
        if problem and self.problem is None:
            self.problem = Problem(index, problem)

    def before(self, index: int) -> tlog.RootHash:
        """The tree of the entries below the last snapshot at or below `index`, for adding up to it again."""
        return self._snapshots[(index - self.first) // SNAPSHOT_EVERY].copy()

    def repeated_nonces(self) -> frozenset[int]:
        """Marks of ECDSA nonces that stand in more than one signature; `nonce_mark` makes them."""
        return frozenset(
            mark for part in self._nonces for mark, following in pairwise(sorted(part)) if mark == following
        )

    def _read(self, index: int, leaf: bytes, data: bytes) -> str:
        try:
            entry = compactjson.decode(data, max_bytes=MAX_ENTRY_BYTES, what="the entry")
        except VerificationFailed as error:
            return error.message
        if not isinstance(entry, dict) or entry.get("v") != 1:
            return "is not an entry of version 1"
        if entry.get("log") != self._origin:
            return f"names the log {entry.get('log')!r:.120} and stands in {self._origin}"
        kind = entry.get("t")
        if kind == "intent":
            problem = self._intent(index, leaf, entry)
        elif kind == "outcome":
            problem = self._outcome(entry)
        elif kind in {"denied", "admin"}:
            problem = ""
        else:
            return f"is of the unknown kind {kind!r:.40}"
        self._count(kind)
        return problem

    def _intent(self, index: int, leaf: bytes, entry: dict[str, Any]) -> str:
        spki, tbs, algorithm = _spki(entry), _text(entry, "tbs"), _text(entry, "mech")
        if not spki or not tbs or not algorithm:
            return "is an intent without key, tbs or mech"
        if len(self._open) >= MAX_OPEN:
            return f"is one of over {MAX_OPEN} intents without an outcome"
        self._open[index] = _Intent(leaf, spki, tbs, algorithm)
        return ""

    def _outcome(self, entry: dict[str, Any]) -> str:
        reference = entry.get("intent")
        if not isinstance(reference, dict):
            return "is an outcome that names no intent"
        index = reference.get("index")
        if not isinstance(index, int) or isinstance(index, bool):
            return "is an outcome that names no intent"
        spki, tbs = _spki(entry), _text(entry, "tbs")
        if 0 <= index < self.first and index not in self._closed_before and len(self._closed_before) < MAX_OPEN:
            self._closed_before.add(index)
            self._count("outcome of an entry not read")
            return self._ending(entry, spki, tbs, "")
        intent = self._open.pop(index, None)
        if intent is None:
            return f"is an outcome of entry {index}, which is no open intent: a second outcome, or one of nothing"
        if reference.get("leaf_hash") != intent.leaf.hex():
            return f"is an outcome of entry {index} and repeats another leaf hash than that entry has"
        if spki != intent.spki_sha256 or tbs != intent.tbs:
            return f"is an outcome of entry {index} with another key or digest than that intent's"
        return self._ending(entry, spki, tbs, intent.algorithm)

    def _ending(self, entry: dict[str, Any], spki: str, tbs: str, algorithm: str) -> str:
        result = _text(entry, "res")
        if result not in _RESULTS:
            return f"is an outcome with the unknown result {result!r:.40}"
        self._count(f"outcome {result}")
        signature = _text(entry, "sig")
        if (result == "signed") != bool(signature):
            return f"is an outcome with the result {result} and {'a' if signature else 'no'} signature"
        if algorithm.startswith("ecdsa-") and signature:
            mark = nonce_mark(spki, signature)
            if mark is None:
                return "holds a signature that is not the base64 of a DER ECDSA signature"
            self._nonces[mark >> 56].append(mark)
        if signature and algorithm and self._signatures is not None:
            return self._signatures.problem(spki, algorithm, tbs, signature)
        return ""

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def nonce_mark(spki_sha256: str, signature: str) -> int | None:
    """Return 8 bytes, as a number, that stand for key and nonce of an ECDSA signature (base64 of DER); None if it is none."""
    try:
        der = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(der) < 8 or der[0] != 0x30:
        return None
    at = 3 if der[1] == 0x81 else 2  # P-521's sequence is too long for a length of one byte
    if der[at] != 0x02 or len(der) < at + 2 + der[at + 1]:
        return None
    r = der[at + 2 : at + 2 + der[at + 1]].lstrip(b"\0")
    return int.from_bytes(sha256(spki_sha256.encode() + b"\0" + r).digest()[:8], "big")


def find_repeated_nonce(marks: frozenset[int], entries: Iterable[tuple[int, bytes]]) -> Problem | None:
    """Return the first outcome whose key and nonce stood before with another digest; None where all are harmless.

    A signature made twice over one digest may have one nonce (RFC 6979).
    """
    seen: dict[int, tuple[int, str]] = {}
    for index, data in entries:
        entry = compactjson.decode(data, max_bytes=MAX_ENTRY_BYTES, what="the entry")
        if not isinstance(entry, dict) or entry.get("t") != "outcome" or not _text(entry, "sig"):
            continue
        mark = nonce_mark(_spki(entry), _text(entry, "sig"))
        if mark is None or mark not in marks:
            continue
        earlier, tbs = seen.setdefault(mark, (index, _text(entry, "tbs")))
        if tbs != _text(entry, "tbs"):
            message = (
                f"is a signature with the same key and nonce as entry {earlier} and another digest: "
                f"the private key can be computed from the two, so it is lost"
            )
            return Problem(index, message)
    return None


def first_difference(
    check: LogCheck,
    size: int,
    root: bytes,
    entries: Callable[[int, int], Iterable[tuple[int, bytes]]],
    proof: Callable[[int, int], Sequence[bytes]],
) -> Problem:
    """Find the first entry that is not the one under a checkpoint's root, which the entries do not lead to.

    The beginning of the log up to an entry is right exactly where a consistency proof leads from its
    computed root to the checkpoint's. So bisection finds the first that is not, in about log2(size) proofs.

    Args:
        check: fed with all entries from its first on; those before are right.
        size: of the checkpoint's tree.
        root: of the checkpoint.
        entries: gives indexes and bytes from the first index up to, without, the second.
        proof: gives the consistency proof from the first size to the second.
    """

    def good(count: int, computed: bytes) -> bool:
        if count == 0:
            return True
        if count == size:
            return computed == root
        try:
            tlog.verify_consistency(count, size, proof(count, size), computed, root)
        except ProofInvalid:
            return False
        return True

    low, high = (
        0,
        (size - 1 - check.first) // SNAPSHOT_EVERY + 1,
    )  # snapshot `low` is good, `high` is not (or is past the end)
    while high - low > 1:
        middle = (low + high) // 2
        count = check.first + middle * SNAPSHOT_EVERY
        low, high = (middle, high) if good(count, check.before(count).root()) else (low, middle)
    tree = check.before(check.first + low * SNAPSHOT_EVERY)
    start = tree.size
    roots = [tree.root()]
    for _, data in entries(start, min(start + SNAPSHOT_EVERY, size)):
        tree.append(tlog.leaf_hash(data))
        roots.append(tree.root())
    least, most = 0, len(roots) - 1  # roots[least] is good, roots[most] is not
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if good(start + middle, roots[middle]) else (least, middle)
    return Problem(start + most - 1, f"is not the entry that the checkpoint of size {size} covers")


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""


def _spki(entry: dict[str, Any]) -> str:
    key = entry.get("key")
    return _text(key, "spki_sha256") if isinstance(key, dict) else ""
