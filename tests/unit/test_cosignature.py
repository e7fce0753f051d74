"""Cosignatures: exactly what C2SP says, by whom they claim, over the checkpoint that they stand on, counted once each."""

from __future__ import annotations

import base64
import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from greatseal.checkpoint import Checkpoint, open_checkpoint
from greatseal.cosignature import WitnessKey, WitnessSigner, cosigned_by, require_quorum
from greatseal.note import NoteSigner, VerifierKey
from greatseal.verification import NoteInvalid, NoteUnverified, QuorumMissing

ORIGIN = "example.org/log"
NAME = "witness.example/w1"
NOW = 1679315147


@pytest.fixture
def private() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def witness(private: Ed25519PrivateKey) -> WitnessSigner:
    return WitnessSigner(NAME, private)


@pytest.fixture
def log() -> NoteSigner:
    return NoteSigner(ORIGIN, Ed25519PrivateKey.generate())


def checkpoint(size: int = 5, root: bytes = b"r" * 32) -> Checkpoint:
    return Checkpoint(ORIGIN, size, root)


def test_a_line_is_what_the_specification_says(private, witness):
    text = checkpoint().text()
    dash, name, encoded = witness.cosign(text, NOW).rstrip("\n").split(" ")
    assert (dash, name) == ("—", NAME)
    data = base64.b64decode(encoded)
    public = private.public_key().public_bytes_raw()
    assert data[:4] == hashlib.sha256(NAME.encode() + b"\n\x04" + public).digest()[:4]
    assert struct.unpack(">Q", data[4:12]) == (NOW,)
    assert len(data) == 4 + 8 + 64
    private.public_key().verify(data[12:], f"cosignature/v1\ntime {NOW}\n{text}".encode())
    assert witness.verifier.line().split("+", 2)[2] == base64.b64encode(b"\x04" + public).decode()


def test_a_cosigned_checkpoint_opens_with_the_logs_key_alone_and_names_its_witnesses(log, witness):
    note = checkpoint().sign(log) + witness.cosign(checkpoint().text(), NOW)
    assert open_checkpoint(note, log.verifier) == checkpoint()
    key = WitnessKey.parse(witness.verifier.line())
    assert require_quorum(note, [key], 1) == {NAME: NOW}


def test_a_cosignature_of_another_checkpoint_does_not_count(log, witness):
    for other in (checkpoint(6), checkpoint(5, b"s" * 32), Checkpoint("other.org/log", 5, b"r" * 32)):
        note = checkpoint().sign(log) + witness.cosign(other.text(), NOW)
        with pytest.raises(NoteUnverified, match="is of another checkpoint"):
            require_quorum(note, [witness.verifier], 1)


def test_a_changed_time_does_not_verify(log, witness):
    line = witness.cosign(checkpoint().text(), NOW)
    data = bytearray(base64.b64decode(line.split(" ")[2]))
    data[11] ^= 1
    note = checkpoint().sign(log) + f"— {NAME} {base64.b64encode(bytes(data)).decode()}\n"
    with pytest.raises(NoteUnverified):
        cosigned_by(note, [witness.verifier])


@pytest.mark.parametrize("length", [0, 8, 64, 71, 73])
def test_a_line_of_another_length_is_refused(length, log, witness):
    line = f"— {NAME} {base64.b64encode(witness.verifier.key_id + bytes(length or 1)).decode()}\n"
    with pytest.raises(NoteUnverified):
        cosigned_by(checkpoint().sign(log) + line, [witness.verifier])


def test_a_forgers_line_is_no_witnesss(log, witness):
    forger = WitnessSigner(NAME, Ed25519PrivateKey.generate())
    note = checkpoint().sign(log) + forger.cosign(checkpoint().text(), NOW)
    with pytest.raises(QuorumMissing, match="cosigned by 0 of the 1 witnesses, and 1 are wanted"):
        require_quorum(note, [witness.verifier], 1)


def test_the_logs_own_signature_is_no_cosignature(private, log):
    """A witness's key in a plain note signature (type 0x01), which somebody may have had it make, proves nothing."""
    note = checkpoint().sign(log)
    plain = checkpoint().sign(NoteSigner(NAME, private)).rpartition("\n\n")[2]
    key = WitnessSigner(NAME, private).verifier
    assert cosigned_by(note + plain, [key]) == {}


def test_one_key_under_two_names_counts_once(private, log):
    one, other = WitnessSigner(NAME, private), WitnessSigner("witness.example/w2", private)
    text = checkpoint().text()
    note = checkpoint().sign(log) + one.cosign(text, NOW) + other.cosign(text, NOW)
    with pytest.raises(QuorumMissing):
        require_quorum(note, [one.verifier, other.verifier], 2)


def test_a_witnesss_key_and_a_logs_key_are_not_taken_for_each_other(log, witness):
    with pytest.raises(NoteInvalid, match="0x04 is wanted"):
        WitnessKey.parse(log.verifier.line())
    with pytest.raises(NoteInvalid, match="0x01 is wanted"):
        VerifierKey.parse(witness.verifier.line())
