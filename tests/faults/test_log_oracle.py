"""The oracle of the fault tests and of the benchmark: it agrees with the product where all is well, and objects else."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from greatseal.note import NoteSigner
from greatseal.tlog import RootHash
from greatseald.domain.tree import Tree
from log_oracle import GrowingTree, NoteVerifier, OracleError, leaf_hash, root_from_inclusion

ENTRIES = [b"entry %d" % number for number in range(600)]


def proves(index: int, tree: GrowingTree, leaf: bytes, hashes: list[bytes]) -> bool:
    try:
        return root_from_inclusion(index, tree.size, leaf, hashes) == tree.root()
    except OracleError:
        return False


def test_agrees_with_both_trees_of_the_product_at_every_size() -> None:
    oracle, client = GrowingTree(), RootHash()
    daemon = Tree.load(0, b"", lambda _level, _index: None, lambda _start, _end: [])
    for entry in ENTRIES:
        oracle.append(entry)
        client.append(leaf_hash(entry))
        daemon.append([leaf_hash(entry)])
        assert oracle.root() == client.root() == daemon.root()
        if oracle.size % 37 == 0:
            prove = daemon.prover(oracle.size).inclusion
            for index in range(oracle.size):
                proof = prove(index)
                hashes = [proof[start : start + 32] for start in range(0, len(proof), 32)]
                leaf = leaf_hash(ENTRIES[index])
                assert proves(index, oracle, leaf, hashes)
                assert not proves(index ^ 1, oracle, leaf, hashes)


def test_refuses_a_proof_of_the_wrong_length() -> None:
    for proof in ([], [b"\0" * 32] * 2):
        with pytest.raises(OracleError):
            root_from_inclusion(0, 2, leaf_hash(b"x"), proof)


def test_refuses_a_checkpoint_that_was_touched() -> None:
    signer = NoteSigner("example.org/log", Ed25519PrivateKey.generate())
    verifier = NoteVerifier(signer.verifier.line())
    note = signer.sign(f"example.org/log\n7\n{base64.b64encode(bytes(32)).decode()}\n")
    assert verifier.open(note).size == 7
    with pytest.raises(OracleError):
        verifier.open(note.replace("\n7\n", "\n8\n"))
    forger = NoteSigner("example.org/log", Ed25519PrivateKey.generate())
    with pytest.raises(OracleError):
        verifier.open(forger.sign(f"example.org/log\n7\n{base64.b64encode(bytes(32)).decode()}\n"))
