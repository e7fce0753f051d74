"""The local PKI issues what TLS and the identity rules want, and refuses what would weaken them."""

from __future__ import annotations

import ipaddress
import os
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from greatseald.adapters import pki

DOMAIN = "example.org"


@pytest.fixture(scope="module")
def authority():
    return pki.create_authority(DOMAIN)


def extension(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind)


def test_a_server_certificate_verifies_for_its_names_under_webpki_rules(authority):
    issued = pki.issue_server(authority, ["localhost", "seal.example.org"], ["127.0.0.1", "::1"])
    store = verification.Store([authority.certificate])
    for name in (
        x509.DNSName("localhost"),
        x509.DNSName("seal.example.org"),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ):
        chain = verification.PolicyBuilder().store(store).build_server_verifier(name).verify(issued.certificate, [])
        assert chain[-1] == authority.certificate
    with pytest.raises(verification.VerificationError):
        verification.PolicyBuilder().store(store).build_server_verifier(x509.DNSName("other.example.org")).verify(
            issued.certificate, []
        )


def test_a_client_certificate_verifies_and_bears_exactly_one_name(authority):
    identity = pki.spiffe_id(DOMAIN, "ci-7")
    issued = pki.issue_client(authority, identity)
    names = extension(issued.certificate, x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["spiffe://example.org/ci-7"]
    verified = (
        verification.PolicyBuilder()
        .store(verification.Store([authority.certificate]))
        .build_client_verifier()
        .verify(issued.certificate, [])
    )
    assert [name.value for name in verified.subjects] == [identity]


def test_neither_kind_of_leaf_can_stand_in_for_the_other(authority):
    server = pki.issue_server(authority, ["localhost"], []).certificate
    client = pki.issue_client(authority, pki.spiffe_id(DOMAIN, "ci")).certificate
    assert list(extension(server, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert list(extension(client, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    for leaf in (server, client):
        constraints = extension(leaf, x509.BasicConstraints)
        assert constraints.critical
        assert not constraints.value.ca


def test_the_root_signs_leaves_only(authority):
    constraints = extension(authority.certificate, x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    usage = extension(authority.certificate, x509.KeyUsage).value
    assert usage.key_cert_sign
    assert not usage.digital_signature


def test_lifetimes_are_the_stated_ones():
    authority = pki.create_authority(DOMAIN)
    now = datetime.now(UTC)
    ends = {
        "root": (authority, 3653),
        "server": (pki.issue_server(authority, ["localhost"], []), 730),
        "client": (pki.issue_client(authority, pki.spiffe_id(DOMAIN, "a")), 90),
        "asked": (pki.issue_client(authority, pki.spiffe_id(DOMAIN, "a"), days=7), 7),
    }
    for what, (issued, days) in ends.items():
        assert abs(issued.not_after - now - timedelta(days=days)) < timedelta(minutes=5), what


def test_no_leaf_outlives_its_issuer():
    short = pki.create_authority(DOMAIN, days=30)
    issued = pki.issue_client(short, pki.spiffe_id(DOMAIN, "a"), days=90)
    assert issued.not_after == short.not_after


@pytest.mark.parametrize("days", [0, -1, 826])
def test_a_client_certificate_of_an_unreasonable_age_is_refused(authority, days):
    with pytest.raises(pki.PkiError, match="1 to 825 days"):
        pki.issue_client(authority, pki.spiffe_id(DOMAIN, "a"), days=days)


def test_serials_are_large_and_never_repeat(authority):
    serials = {pki.issue_client(authority, pki.spiffe_id(DOMAIN, "a")).certificate.serial_number for _ in range(20)}
    assert len(serials) == 20
    assert max(serials).bit_length() > 140


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "..", "a b", "-a", "a" * 64, "é", "a\n", "a.."])
def test_a_name_that_no_path_or_spiffe_id_should_bear_is_refused(name):
    with pytest.raises(pki.PkiError, match="is not a client name"):
        pki.spiffe_id(DOMAIN, name)


@pytest.mark.parametrize("domain", ["", "Example.org", "a/b", "a:1", "exa mple", "x" * 256])
def test_a_malformed_trust_domain_is_refused(domain):
    with pytest.raises(pki.PkiError, match="is not a trust domain"):
        pki.create_authority(domain)


def test_the_authority_says_which_trust_domain_it_issues_for(authority):
    assert pki.trust_domain_of(authority.certificate) == DOMAIN
    with pytest.raises(pki.PkiError, match="not made by `init`"):
        pki.trust_domain_of(pki.issue_server(authority, ["localhost"], []).certificate)


def test_what_was_written_can_be_read_back_and_the_key_is_secret(authority, tmp_path):
    pki.write(authority, tmp_path / "ca.pem", tmp_path / "ca.key")
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o600
    back = pki.load_authority(tmp_path / "ca.pem", tmp_path / "ca.key")
    assert back.certificate == authority.certificate
    assert back.key.private_numbers() == authority.key.private_numbers()


def test_a_key_is_secret_whatever_the_umask(authority, tmp_path):
    old = os.umask(0)
    try:
        pki.write(authority, tmp_path / "ca.pem", tmp_path / "ca.key")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("present", ["ca.pem", "ca.key"])
def test_nothing_is_overwritten_and_no_half_is_left(authority, tmp_path, present):
    (tmp_path / present).write_text("mine")
    with pytest.raises(pki.PkiError, match="exists"):
        pki.write(authority, tmp_path / "ca.pem", tmp_path / "ca.key")
    assert [path.name for path in tmp_path.iterdir()] == [present]
    assert (tmp_path / present).read_text() == "mine"


def test_a_planted_symlink_is_not_followed(authority, tmp_path):
    (tmp_path / "ca.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(pki.PkiError):
        pki.write(authority, tmp_path / "ca.pem", tmp_path / "ca.key")
    assert not (tmp_path / "elsewhere").exists()


def test_an_authority_whose_key_others_can_read_is_refused(authority, tmp_path):
    pki.write(authority, tmp_path / "ca.pem", tmp_path / "ca.key")
    (tmp_path / "ca.key").chmod(0o640)
    with pytest.raises(pki.PkiError, match="chmod 600"):
        pki.load_authority(tmp_path / "ca.pem", tmp_path / "ca.key")


def test_an_authority_with_the_key_of_another_is_refused(authority, tmp_path):
    other = pki.Issued(authority.certificate, ec.generate_private_key(ec.SECP256R1()))
    pki.write(other, tmp_path / "ca.pem", tmp_path / "ca.key")
    with pytest.raises(pki.PkiError, match="does not hold the key of"):
        pki.load_authority(tmp_path / "ca.pem", tmp_path / "ca.key")


def test_a_missing_or_broken_authority_is_named(tmp_path):
    with pytest.raises(pki.PkiError, match=r"ca\.key: No such file"):
        pki.load_authority(tmp_path / "ca.pem", tmp_path / "ca.key")
    for name in ("ca.pem", "ca.key"):
        (tmp_path / name).write_text("nonsense")
        (tmp_path / name).chmod(0o600)
    with pytest.raises(pki.PkiError, match="is not a PEM certificate"):
        pki.load_authority(tmp_path / "ca.pem", tmp_path / "ca.key")
