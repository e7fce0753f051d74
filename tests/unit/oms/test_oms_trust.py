"""Whose signature counts: keys, certificates, chains, and what is over them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

import model_site as site
from greatseal.oms.bundle import Bundle, parse_bundle
from greatseal.oms.errors import BundleInvalid, ModelUnverified, SignatureMismatch, SignerUntrusted
from greatseal.oms.manifest import ModelManifest
from greatseal.oms.verify import Trust, verify_bundle
from greatseal.statement import Resource

PAYLOAD = ModelManifest("llama", (Resource("a", hashlib.sha256(b"a").hexdigest()),), ("model.sig",), 1).payload()
ROOT = site.Authority.root()
MIDDLE = ROOT.intermediate()
KEY = site.new_key()


def signed(
    chain: Sequence[x509.Certificate] = (), key: ec.EllipticCurvePrivateKey = KEY, payload: bytes = PAYLOAD
) -> Bundle:
    return parse_bundle(site.bundle_of(payload, key, chain))


def in_key(key: ec.EllipticCurvePrivateKey = KEY) -> Trust:
    return Trust.in_key(site.public_pem(key))


def in_root(authority: site.Authority = ROOT) -> Trust:
    return Trust.in_roots([authority.certificate])


@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
def test_a_signature_by_the_trusted_key_verifies(curve: str):
    key = site.new_key(curve)
    verified = verify_bundle(signed(key=key), in_key(key))
    assert (verified.name, verified.manifest.root) == (
        "llama",
        hashlib.sha256(hashlib.sha256(b"a").digest()).hexdigest(),
    )


def test_another_key_is_named_and_refused():
    with pytest.raises(SignerUntrusted, match="another key"):
        verify_bundle(signed(), in_key(site.new_key()))


def test_another_key_is_refused_where_the_bundle_does_not_name_one():
    with pytest.raises(SignatureMismatch):
        verify_bundle(replace(signed(), key_hint=""), in_key(site.new_key()))


def test_an_edited_payload_and_an_edited_signature_are_refused():
    bundle = signed()
    with pytest.raises(SignatureMismatch):
        verify_bundle(replace(bundle, payload=bundle.payload.replace(b"llama", b"alpaca")), in_key())
    with pytest.raises(SignatureMismatch):
        verify_bundle(replace(bundle, signature=bundle.signature[:-1]), in_key())
    with pytest.raises(SignatureMismatch):
        verify_bundle(replace(bundle, payload_type="text/plain"), in_key())


def test_a_signature_over_the_root_alone_is_none():
    """Signing the model's digest instead of the PAE is the mistake that OMS implementations make."""
    root = hashlib.sha256(hashlib.sha256(b"a").digest()).digest()
    over_root = KEY.sign(root, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(SignatureMismatch):
        verify_bundle(replace(signed(), signature=over_root), in_key())


@pytest.mark.parametrize("payload", [b"{}", b'{"_type":"https://in-toto.io/Statement/v1"}', b"not json"])
def test_a_good_signature_over_no_statement_is_refused(payload: bytes):
    with pytest.raises(BundleInvalid, match="statement"):
        verify_bundle(signed(payload=payload), in_key())


def test_a_good_signature_over_another_kind_of_statement_is_refused():
    payload = (
        b'{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"x","digest":{"sha256":"'
        + b"0" * 64
        + b'"}}],"predicateType":"https://slsa.dev/provenance/v1","predicate":{}}'
    )
    with pytest.raises(BundleInvalid, match="slsa"):
        verify_bundle(signed(payload=payload), in_key())


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256K1()),
    ],
    ids=["RSA", "Ed25519", "secp256k1"],
)
def test_keys_that_no_verifier_of_models_accepts_are_not_trusted(key: Any):
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(SignerUntrusted, match="P-256, P-384 or P-521"):
        Trust.in_key(pem)


def test_text_that_is_no_key_is_not_trusted():
    with pytest.raises(SignerUntrusted, match="PEM"):
        Trust.in_key(b"hello")


def test_a_chain_to_the_trusted_root_verifies_and_names_the_signer():
    verified = verify_bundle(signed([MIDDLE.leaf(KEY), MIDDLE.certificate]), in_root())
    assert verified.certificate is not None
    assert verified.certificate.subject.rfc4514_string() == "CN=Model Release"


def test_the_bare_key_of_the_leaf_may_be_trusted_instead_of_a_root():
    bundle = signed([MIDDLE.leaf(KEY), MIDDLE.certificate])
    assert verify_bundle(bundle, in_key()).certificate is None
    with pytest.raises(SignerUntrusted, match="another key"):
        verify_bundle(bundle, in_key(site.new_key()))


def test_a_bundle_without_certificates_does_not_verify_by_a_root():
    with pytest.raises(SignerUntrusted, match="public key"):
        verify_bundle(signed(), in_root())


