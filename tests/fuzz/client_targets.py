"""Parsers of the client's package that the daemon shares: JSON, statements, notes, proofs, envelopes, keys, profiles."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from targets import JSON_WORDS, TOML_WORDS, target, told

from greatseal import checkpoint, dsse, logcheck, note, profile, signatures, statement, strictjson, tlog
from greatseal.algorithms import Algorithm
from greatseal.errors import ProfileError
from greatseal.verification import (
    CheckpointInvalid,
    EnvelopeInvalid,
    NoteInvalid,
    ProofInvalid,
    PublicKeyInvalid,
    SignatureInvalid,
    StatementInvalid,
)
from log_oracle import GrowingTree


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


@target("strictjson", *JSON_WORDS)
def strict_json(data: bytes) -> None:
    try:
        value = strictjson.decode(data, max_bytes=1 << 16, what="the text")
    except strictjson.JSONInvalid as error:
        told(error)
        return
    assert strictjson.decode(_dump(value), max_bytes=1 << 20, what="the text") == value
    assert json.loads(data) == value, "another reader of the same bytes understands something else"


@target("statement", *JSON_WORDS, b'"subject"', b'"predicate"', b'"resources"', b'"sha256"', b'"annotations"')
def in_toto_statement(data: bytes) -> None:
    try:
        found = statement.parse_statement(data, any_order=True)
    except StatementInvalid as error:
        told(error)
        error.path.encode()
        try:
            statement.parse_statement(data)
        except StatementInvalid:
            return
        raise AssertionError("the strict reading admits what the lax one refuses") from error
    assert statement.parse_statement(_dump(json.loads(data)), any_order=True) == found
    try:
        strict = statement.parse_statement(data)
    except StatementInvalid:
        assert found.manifest is not None
        names = [each.name for each in found.manifest.resources]
        assert names != sorted(names)
        return
    assert strict == found
    if strict.manifest is not None:
        names = [each.name for each in strict.manifest.resources]
        assert len(set(names)) == len(names)
        for name in names:
            assert not Path(name).is_absolute()
            assert not {"", ".", ".."} & set(name.split("/"))
        assert strict.subjects[0].digest["sha256"] == strict.manifest.root


@target("note", "\n\n— ".encode(), b"\n", "— ".encode(), b"+", b"=")
def signed_note(data: bytes) -> None:
    try:
        parsed = note.parse_note(data)
    except NoteInvalid as error:
        told(error)
        return
    lines = "".join(f"— {each.name} {note._encode(each.key_id + each.signature)}\n" for each in parsed.signatures)
    assert f"{parsed.text}\n{lines}".encode() == data
    try:
        head = checkpoint.read_unverified(data)
    except CheckpointInvalid as error:
        told(error)
        return
    assert head.text() == parsed.text


@target("vkey", b"+", b"=", b"AR")
def verifier_key(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    try:
        key = note.VerifierKey.parse(text)
    except NoteInvalid as error:
        told(error)
        return
    assert key.line() == text.strip()
    assert note.VerifierKey.parse(key.line()) == key


@target("tlog-proof", b"c2sp.org/tlog-proof@v1\n", b"index ", b"\n\n", b"extra ", b"=\n")
def tlog_proof(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    try:
        proof = tlog.parse_tlog_proof(text)
    except ProofInvalid as error:
        told(error)
        return
    assert proof.text() == text
    leaf = tlog.leaf_hash(b"")
    for size in (proof.index, proof.index + 1, 2 * proof.index + 1):
        try:
            tlog.verify_inclusion(proof.index, size, leaf, proof.hashes, leaf)
        except ProofInvalid as error:
            told(error)
        else:
            assert (proof.index, proof.hashes) == (0, ()), "a hash was found that leads back to itself"


@target("envelope", *JSON_WORDS, b'"payload"', b'"signatures"', b'"keyid"', b'"sig"')
def dsse_envelope(data: bytes) -> None:
    try:
        envelope = dsse.envelope_from_json(data)
    except EnvelopeInvalid as error:
        told(error)
        return
    assert dsse.envelope_from_json(envelope.to_json()) == envelope
    dsse.pae(envelope.payload_type, envelope.payload)


@target("public-key", b"-----BEGIN PUBLIC KEY-----\n", b"\x30", b"\x06\x08", b"\x03")
def public_key(data: bytes) -> None:
    try:
        key = signatures.load_public_key(data)
        fitting = signatures.algorithms_of(key)
    except PublicKeyInvalid as error:
        told(error)
        return
    again = signatures.load_public_key(signatures.spki_der(key))
    assert signatures.spki_sha256(again) == signatures.spki_sha256(key)
    for algorithm in fitting:
        _must_not_verify(key, algorithm, data[:72])


_KEYS = [
    signatures.load_public_key(path.read_bytes())
    for path in sorted((Path(__file__).parents[1] / "golden" / "0.1").glob("*.pem"))
]


@target("signature", b"\x30", b"\x02\x20", b"\x02\x21\x00")
def signature(data: bytes) -> None:
    for key in _KEYS:
        for algorithm in signatures.algorithms_of(key):
            _must_not_verify(key, algorithm, data)
    logcheck.nonce_mark("", data.decode("latin-1"))


def _must_not_verify(key: signatures.PublicKey, algorithm: Algorithm, candidate: bytes) -> None:
    digest = bytes(algorithm.digest_size) or b"\x01"
    try:
        signatures.verify_digest(key, algorithm, b"\x5a" * len(digest), candidate)
    except (SignatureInvalid, PublicKeyInvalid) as error:
        told(error)
        return
    raise AssertionError(f"bytes that no one signed verify with {algorithm.value}")


@target("entries", *JSON_WORDS, b"\n", b'"intent":{"index":', b'"t":"outcome"', b'"sig":', b'"v":1', b'"leaf_hash":')
def log_entries(data: bytes) -> None:
    """A log from a daemon that is not to be trusted: lines, each an entry."""
    check, tree = logcheck.LogCheck("greatseal.local/log"), GrowingTree()
    entries = list(enumerate(data.split(b"\n")))
    for index, entry in entries:
        check.add(index, entry)
        tree.append(entry)
    assert (check.size, check.root()) == (tree.size, tree.root())
    if check.problem is None:
        logcheck.find_repeated_nonce(check.repeated_nonces() | frozenset({0}), entries)
    else:
        assert check.problem.message.encode()
        assert len(check.problem.message) < 1024


_DIRECTORY = tempfile.TemporaryDirectory(prefix="greatseal-fuzz-")


@target("profile", *TOML_WORDS, b"address = ", b"log_key = ", b"timeout = ")
def client_profile(data: bytes) -> None:
    path = Path(_DIRECTORY.name) / "client.toml"
    path.write_bytes(data)
    try:
        found = profile.load(path, environment={})
        found.target()
        found.credentials()
    except ProfileError as error:
        told(error)
        return
    assert profile.load(path, environment={}) == found
