"""Where forged evidence would be believed: receipts, checkpoints, bundles, certificates.

The corpora hold genuine ones. Whatever is accepted of a mutation must say what was really signed.
"""

from __future__ import annotations

import base64
import json
import warnings
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from targets import target, told

from greatseal.checkpoint import open_checkpoint
from greatseal.cosignature import WitnessKey, require_quorum
from greatseal.note import VerifierKey, parse_note
from greatseal.oms import bundle as oms_bundle
from greatseal.oms.certificates import load_certificate, parse_roots, require_signing_leaf, verify_chain
from greatseal.oms.errors import BundleInvalid, SignerUntrusted
from greatseal.receipt import Receipt
from greatseal.signatures import load_public_key
from greatseal.timestamps import parse_line, read_roots, read_timestamps, verify_response
from greatseal.tlog import leaf_hash
from greatseal.tlogwitness import parse_request
from greatseal.verification import (
    CheckpointInvalid,
    NoteInvalid,
    ProofInvalid,
    QuorumMissing,
    ReceiptInvalid,
    TimestampInvalid,
)
from greatseald.adapters.authn.certificate import read_caller
from greatseald.domain.errors import IdentityInvalid
from sample_log import Pair, SampleLog

GOLDEN = Path(__file__).parents[1] / "golden"
LOG = GOLDEN / "0.1"
OMS = GOLDEN / "oms-0.1"
ANCHORS = GOLDEN / "anchors-0.1"

_LOG_KEY = VerifierKey.parse((LOG / "log.vkey").read_text())
_HEADS = {open_checkpoint((LOG / name).read_text(), _LOG_KEY) for name in ("checkpoint", "checkpoint-3")}
_ENTRIES = (LOG / "entries.jsonl").read_bytes().splitlines()
_OWN_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_SIGNATURES = {
    (bytes.fromhex(each["tbs"]), base64.b64decode(each["sig"])) for each in map(json.loads, _ENTRIES) if "sig" in each
}
_WITNESS = WitnessKey.parse((ANCHORS / "witness.vkey").read_text())
_COSIGNED = (ANCHORS / "checkpoint").read_bytes()
_TSA_ROOTS = read_roots([ANCHORS / "tsa-root.pem"])
(_STAMPED,) = read_timestamps(ANCHORS / "timestamps.jsonl")
_STAMPED_AT = verify_response(_STAMPED.response, _STAMPED.checkpoint.encode(), _TSA_ROOTS)
_SIGNERS = [load_public_key(path.read_bytes()) for path in sorted(LOG.glob("*.pem"))]


@target("checkpoint", b"greatseal.local/log\n", b"\n\n", "— ".encode(), b"23\n", b"=\n")
def checkpoint(data: bytes) -> None:
    try:
        head = open_checkpoint(data, _LOG_KEY)
    except (NoteInvalid, CheckpointInvalid) as error:
        told(error)
        return
    assert head in _HEADS, "a checkpoint opened that the log never signed"


@target("cosigned", b"witness.example/w1 ", b"\n\n", "— ".encode(), b"23\n", b"=\n")
def cosigned(data: bytes) -> None:
    try:
        found = require_quorum(data, [_WITNESS], 1)
    except (NoteInvalid, QuorumMissing) as error:
        told(error)
        return
    assert found == {_WITNESS.name: 1_767_225_600}
    assert parse_note(data).text == parse_note(_COSIGNED).text, "a cosignature was believed on another checkpoint"


@target("witness-request", b"old ", b"\n\n", b"=\n", "— ".encode())
def witness_request(data: bytes) -> None:
    try:
        request = parse_request(data)
    except ProofInvalid as error:
        told(error)
        return
    assert request.body() == data


@target("timestamp-line", b'"authority":"', b'"checkpoint":"', b'"response":"', b"\\n", b"==")
def timestamp_line(data: bytes) -> None:
    try:
        stamped = parse_line(data)
    except TimestampInvalid as error:
        told(error)
        return
    assert parse_line(stamped.line().encode()) == stamped


@target("timestamp", b"\x30\x82", b"\x06\x09", b"\x04\x20", b"\x18\x0f", b"\x02\x01\x00", b"\xa0\x82")
def timestamp(data: bytes) -> None:
    try:
        time = verify_response(data, _STAMPED.checkpoint.encode(), _TSA_ROOTS)
    except TimestampInvalid as error:
        told(error)
        return
    assert time == _STAMPED_AT, "a timestamp was believed that the authority never gave"