def test_certificates_are_judged_at_the_time_given():
    bundle = signed([MIDDLE.leaf(KEY, ends=timedelta(hours=-1)), MIDDLE.certificate])
    with pytest.raises(SignerUntrusted, match="expired on"):
        verify_bundle(bundle, in_root())
    assert verify_bundle(bundle, in_root(), at=datetime.now(UTC) - timedelta(hours=2)).certificate


CODE = ExtendedKeyUsageOID.CODE_SIGNING
TLS = ExtendedKeyUsageOID.SERVER_AUTH
BAD_LEAVES = {
    "not yet valid": ({"begins": timedelta(hours=1)}, "not valid before"),
    "no purpose": ({"purposes": None}, "codeSigning"),
    "another purpose": ({"purposes": [TLS]}, "codeSigning"),
    "no digitalSignature": ({"digital_signature": False}, "digitalSignature"),
    "unknown critical extension": ({"critical_unknown": True}, "critical"),
}


@pytest.mark.parametrize(("changes", "why"), BAD_LEAVES.values(), ids=BAD_LEAVES)
def test_a_leaf_that_may_not_sign_is_refused_by_name(changes: dict[str, Any], why: str):
    with pytest.raises(SignerUntrusted, match=why):
        verify_bundle(signed([MIDDLE.leaf(KEY, **changes), MIDDLE.certificate]), in_root())


def test_an_authority_is_no_signer_of_models():
    with pytest.raises(SignerUntrusted, match="digitalSignature"):
        verify_bundle(signed([MIDDLE.certificate], key=MIDDLE.key), in_root())


def test_a_leaf_for_another_key_is_refused():
    with pytest.raises(SignatureMismatch):
        verify_bundle(signed([MIDDLE.leaf(site.new_key()), MIDDLE.certificate]), in_root())


def test_another_root_is_refused_also_under_the_same_name():
    bundle = signed([MIDDLE.leaf(KEY), MIDDLE.certificate])
    for other in (site.Authority.root(), site.Authority.root("Other Root")):
        with pytest.raises(SignerUntrusted, match="does not lead to the trusted root"):
            verify_bundle(bundle, in_root(other))


def test_a_root_that_the_bundle_brings_along_is_not_trusted_for_that():
    mine = site.Authority.root("Evil Root")
    with pytest.raises(SignerUntrusted, match="does not lead"):
        verify_bundle(signed([mine.leaf(KEY), mine.certificate]), in_root())


def test_a_leaf_signed_by_an_impostor_of_the_intermediate_is_refused():
    impostor = site.Authority(MIDDLE.name, site.new_key(), MIDDLE.certificate)
    with pytest.raises(SignerUntrusted, match="does not lead"):
        verify_bundle(signed([impostor.leaf(KEY), MIDDLE.certificate]), in_root())


def test_a_leaf_cannot_issue_leaves():
    thief_key = site.new_key()
    thief = MIDDLE.leaf(thief_key, "Thief")
    leaf = site.Authority("Thief", thief_key, thief).leaf(KEY)
    with pytest.raises(SignerUntrusted, match="does not lead"):
        verify_bundle(signed([leaf, thief, MIDDLE.certificate]), in_root())


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"ends": timedelta(hours=-1)}, "authority.*expired on"), ({"cert_sign": False}, "keyCertSign|does not lead")],
)
def test_an_intermediate_that_may_not_issue_is_refused(changes: dict[str, Any], why: str):
    middle = ROOT.intermediate(**changes)
    with pytest.raises(SignerUntrusted, match=why):
        verify_bundle(signed([middle.leaf(KEY), middle.certificate]), in_root())


def test_a_path_longer_than_an_authority_allows_is_refused():
    first = ROOT.intermediate("First", path_length=0)
    second = first.intermediate("Second")
    with pytest.raises(SignerUntrusted, match="path length"):
        verify_bundle(signed([second.leaf(KEY), second.certificate, first.certificate]), in_root())


def test_no_trust_means_no_verification():
    with pytest.raises(SignerUntrusted, match="neither"):
        verify_bundle(signed(), Trust())
    with pytest.raises(SignerUntrusted, match="no root"):
        Trust.in_roots([])


def test_no_damage_to_a_certificate_gets_past_the_one_family_of_errors():
    """`cryptography` reads certificates lazily and raises six kinds of errors; users meet one."""
    random = Random(20260101)
    chain = (MIDDLE.leaf(KEY), MIDDLE.certificate)
    der = [each.public_bytes(serialization.Encoding.DER) for each in chain]
    document = json.loads(site.bundle_of(b"{}", KEY, chain))
    for _ in range(1500):
        damaged = [bytearray(each) for each in der]
        target = random.choice(damaged)
        for _ in range(random.choice((1, 1, 2, 5))):
            target[random.randrange(len(target))] = random.randrange(256)
        raw = [{"rawBytes": base64.b64encode(each).decode()} for each in damaged]
        document["verificationMaterial"]["x509CertificateChain"]["certificates"] = raw
        for trust in (in_root(), in_key()):
            with pytest.raises(ModelUnverified):
                verify_bundle(parse_bundle(json.dumps(document).encode()), trust)
