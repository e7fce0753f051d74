"""The published vectors: our code, and one written from the specifications alone, both find in them what they say."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from greatseal.checkpoint import open_checkpoint
from greatseal.note import NoteSigner, VerifierKey
from greatseal.receipt import Receipt
from greatseal.signatures import load_public_key
from greatseal.tlog import RootHash, leaf_hash, verify_consistency, verify_inclusion
from greatseal.verification import ReceiptInvalid
from log_oracle import GrowingTree, NoteVerifier, root_from_inclusion

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "docs" / "audit-vectors.json").read_text())
KEY = VerifierKey.parse(VECTORS["vkey"])
ENTRIES = [entry.encode() for entry in VECTORS["entries"]]


def hashes(texts: list[str]) -> list[bytes]:
    return [bytes.fromhex(text) for text in texts]


def root(size: int) -> bytes:
    return bytes.fromhex(VECTORS["roots"][size])


def test_entries_lead_to_leaf_hashes_and_roots():
    ours, theirs = RootHash(), GrowingTree()
    assert root(0) == hashlib.sha256(b"").digest()
    for number, entry in enumerate(ENTRIES):
        assert (
            json.dumps(json.loads(entry), separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode() == entry
        )
        assert leaf_hash(entry).hex() == VECTORS["leaf_hashes"][number]
        ours.append(leaf_hash(entry))
        theirs.append(entry)
        assert ours.root() == theirs.root() == root(number + 1)


def test_every_proof_holds_and_no_altered_one_does():
    assert len(VECTORS["inclusion"]) == sum(range(1, len(ENTRIES) + 1))
    for vector in VECTORS["inclusion"]:
        index, size, proof = vector["index"], vector["size"], hashes(vector["proof"])
        leaf = bytes.fromhex(VECTORS["leaf_hashes"][index])
        verify_inclusion(index, size, leaf, proof, root(size))
        assert root_from_inclusion(index, size, leaf, proof) == root(size)
        with pytest.raises(Exception, match=r".+"):
            verify_inclusion(index, size, leaf, [*proof, bytes(32)], root(size))
    for vector in VECTORS["consistency"]:
        old, new, proof = vector["old"], vector["new"], hashes(vector["proof"])
        verify_consistency(old, new, proof, root(old), root(new))


def test_checkpoints_are_signed_by_the_key_and_of_these_roots():
    oracle = NoteVerifier(VECTORS["vkey"])
    for size, note in enumerate(VECTORS["checkpoints"], 1):
        opened, theirs = open_checkpoint(note, KEY), oracle.open(note)
        assert (opened.size, opened.root) == (theirs.size, theirs.root) == (size, root(size))


def test_the_log_key_of_the_vectors_is_its_seed():
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    seed = bytes.fromhex(VECTORS["log_private_key_seed"])
    signer = NoteSigner(KEY.name, Ed25519PrivateKey.from_private_bytes(seed))
    assert signer.verifier.line() == VECTORS["vkey"]


@pytest.mark.parametrize("vector", VECTORS["receipts"], ids=lambda vector: vector["name"])
def test_receipts_end_as_the_vector_says(vector: dict[str, Any]):
    held: dict[str, bytes] = {}
    if "digest" in vector:
        held["digest"] = bytes.fromhex(vector["digest"])
    if "payload" in vector:
        held["payload"] = base64.b64decode(vector["payload"])
    public_key = load_public_key(vector["public_key"].encode())

    def verify() -> str:
        try:
            verified = Receipt.from_json(vector["receipt"].encode()).verify(KEY, public_key=public_key, **held)
        except ReceiptInvalid as error:
            return error.check.value
        return "ok" if verified.signature_verified else "not verified"

    assert verify() == vector["expect"]