@target("receipt", b'"intent"', b'"outcome"', b'"entry":"', b'"proof":"', b"index ", b"\\n", b"mediaType")
def receipt(data: bytes) -> None:
    try:
        found = Receipt.from_json(data)
    except ReceiptInvalid as error:
        told(error)
        return
    assert Receipt.from_json(found.to_json()) == found
    for signer in (None, *_SIGNERS):
        try:
            verified = found.verify(_LOG_KEY, public_key=signer)
        except ReceiptInvalid as error:
            told(error)
            continue
        assert verified.signature_verified == (signer is not None)
        for logged in (found.intent, found.outcome):
            assert _ENTRIES[logged.index] == logged.entry, "a receipt verifies for an entry that is not in the log"


@target("receipt-entries", b'"v":1', b'"res":"signed"', b'"tbs":"', b'"blind":true', b'"key":{', b'"sig":"')
def receipt_entries(data: bytes) -> None:
    """Two hostile entries under a log that really holds them: whoever runs a log can write anything into it.

    `LEAF` in the second stands for the leaf hash of the first, which no mutation would find.
    """
    intent, _, outcome = data.partition(b"\n")
    log = SampleLog(private_key=_OWN_KEY)
    log.append([intent, outcome.replace(b"LEAF", leaf_hash(intent).hex().encode())])
    found = log.receipt(Pair(0, 1))
    for signer in (None, _SIGNERS[0]):
        try:
            verified = found.verify(log.vkey, public_key=signer)
        except ReceiptInvalid as error:
            told(error)
            continue
        said = json.loads(intent), json.loads(log.entries[1])
        assert [each["t"] for each in said] == ["intent", "outcome"]
        assert {each["tbs"] for each in said} == {verified.digest.hex()}
        if signer is not None:  # a genuine signature may be copied into any log
            assert (verified.digest, verified.signature) in _SIGNATURES, "a signature verifies that no one made"
        verified.caller.encode()


_OMS_KEY = load_public_key((OMS / "P-256.pem").read_bytes())


@target("bundle", b'"mediaType"', b'"dsseEnvelope"', b'"rawBytes":"', b'"certificates":[', b'"publicKey":{', b"[[[[")
def bundle(data: bytes) -> None:
    try:
        found = oms_bundle.parse_bundle(data)
    except BundleInvalid as error:
        told(error)
        assert not oms_bundle.is_bundle(data)
        return
    key = found.certificates[0].public_key() if found.certificates else _OMS_KEY
    again = oms_bundle.parse_bundle(
        oms_bundle.write_bundle(found.payload_type, found.payload, found.signature, key, found.certificates)
    )
    assert (again.payload_type, again.payload, again.signature) == (found.payload_type, found.payload, found.signature)
    assert again.certificates == found.certificates
    assert again.method is found.method
    if found.certificates:
        _judge(found.certificates)


_ROOTS = parse_roots((OMS / "root.pem").read_bytes())
_WHEN = _ROOTS[0].not_valid_before_utc


def _judge(chain: tuple[x509.Certificate, ...]) -> None:
    try:
        verify_chain(chain, _ROOTS, _WHEN)
    except SignerUntrusted as error:
        told(error)
        return
    known = json.loads((OMS / "ours-certificate-P-256.sig").read_bytes())
    known384 = json.loads((OMS / "ours-certificate-P-384.sig").read_bytes())
    leaves = {
        base64.b64decode(each["verificationMaterial"]["x509CertificateChain"]["certificates"][0]["rawBytes"])
        for each in (known, known384)
    }
    assert chain[0].public_bytes(Encoding.DER) in leaves, "a chain is trusted that leads nowhere"


@target("certificate", b"\x30\x82", b"\x06\x03\x55\x1d\x11", b"\x86", b"spiffe://", b"\x82", b"\x81", b"\x0c", b"\x13")
def client_certificate(data: bytes) -> None:
    """A certificate of a client: DER, or PEM where it begins like that. TLS checked its chain, nobody its content."""
    pem = data
    if not data.startswith(b"-----BEGIN"):
        pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(data) + b"-----END CERTIFICATE-----\n"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the daemon's log may mention a serial number of zero
        try:
            caller = read_caller(pem)
        except IdentityInvalid as error:
            told(error)
            return
        certificate = x509.load_pem_x509_certificate(pem)
    for text in (caller.id, caller.issuer, caller.serial):
        assert len(text.encode()) <= 4096
    assert caller.id
    if caller.id.lower().startswith("spiffe:"):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [caller.id]


@target("chain", b"\x30\x82", b"\x06\x03\x55\x1d\x13", b"\x06\x03\x55\x1d\x0f", b"\x06\x03\x55\x1d\x25")
def chain_certificate(data: bytes) -> None:
    """A certificate in a bundle or a root file."""
    try:
        certificate = load_certificate(data)
    except ValueError as error:
        told(error)
    else:
        assert certificate.public_bytes(Encoding.DER) == data
        try:
            require_signing_leaf(certificate, _WHEN)
        except SignerUntrusted as error:
            told(error)
        _judge((certificate,))
    try:
        parse_roots(data)
    except SignerUntrusted as error:
        told(error)
