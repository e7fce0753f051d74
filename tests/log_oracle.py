"""An auditor's view of the log, written from the specifications and sharing no code with the product.

RFC 6962 / 9162 trees, C2SP signed notes and checkpoints, and what a receipt has to prove. The fault
tests and the benchmark judge the daemon by it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

HASHES = {"sha256": SHA256, "sha384": SHA384, "sha512": SHA512}


class OracleError(AssertionError):
    """The log does not hold what it promises."""


class TreeHead(NamedTuple):
    """What a checkpoint says."""

    origin: str
    size: int
    root: bytes


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class GrowingTree:
    """Appends leaves and gives the root at any moment, holding one hash a level."""

    def __init__(self) -> None:
        self.size = 0
        self._stack: list[tuple[int, bytes]] = []  # (height, root) of perfect subtrees, largest first

    def append(self, entry: bytes) -> None:
        height, node = 0, leaf_hash(entry)
        while self._stack and self._stack[-1][0] == height:
            node = node_hash(self._stack.pop()[1], node)
            height += 1
        self._stack.append((height, node))
        self.size += 1

    def root(self) -> bytes:
        if not self._stack:
            return hashlib.sha256(b"").digest()
        node = self._stack[-1][1]
        for _, left in reversed(self._stack[:-1]):
            node = node_hash(left, node)
        return node


def root_from_inclusion(index: int, size: int, leaf: bytes, proof: list[bytes]) -> bytes:
    """RFC 9162, 2.1.3.2: the root that the proof leads to."""
    if not 0 <= index < size:
        raise OracleError(f"entry {index} cannot stand in a tree of {size}")
    number, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise OracleError("the inclusion proof is too long")
        if number & 1 or number == last:
            node = node_hash(sibling, node)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        number, last = number >> 1, last >> 1
    if last:
        raise OracleError("the inclusion proof is too short")
    return node


class NoteVerifier:
    """Opens checkpoints with a C2SP vkey line; notes seen once are remembered."""

    def __init__(self, vkey: str) -> None:
        self.origin, key_id, encoded = vkey.strip().split("+", 2)
        key = base64.b64decode(encoded)
        if key[0] != 1 or len(key) != 33:
            raise OracleError("the verifier key is not Ed25519")
        if hashlib.sha256(self.origin.encode() + b"\n" + key).digest()[:4].hex() != key_id:
            raise OracleError("the verifier key's id does not fit")
        self._id, self._key = bytes.fromhex(key_id), Ed25519PublicKey.from_public_bytes(key[1:])
        self._seen: dict[str, TreeHead] = {}

    def open(self, note: str) -> TreeHead:
        if note in self._seen:
            return self._seen[note]
        text, _, signatures = note.partition("\n\n")
        text += "\n"
        lines = [line for line in signatures.split("\n") if line.startswith(f"— {self.origin} ")]
        if len(lines) != 1:
            raise OracleError(f"{len(lines)} signatures of {self.origin} under the checkpoint")
        blob = base64.b64decode(lines[0].split(" ")[2], validate=True)
        if blob[:4] != self._id:
            raise OracleError("the checkpoint is signed by another key")
        try:
            self._key.verify(blob[4:], text.encode())
        except InvalidSignature:
            raise OracleError("the checkpoint's signature is wrong") from None
        origin, size, root = text.rstrip("\n").split("\n")
        if origin != self.origin or str(int(size)) != size:
            raise OracleError(f"the checkpoint is not one of {self.origin}: {text!r}")
        self._seen[note] = TreeHead(origin, int(size), base64.b64decode(root, validate=True))
        return self._seen[note]


def verify_signature(public: Any, algorithm: str, digest: bytes, signature: bytes) -> None:
    """Raises OracleError where the signature over the digest is wrong."""
    kind = HASHES[algorithm.rsplit("-", 1)[1]]()
    prehashed = utils.Prehashed(kind)
    try:
        if isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature, digest, ec.ECDSA(prehashed))
        elif isinstance(public, rsa.RSAPublicKey) and "pss" in algorithm:
            public.verify(signature, digest, padding.PSS(padding.MGF1(kind), kind.digest_size), prehashed)
        else:
            public.verify(signature, digest, padding.PKCS1v15(), prehashed)
    except InvalidSignature:
        raise OracleError(f"a released {algorithm} signature over {digest.hex()} is wrong") from None


def verify_receipt(receipt: Any, note: str, verifier: NoteVerifier, digest: bytes, signature: bytes) -> TreeHead:
    """Check a wire Receipt: both entries stand under the checkpoint, belong together, and are of this signature."""
    head = verifier.open(note)
    for index, entry, proof in (
        (receipt.intent_index, receipt.intent_entry, receipt.intent_proof),
        (receipt.outcome_index, receipt.outcome_entry, receipt.outcome_proof),
    ):
        hashes = [proof[start : start + 32] for start in range(0, len(proof), 32)]
        if root_from_inclusion(index, head.size, leaf_hash(entry), hashes) != head.root:
            raise OracleError(f"entry {index} does not stand in the tree of {head.size}")
    intent, outcome = json.loads(receipt.intent_entry), json.loads(receipt.outcome_entry)
    reference = {"index": receipt.intent_index, "leaf_hash": leaf_hash(receipt.intent_entry).hex()}
    if intent["t"] != "intent" or outcome["t"] != "outcome" or outcome["intent"] != reference:
        raise OracleError("the outcome is not of this intent")
    if outcome["res"] != "signed" or base64.b64decode(outcome["sig"]) != signature:
        raise OracleError("the outcome holds another signature than the one released")
    if not intent["tbs"] == outcome["tbs"] == digest.hex():
        raise OracleError("the entries are of another digest")
    if intent["key"]["spki_sha256"] != outcome["key"]["spki_sha256"]:
        raise OracleError("intent and outcome name different keys")
    return head
