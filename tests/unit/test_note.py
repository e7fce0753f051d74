"""Signed notes and checkpoints: strict about what the trusted key signed, silent about keys of others."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from greatseal.checkpoint import EMPTY_ROOT, Checkpoint, open_checkpoint, parse_text, read_unverified
from greatseal.note import NoteSigner, VerifierKey, check_key_name, open_note, parse_note
from greatseal.verification import CheckpointInvalid, NoteInvalid, NoteUnverified

# From the documentation of golang.org/x/mod/sumdb/note.
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
NAME = "greatseal.local/log"


@pytest.fixture(scope="module")
def signer() -> NoteSigner:
    return NoteSigner(NAME, Ed25519PrivateKey.generate())


def test_a_note_that_go_signed_opens():
    key = VerifierKey.parse(GO_VKEY)
    assert key.name == "PeterNeumann"
    assert key.line() == GO_VKEY
    assert open_note(GO_NOTE, key) == GO_NOTE.partition("\n\n")[0] + "\n"


def test_what_the_signer_signs_its_verifier_key_opens(signer: NoteSigner):
    note = signer.sign("hello\n\nworld\n")
    assert note.startswith("hello\n\nworld\n\n— greatseal.local/log ")
    key = VerifierKey.parse(f"  {signer.verifier.line()}\n")
    assert key == signer.verifier
    assert open_note(note, key) == "hello\n\nworld\n"
    assert open_note(note.encode(), key) == "hello\n\nworld\n"


def test_the_key_id_is_that_of_the_specification(signer: NoteSigner):
    public = signer.verifier.public_key
    assert signer.verifier.key_id == hashlib.sha256(NAME.encode() + b"\n\x01" + public).digest()[:4]


def test_lines_of_witnesses_are_ignored(signer: NoteSigner):
    note = signer.sign("hello\n")
    witness = "— witness.example/w1 " + base64.b64encode(b"\0\0\0\1" + b"x" * 72).decode() + "\n"
    same_name = f"— {NAME} " + base64.b64encode(b"\0\0\0\1" + b"x" * 64).decode() + "\n"
    text, _, line = note.partition("\n\n")
    for lines in (line + witness, witness + line, same_name + line + witness, witness * 98 + line):
        assert open_note(f"{text}\n\n{lines}", signer.verifier) == "hello\n"


def test_a_false_line_of_the_trusted_key_spoils_the_note_even_beside_a_true_one(signer: NoteSigner):
    false = f"— {NAME} " + base64.b64encode(signer.verifier.key_id + b"x" * 64).decode() + "\n"
    with pytest.raises(NoteUnverified, match="claims to be"):
        open_note(signer.sign("hello\n") + false, signer.verifier)


def test_a_note_by_another_key_of_the_same_name_is_refused(signer: NoteSigner):
    other = NoteSigner(NAME, Ed25519PrivateKey.generate())
    with pytest.raises(NoteUnverified, match="not signed by"):
        open_note(other.sign("hello\n"), signer.verifier)


def test_a_changed_text_is_refused(signer: NoteSigner):
    with pytest.raises(NoteUnverified):
        open_note(signer.sign("hello\n").replace("hello", "hallo"), signer.verifier)


def test_text_after_an_empty_line_belongs_to_what_is_signed(signer: NoteSigner):
    line = signer.sign("hello\n").partition("\n\n")[2]
    with pytest.raises(NoteInvalid):
        open_note(f"hello\n\nmore\n\n{line}", signer.verifier)


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n",
        "\n\n",
        "text",
        "text\n",
        "text\n\n",
        "text\n\n— name AAAAAAA=",
        "text\n\n- name AAAAAAA=\n",
        "text\n\n—name AAAAAAA=\n",
        "text\n\n— name\n",
        "text\n\n— name AAAAAA==\n",
        "text\n\n— name AAAAAAB=\n",
        "text\n\n— name AAAA AAA=\n",
        "text\n\n— na+me AAAAAAA=\n",
        "text\n\n—  AAAAAAA=\n",
        "te\rxt\n\n— name AAAAAAA=\n",
        "te\x00xt\n\n— name AAAAAAA=\n",
        "text\n\n— name AAAAAAA=\n" + "— name AAAAAAA=\n" * 100,
        "x" * 1_000_001,
        "ü" * 600_000,
        "\ud800\n\n— name AAAAAAA=\n",
        b"\xff\n\n",
    ],
)
def test_a_malformed_note_is_refused(note: str | bytes):
    with pytest.raises(NoteInvalid):
        parse_note(note)


@pytest.mark.parametrize("text", ["x" * 1_000_000, "\u00fc" * 500_000])
def test_a_note_over_a_million_bytes_is_refused_whoever_signed_it(signer: NoteSigner, text: str):
    note = signer.sign(text + "\n")
    for message in (note, note.encode()):
        with pytest.raises(NoteInvalid, match="longer than 1000000 bytes"):
            open_note(message, signer.verifier)


def test_a_verifier_key_line_over_its_limit_is_refused():
    key = NoteSigner("n" * 1000, Ed25519PrivateKey.generate()).verifier
    with pytest.raises(NoteInvalid, match="over the limit"):
        VerifierKey.parse(key.line())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "name",
        "name+00000000",
        "+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "Peter Neumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+C74F20A3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeuman+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+AhpcQcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+BBpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10T=",
        "PeterNeumann+c74f20a3+",
        "n" * 1025,
    ],
)
def test_a_malformed_verifier_key_is_refused(line: str):
    with pytest.raises(NoteInvalid):
        VerifierKey.parse(line)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u00a0b", "a\u2003b", "\ud800", "a\x00"])
def test_such_names_cannot_name_a_key(name: str):
    with pytest.raises(NoteInvalid):
        check_key_name(name)


@pytest.mark.parametrize("text", ["", "no newline", "tab\t\n", "\ud800\n"])
def test_such_texts_are_not_signed(signer: NoteSigner, text: str):
    with pytest.raises(NoteInvalid):
        signer.sign(text)


class TestTheLogKey:
    def test_is_read_from_pem(self):
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        assert NoteSigner.from_pem(NAME, pem).verifier == NoteSigner(NAME, key).verifier

    def test_of_another_kind_is_refused(self):
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with pytest.raises(NoteInvalid, match="not an Ed25519 key"):
            NoteSigner.from_pem(NAME, pem)

    def test_is_never_quoted_when_it_is_malformed(self):
        with pytest.raises(NoteInvalid) as caught:
            NoteSigner.from_pem(NAME, b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
        assert "c2VjcmV0" not in str(caught.value)


@given(st.text() | st.text().map(lambda text: f"text\n\n— {text}\n") | st.binary())
def test_no_bytes_make_the_note_parser_raise_anything_else(message: str | bytes):
    try:
        note = parse_note(message)
    except NoteInvalid:
        return
    assert note.text.endswith("\n")
    assert note.signatures


@given(st.text() | st.text().map(lambda tail: "name+00000000+" + tail))
def test_no_text_makes_the_key_parser_raise_anything_else(line: str):
    with pytest.raises(NoteInvalid):
        VerifierKey.parse(line)


# --- checkpoints -----------------------------------------------------------------------------------


def test_a_checkpoint_is_three_lines_and_no_more():
    checkpoint = Checkpoint(NAME, 0, EMPTY_ROOT)
    assert checkpoint.text() == f"{NAME}\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"
    assert parse_text(checkpoint.text()) == checkpoint


def test_a_signed_checkpoint_opens_with_its_key(signer: NoteSigner):
    checkpoint = Checkpoint(NAME, 20852163, b"\x0a" * 32)
    note = checkpoint.sign(signer)
    assert open_checkpoint(note, signer.verifier) == checkpoint
    assert open_checkpoint(note.encode(), signer.verifier, NAME) == checkpoint
    assert read_unverified(note) == checkpoint


def test_a_checkpoint_of_another_log_is_refused_though_the_key_signed_it(signer: NoteSigner):
    note = Checkpoint("elsewhere.example/log", 1, b"\x0a" * 32).sign(signer)
    with pytest.raises(CheckpointInvalid, match=r"elsewhere\.example/log"):
        open_checkpoint(note, signer.verifier)


def test_a_forged_checkpoint_is_refused(signer: NoteSigner):
    forger = NoteSigner(NAME, Ed25519PrivateKey.generate())
    with pytest.raises(NoteUnverified):
        open_checkpoint(Checkpoint(NAME, 5, b"\x0a" * 32).sign(forger), signer.verifier)
    true = Checkpoint(NAME, 5, b"\x0a" * 32).sign(signer)
    with pytest.raises(NoteUnverified):
        open_checkpoint(true.replace("\n5\n", "\n6\n"), signer.verifier)


ROOT = "CgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgo="


@pytest.mark.parametrize(
    "text",
    [
        "",
        "origin\n1\n",
        f"\n1\n{ROOT}\n",
        f"origin\n01\n{ROOT}\n",
        f"origin\n-1\n{ROOT}\n",
        f"origin\n+1\n{ROOT}\n",
        f"origin\n1 \n{ROOT}\n",
        f"origin\n1_0\n{ROOT}\n",
        f"origin\n\u0663\n{ROOT}\n",
        f"origin\n9223372036854775808\n{ROOT}\n",
        f"origin\n{'9' * 5000}\n{ROOT}\n",
        f"origin\n0\n{ROOT}\n",
        f"origin\n1\n{ROOT}",
        f"origin\n1\n{ROOT[:-4]}\n",
        f"origin\n1\n{ROOT[:-2]}p=\n",
        "origin\n1\nnot base64!\n",
        f"origin\n1\n{ROOT}\nextension\n",
        f"origin\n1\n{ROOT}\n\n",
    ],
)
def test_a_malformed_checkpoint_is_refused(text: str):
    with pytest.raises(CheckpointInvalid):
        parse_text(text)


@given(st.text() | st.tuples(st.text(), st.text(), st.text()).map("\n".join))
def test_no_text_makes_the_checkpoint_parser_raise_anything_else(text: str):
    try:
        checkpoint = parse_text(text)
    except CheckpointInvalid:
        return
    assert checkpoint.text() == text
