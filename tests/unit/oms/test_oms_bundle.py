"""The signature file, byte for byte, and what is refused as one."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

import model_site as site
from greatseal.oms.bundle import MAX_BUNDLE_BYTES, key_hint, parse_bundle, write_bundle
from greatseal.oms.errors import BundleInvalid

PAYLOAD = b'{"_type":"x"}'
KEY = site.new_key()
ROOT = site.Authority.root()
MIDDLE = ROOT.intermediate()
LEAF = MIDDLE.leaf(KEY)


def test_the_key_bundle_is_exactly_these_bytes():
    hint = hashlib.sha256(site.public_pem(KEY)).hexdigest()
    assert key_hint(KEY.public_key()) == hint
    assert (
        write_bundle("application/vnd.in-toto+json", PAYLOAD, b"\x30\x00", KEY.public_key())
        == (
            '{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":'
            f'{{"hint":"{hint}"}},"tlogEntries":[]}},"dsseEnvelope":{{"payload":"eyJfdHlwZSI6IngifQ==","payloadType":'
            f'"application/vnd.in-toto+json","signatures":[{{"sig":"MAA=","keyid":"{hint}"}}]}}}}'
        ).encode()
    )


def test_the_certificate_bundle_has_the_leaf_first_and_reads_back():
    data = write_bundle("application/vnd.in-toto+json", PAYLOAD, b"sig", KEY.public_key(), (LEAF, MIDDLE.certificate))
    chain = json.loads(data)["verificationMaterial"]["x509CertificateChain"]["certificates"]
    der = [base64.b64decode(each["rawBytes"]) for each in chain]
    assert der == [each.public_bytes(Encoding.DER) for each in (LEAF, MIDDLE.certificate)]
    bundle = parse_bundle(data)
    assert (bundle.payload, bundle.signature, bundle.method) == (PAYLOAD, b"sig", "certificate")
    assert bundle.certificates == (LEAF, MIDDLE.certificate)


def document() -> dict[str, Any]:
    return json.loads(site.bundle_of(PAYLOAD, KEY))


def with_timestamps(value: dict[str, Any]) -> None:
    value["verificationMaterial"]["timestampVerificationData"] = {"rfc3161Timestamps": [{"signedTimestamp": "AA=="}]}


def without_hint(value: dict[str, Any]) -> None:
    value["verificationMaterial"] = {"publicKey": {}}
    del value["dsseEnvelope"]["signatures"][0]["keyid"]


@pytest.mark.parametrize("change", [with_timestamps, without_hint])
def test_what_other_signers_write_is_read(change: Callable[[dict[str, Any]], None]):
    value = document()
    change(value)
    assert parse_bundle(json.dumps(value, indent=2).encode()).payload == PAYLOAD


def material(value: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(verificationMaterial=value)


def envelope(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["dsseEnvelope"].update(fields)


def certificates(*raw: object) -> Callable[[dict[str, Any]], None]:
    return material({"x509CertificateChain": {"certificates": [{"rawBytes": each} for each in raw]}})


LEAF_B64 = base64.b64encode(LEAF.public_bytes(Encoding.DER)).decode()
REFUSED = {
    "another media type": (lambda document: document.update(mediaType="application/json"), "mediaType"),
    "no envelope": (lambda document: document.pop("dsseEnvelope"), "DSSE"),
    "a message signature as well": (lambda document: document.update(messageSignature={}), "DSSE"),
    "no signature": (envelope(signatures=[]), "signatures"),
    "two signatures": (envelope(signatures=[{"sig": "MAA="}, {"sig": "MAA="}]), "exactly one signature"),
    "a payload that is no base64": (envelope(payload="e30=!"), "base64"),
    "no signer": (material({"tlogEntries": []}), "neither"),
    "two signers": (
        material({"publicKey": {}, "x509CertificateChain": {"certificates": [{"rawBytes": LEAF_B64}]}}),
        "both",
    ),
    "keyless": (material({"certificate": {"rawBytes": LEAF_B64}, "tlogEntries": [{}]}), "keyless"),
    "a hint that is no text": (material({"publicKey": {"hint": 1}}), "hint"),
    "no certificates": (certificates(), "1 to 16"),
    "too many certificates": (certificates(*[LEAF_B64] * 17), "1 to 16"),
    "a certificate that is none": (certificates("AAAA"), "certificate 1"),
    "a certificate that is no text": (certificates(None), "rawBytes"),
}


@pytest.mark.parametrize(("change", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_signature_file_is_refused_by_name(change: Callable[[dict[str, Any]], None], why: str):
    value = document()
    change(value)
    with pytest.raises(BundleInvalid, match=why):
        parse_bundle(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "JSON"),
        (b"[]", "object"),
        (b"\xff", "UTF-8"),
        (b"[" * 100_000, "deep|JSON"),
        (b'{"a":NaN}', "a: is not a finite number"),
        (b'{"a":' + b"9" * 10_000 + b"}", "too long"),
        (b" " * (MAX_BUNDLE_BYTES + 1), "limit"),
        (b'{"mediaType":"a","mediaType":"b"}', "twice"),
        (b'{"mediaType":"\\ud800"}', "mediaType"),
        (b"[" + b"[]," * 1_000_000 + b"[]]", "more than 600000 values"),  # would take 60 bytes of memory for each three
    ],
    ids=[
        "empty",
        "list",
        "not UTF-8",
        "deep",
        "NaN",
        "long number",
        "long",
        "a name twice",
        "half a character",
        "many values",
    ],
)
def test_foreign_bytes_are_bounded(data: bytes, why: str):
    with pytest.raises(BundleInvalid, match=why):
        parse_bundle(data)
