"""Go's own notes and transparency logs verify what we write, and refuse what we refuse.

`logcheck` (main.go beside this file) is built once a session on golang.org/x/mod/sumdb, which is the
reference implementation and shares no code with ours.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from greatseal.algorithms import Algorithm
from greatseal.checkpoint import Checkpoint, open_checkpoint, read_unverified
from greatseal.errors import VerificationFailed
from greatseal.note import NoteSigner
from greatseal.receipt import Receipt
from greatseal.tlog import verify_consistency
from greatseald.domain.tree import TILE_WIDTH, leaf_hash
from sample_log import ORIGIN, PrivateKey, SampleLog, as_json, new_key, oms_document

pytestmark = [pytest.mark.go, pytest.mark.skipif(shutil.which("go") is None, reason="needs a Go toolchain")]

Check = Callable[..., "subprocess.CompletedProcess[str]"]
SIZES = (1, 2, 3, 255, 256, 257, 300, 513)


@pytest.fixture
def check(logcheck: Path, tmp_path: Path) -> Check:
    """Run a subcommand on contents, each written to a file; a Path is given as it is."""

    def run(command: str, *contents: str | bytes | Path) -> subprocess.CompletedProcess[str]:
        files = []
        for place, each in enumerate(contents):
            file = each if isinstance(each, Path) else tmp_path / f"{command}{place}"
            if not isinstance(each, Path):
                file.write_bytes(each.encode() if isinstance(each, str) else each)
            files.append(file)
        return subprocess.run(
            [logcheck, command, *files], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path
        )

    return run


@pytest.fixture(scope="module")
def key() -> PrivateKey:
    return new_key()


@pytest.fixture(scope="module")
def log(key: PrivateKey) -> SampleLog:
    log = SampleLog()
    log.grow(700)
    return log


def pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def refused_by_both(check: Check, log: SampleLog, receipt: Receipt, key: PrivateKey) -> None:
    with pytest.raises(VerificationFailed):
        receipt.verify(log.vkey, public_key=key.public_key())
    with pytest.raises(VerificationFailed):
        Receipt.from_json(receipt.to_json()).verify(log.vkey, public_key=key.public_key())
    answer = check("receipt", log.vkey.line(), receipt.to_json(), pem(key))
    assert (answer.returncode, answer.stdout) == (1, ""), answer
    assert answer.stderr.startswith("refused:")


@pytest.mark.parametrize("size", [0, *SIZES])
def test_go_opens_our_checkpoints(check: Check, log: SampleLog, size: int):
    note = log.note(size)
    answer = check("checkpoint", log.vkey.line() + "\n", note)
    head = read_unverified(note)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == f"{ORIGIN} {size} {base64.b64encode(head.root).decode()}\n"


def test_go_opens_a_checkpoint_that_a_witness_signed_too(check: Check, log: SampleLog):
    text = Checkpoint("witness.example/w1", 1, b"\1" * 32).text()
    witness = NoteSigner("witness.example/w1", Ed25519PrivateKey.generate()).sign(text).rpartition("\n\n")[2]
    note = log.note() + witness
    assert open_checkpoint(note, log.vkey).size == len(log.entries)
    assert check("checkpoint", log.vkey.line(), note).returncode == 0


def test_go_and_we_refuse_the_same_checkpoints(check: Check, log: SampleLog):
    note = log.note(300)
    forger = NoteSigner(ORIGIN, Ed25519PrivateKey.generate())
    false_line = f"— {ORIGIN} {base64.b64encode(log.vkey.key_id + bytes(64)).decode()}\n"
    elsewhere = Checkpoint("other.example/log", 300, b"\1" * 32).sign(log.signer)
    for forged in (
        note.replace("\n300\n", "\n301\n"),
        note.replace(ORIGIN, "other.example/log", 1),
        note[:-1],
        note[: len(note) // 2],
        note.replace("\n\n", f"\n\n{false_line}"),
        note.replace("—", "-"),
        Checkpoint(ORIGIN, 300, b"\1" * 32).sign(forger),
        elsewhere,
        "",
    ):
        with pytest.raises(VerificationFailed):
            open_checkpoint(forged, log.vkey)
        answer = check("checkpoint", log.vkey.line(), forged)
        assert (answer.returncode, answer.stdout) == (1, ""), (forged, answer)


@pytest.mark.parametrize("size", SIZES)
def test_go_verifies_our_consistency_proofs(check: Check, log: SampleLog, size: int):
    prover = log.tree.prover(600)
    proof = prover.consistency(size, 600)
    lines = "".join(base64.b64encode(each).decode() + "\n" for each in proof)
    old, new = log.note(size), log.note(600)
    verify_consistency(size, 600, proof, read_unverified(old).root, read_unverified(new).root)
    answer = check("consistency", log.vkey.line(), old, new, lines)
    assert answer.returncode == 0, answer.stderr
    # The same proof for a neighbouring size proves nothing.
    assert check("consistency", log.vkey.line(), log.note(size + 4), new, lines).returncode == 1


def test_go_refuses_the_consistency_of_a_fork(check: Check, log: SampleLog):
    fork = SampleLog(private_key=log.private_key)
    fork.append([b"something else"])
    fork.append(log.entries[1:300])
    proof = "".join(base64.b64encode(each).decode() + "\n" for each in log.tree.prover(600).consistency(300, 600))
    assert check("consistency", log.vkey.line(), log.note(300), log.note(600), proof).returncode == 0
    answer = check("consistency", log.vkey.line(), fork.note(300), log.note(600), proof)
    assert answer.returncode == 1


@pytest.mark.parametrize("more", [0, 1, 2, 77, 256])
def test_go_verifies_our_receipts_and_the_signature_in_them(check: Check, log: SampleLog, key: PrivateKey, more: int):
    pair = log.sign_statement(key, as_json(oms_document()))
    log.grow(more)
    receipt = log.receipt(pair)
    verified = receipt.verify(log.vkey, public_key=key.public_key())
    answer = check("receipt", log.vkey.line(), receipt.to_json(), pem(key))
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == f"{pair.intent} {pair.outcome} {verified.digest.hex()}\n"


def test_go_verifies_a_receipt_on_p384(check: Check, log: SampleLog):
    algorithm = Algorithm.ECDSA_P384_SHA384
    key = new_key(algorithm)
    receipt = log.receipt(log.sign(key, hashlib.sha384(b"x").digest(), algorithm))
    receipt.verify(log.vkey, public_key=key.public_key())
    assert check("receipt", log.vkey.line(), receipt.to_json(), pem(key)).returncode == 0


class TestBothRefuse:
    def test_a_receipt_of_another_key(self, check: Check, log: SampleLog, key: PrivateKey):
        receipt = log.receipt(log.sign(key))
        refused_by_both(check, log, receipt, new_key())

    def test_the_outcome_of_another_signature(self, check: Check, log: SampleLog, key: PrivateKey):
        one, two = log.sign(key), log.sign(key)
        receipt = dataclasses.replace(log.receipt(two), intent=log.logged(one.intent))
        refused_by_both(check, log, receipt, key)

    def test_entries_that_were_swapped(self, check: Check, log: SampleLog, key: PrivateKey):
        receipt = log.receipt(log.sign(key))
        refused_by_both(check, log, Receipt(receipt.outcome, receipt.intent, receipt.checkpoint), key)

    def test_an_edited_entry(self, check: Check, log: SampleLog, key: PrivateKey):
        receipt = log.receipt(log.sign(key))
        entry = receipt.outcome.entry.replace(b'"res":"signed"', b'"res":"signee"')
        refused_by_both(
            check, log, dataclasses.replace(receipt, outcome=dataclasses.replace(receipt.outcome, entry=entry)), key
        )

    def test_a_proof_of_another_index(self, check: Check, log: SampleLog, key: PrivateKey):
        receipt = log.receipt(log.sign(key))
        for logged in (
            dataclasses.replace(receipt.intent, index=receipt.intent.index - 1),
            dataclasses.replace(receipt.intent, hashes=log.logged(3).hashes),
            dataclasses.replace(receipt.intent, hashes=receipt.intent.hashes[:-1]),
            dataclasses.replace(receipt.intent, hashes=(*receipt.intent.hashes, b"\0" * 32)),
        ):
            refused_by_both(check, log, dataclasses.replace(receipt, intent=logged), key)

    def test_a_forged_checkpoint(self, check: Check, log: SampleLog, key: PrivateKey):
        forged = SampleLog()
        receipt = forged.receipt(forged.sign(key))
        assert check("receipt", forged.vkey.line(), receipt.to_json(), pem(key)).returncode == 0
        refused_by_both(check, log, receipt, key)

    def test_a_checkpoint_of_another_size(self, check: Check, log: SampleLog, key: PrivateKey):
        receipt = log.receipt(log.sign(key))
        refused_by_both(check, log, dataclasses.replace(receipt, checkpoint=log.note(300)), key)

    def test_a_request_that_failed(self, check: Check, log: SampleLog, key: PrivateKey):
        refused_by_both(check, log, log.receipt(log.sign(key, edit_outcome={"res": "failed"})), key)

    def test_an_outcome_with_another_digest(self, check: Check, log: SampleLog, key: PrivateKey):
        refused_by_both(check, log, log.receipt(log.sign(key, edit_outcome={"tbs": "00" * 32})), key)

    def test_a_signature_by_another_key(self, check: Check, log: SampleLog, key: PrivateKey):
        other = SampleLog()
        sig = Receipt.from_json(other.receipt(other.sign(new_key())).to_json()).verify(other.vkey).signature
        receipt = log.receipt(log.sign(key, edit_outcome={"sig": base64.b64encode(sig).decode()}))
        refused_by_both(check, log, receipt, key)


def write_tiles(directory: Path, log: SampleLog) -> None:
    """The log as C2SP tlog-tiles lays it out: full tiles as the tree made them, partial ones at the right edge."""

    def write(kind: str, index: int, width: int, data: bytes) -> None:
        parts = [f"{index % 1000:03d}"]
        while index := index // 1000:
            parts.insert(0, f"x{index % 1000:03d}")
        name = "/".join(parts) + (f".p/{width}" if width != TILE_WIDTH else "")
        path = directory / "tile" / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    for (level, index), data in log.tiles.items():
        write(str(level), index, TILE_WIDTH, data)
    size = len(log.entries)
    hashes, level = [leaf_hash(each) for each in log.entries], 0
    while hashes:
        if width := len(hashes) % TILE_WIDTH:
            write(str(level), len(hashes) // TILE_WIDTH, width, b"".join(hashes[-width:]))
        for _ in range(8):
            pairs = iter(hashes)
            hashes = [hashlib.sha256(b"\1" + left + right).digest() for left, right in zip(pairs, pairs, strict=False)]
        level += 1
    for start in range(0, size, TILE_WIDTH):
        entries = log.entries[start : start + TILE_WIDTH]
        bundle = b"".join(len(each).to_bytes(2, "big") + each for each in entries)
        write("entries", start // TILE_WIDTH, len(entries), bundle)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 3000, 66_000])
def test_go_reads_our_tiles_and_every_entry_through_them(check: Check, tmp_path: Path, size: int):
    log = SampleLog()
    log.grow(size)
    write_tiles(tmp_path / "log", log)
    answer = check("tiles", log.vkey.line(), log.note(), tmp_path / "log")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == f"{size} entries\n"


@pytest.mark.parametrize(
    "name", ["tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/000", "tile/entries/001.p/44"]
)
def test_go_notices_an_edited_tile_or_bundle(check: Check, tmp_path: Path, name: str):
    log = SampleLog()
    log.grow(300)
    write_tiles(tmp_path / "log", log)
    edited = tmp_path / "log" / name
    data = bytearray(edited.read_bytes())
    data[20] ^= 1
    edited.write_bytes(data)
    assert check("tiles", log.vkey.line(), log.note(), tmp_path / "log").returncode == 1
