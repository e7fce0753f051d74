"""An attestation proves what it has to, or nothing: chains as Yubico makes them, and chains as an attacker would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from virtual_yubikey import ATTESTATION_OBJECT, Issuer, VirtualYubiKey, parse

from greatseald.adapters.tokens.yubikey.attestation import (
    Attestation,
    AttestationInvalid,
    parse_attestation,
    read_roots,
    verify_attestation,
)

SERIAL = "11111111"


def attest(issuer: Issuer, serial: int = int(SERIAL)) -> tuple[Attestation, bytes]:
    """What a device of this issuer attests of a new key, and the key."""
    card = VirtualYubiKey(serial, issuer)
    spki = card.generate(0x9C, "ECCP256", "ALWAYS", "CACHED")
    leaf = x509.load_der_x509_certificate(card._attest(0x9C))
    device = x509.load_der_x509_certificate(dict(parse(card.objects[ATTESTATION_OBJECT]))[0x70])
    return parse_attestation(leaf, device), spki


def below(issuer: Issuer, name: str, *, ca: bool = True) -> Issuer:
    """Somebody to whom `issuer` gave a certificate."""
    private = ec.generate_private_key(ec.SECP256R1())
    if ca:
        return Issuer(private, issuer.issue(name, private.public_key()))
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    plain = issuer.issue(name, private.public_key())
    builder = x509.CertificateBuilder(
        issuer.certificate.subject, subject, private.public_key(), x509.random_serial_number(),
        plain.not_valid_before_utc, plain.not_valid_after_utc,
    )  # fmt: skip
    return Issuer(private, builder.sign(issuer.private, SHA256()))


def test_what_a_device_says_is_read_and_proven():
    root = Issuer.make()
    said, spki = attest(root)
    assert (said.serial, said.firmware, said.pin_policy, said.touch_policy) == (SERIAL, "5.7.1", "always", "cached")
    assert said.root == ""
    proven = verify_attestation(said, [root.certificate], SERIAL, spki)
    assert proven.root == "CN=Virtual PIV Root CA"
    assert len(proven.chain) == 3


def test_issuers_between_device_and_root_are_followed_as_in_devices_since_5_7_4():
    root = Issuer.make()
    middle = below(root, "Attestation Intermediate B 1")
    lower = below(middle, "PIV Attestation B 1")
    said, spki = attest(lower)
    pool = [lower.certificate, root.certificate, Issuer.make().certificate, middle.certificate]
    assert len(verify_attestation(said, pool, SERIAL, spki).chain) == 5
    with pytest.raises(AttestationInvalid, match="does not lead to a configured root"):
        verify_attestation(said, [lower.certificate, root.certificate], SERIAL, spki)


def test_an_issuer_that_may_not_issue_proves_nothing():
    root = Issuer.make()
    said, spki = attest(below(root, "somebody's TLS certificate", ca=False))
    with pytest.raises(AttestationInvalid, match="does not lead"):
        verify_attestation(said, [root.certificate], SERIAL, spki)


def test_another_root_of_the_same_name_proves_nothing():
    said, spki = attest(Issuer.make())
    with pytest.raises(AttestationInvalid, match="does not lead"):
        verify_attestation(said, [Issuer.make().certificate], SERIAL, spki)


def test_another_device_key_or_certificate_proves_nothing():
    root = Issuer.make()
    said, spki = attest(root)
    other, other_spki = attest(root)
    roots = [root.certificate]
    with pytest.raises(AttestationInvalid, match="is of YubiKey 11111111, and this is 5"):
        verify_attestation(said, roots, "5", spki)
    with pytest.raises(AttestationInvalid, match="another key"):
        verify_attestation(said, roots, SERIAL, other_spki)
    mixed = replace(said, chain=(said.chain[0], other.chain[1]))
    with pytest.raises(AttestationInvalid, match="not signed by the device's certificate"):
        verify_attestation(mixed, roots, SERIAL, spki)
    with pytest.raises(AttestationInvalid, match="no attestation certificate in slot F9"):
        verify_attestation(replace(said, chain=said.chain[:1]), roots, SERIAL, spki)


def test_a_certificate_without_yubicos_extensions_is_no_attestation():
    root = Issuer.make()
    with pytest.raises(AttestationInvalid, match="not Yubico's"):
        parse_attestation(root.certificate, None)


def test_roots_are_pem_with_a_root_among_them(tmp_path: Path):
    root = Issuer.make()
    lower = below(root, "Intermediate")
    file = tmp_path / "roots.pem"
    file.write_bytes(lower.certificate.public_bytes(Encoding.PEM))
    with pytest.raises(AttestationInvalid, match="no self-signed root"):
        read_roots([file])
    file.write_bytes(file.read_bytes() + root.certificate.public_bytes(Encoding.PEM))
    assert len(read_roots([file])) == 2
    with pytest.raises(AttestationInvalid, match=r"absent\.pem"):
        read_roots([tmp_path / "absent.pem"])


@given(st.binary(max_size=12), st.binary(max_size=12), st.binary(max_size=12), st.binary(max_size=3))
def test_extensions_of_any_bytes_are_read_or_refused(firmware: bytes, serial: bytes, policies: bytes, form: bytes):
    from virtual_yubikey import _certificate

    private = _KEY
    extensions = {"3": firmware, "7": serial, "8": policies, "9": form}
    certificate = _certificate("x", private.public_key(), "x", private, extensions=extensions)
    try:
        said = parse_attestation(certificate, None)
    except AttestationInvalid:
        return
    assert said.spki == private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


_KEY = ec.generate_private_key(ec.SECP256R1())


def test_a_device_whose_own_key_is_rsa_is_proven_as_old_ones_are():
    root = Issuer.make()
    card = VirtualYubiKey(int(SERIAL), root)
    private = rsa.generate_private_key(65537, 2048)
    card._attestation_private = private  # type: ignore[assignment]
    device = root.issue("Yubico PIV Attestation", private.public_key())
    spki = card.generate(0x9A, "RSA2048", "ONCE", "NEVER")
    said = parse_attestation(x509.load_der_x509_certificate(card._attest(0x9A)), device)
    assert verify_attestation(said, [root.certificate], SERIAL, spki).root
