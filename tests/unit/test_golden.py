"""What released versions wrote still verifies, byte for byte, and still refuses to prove anything else."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from greatseal.algorithms import Algorithm
from greatseal.checkpoint import open_checkpoint
from greatseal.cosignature import WitnessKey, require_quorum
from greatseal.note import VerifierKey
from greatseal.receipt import Receipt
from greatseal.signatures import load_public_key
from greatseal.statement import parse_statement
from greatseal.timestamps import read_roots, read_timestamps, verify
from greatseal.tlog import RootHash, leaf_hash, verify_consistency
from greatseal.verification import ReceiptInvalid

GOLDEN = Path(__file__).parent.parent / "golden"
VERSIONS = sorted(each.parent for each in GOLDEN.glob("*/log.vkey"))
RECEIPTS = [
    pytest.param(version, kind, algorithm, id=f"{version.name}-{kind}-{algorithm.value}")
    for version in VERSIONS
    for kind in ("digest", "statement")
    for algorithm in Algorithm
    if (version / f"{kind}-{algorithm.value}.receipt.json").exists()
]
DIGESTS = {
    "sha256": hashlib.sha256(b"golden").digest(),
    "sha384": hashlib.sha384(b"golden").digest(),
    "sha512": hashlib.sha512(b"golden").digest(),
}


def vkey(version: Path) -> VerifierKey:
    return VerifierKey.parse((version / "log.vkey").read_text())


def test_the_first_version_is_there():
    assert "0.1" in [version.name for version in VERSIONS]
    assert len([each for each in RECEIPTS if each.values[0].name == "0.1"]) == 8, (
        "four algorithms, digest and statement"
    )


@pytest.mark.parametrize(("version", "kind", "algorithm"), RECEIPTS)
def test_its_receipts_verify(version: Path, kind: str, algorithm: Algorithm):
    data = (version / f"{kind}-{algorithm.value}.receipt.json").read_bytes()
    receipt = Receipt.from_json(data)
    public_key = load_public_key((version / f"{algorithm.value}.pem").read_bytes())
    statement = (version / "statement.json").read_bytes()
    root = json.loads(statement)["subject"][0]["digest"]["sha256"]
    held = (
        {"digest": DIGESTS[algorithm.hash_name]} if kind == "digest" else {"payload": statement, "model_digest": root}
    )
    verified = receipt.verify(vkey(version), public_key=public_key, **held)
    assert verified.algorithm is algorithm
    assert verified.blind is (kind == "digest")
    assert verified.signature_verified
    assert receipt.to_json() == data
    with pytest.raises(ReceiptInvalid):
        receipt.verify(vkey(version), public_key=public_key, digest=b"\0" * algorithm.digest_size)
    with pytest.raises(ReceiptInvalid):
        dataclasses.replace(receipt, intent=receipt.outcome).verify(vkey(version))


@pytest.mark.parametrize("version", VERSIONS, ids=lambda each: each.name)
def test_its_log_leads_to_its_checkpoints(version: Path):
    entries = (version / "entries.jsonl").read_bytes().splitlines()
    small = open_checkpoint((version / "checkpoint-3").read_bytes(), vkey(version))
    whole = open_checkpoint((version / "checkpoint").read_bytes(), vkey(version))
    tree = RootHash()
    roots = [tree.root()]
    for entry in entries:
        tree.append(leaf_hash(entry))
        roots.append(tree.root())
    assert (small.size, small.root) == (3, roots[3])
    assert (whole.size, whole.root) == (len(entries), roots[-1])
    proof = [base64.b64decode(line) for line in (version / "consistency-3").read_text().splitlines()]
    verify_consistency(3, whole.size, proof, small.root, whole.root)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda each: each.name)
def test_its_statements_are_still_read(version: Path):
    manifest = parse_statement((version / "statement.json").read_bytes()).manifest
    assert manifest is not None
    assert [each.name for each in manifest.resources][:2] == ["a-b", "a/b"]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda each: each.name)
def test_no_private_key_was_kept(version: Path):
    for file in version.iterdir():
        assert b"PRIVATE" not in file.read_bytes()


ANCHORS = GOLDEN / "anchors-0.1"


def test_cosignatures_of_released_versions_verify():
    key = WitnessKey.parse((ANCHORS / "witness.vkey").read_text())
    note = (ANCHORS / "checkpoint").read_text()
    assert open_checkpoint(note, vkey(GOLDEN / "0.1")).size == 23
    assert require_quorum(note, [key], 1) == {"witness.example/w1": 1_767_225_600}


def test_timestamps_of_released_versions_verify():
    (stamped,) = read_timestamps(ANCHORS / "timestamps.jsonl")
    proven = verify(stamped, vkey(GOLDEN / "0.1"), read_roots([ANCHORS / "tsa-root.pem"]))
    assert (proven.checkpoint.size, proven.time.year) == (23, 2026)
