"""Who a certificate names: exactly one identity, or an error; never another's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from greatseald.adapters.authn.certificate import MAX_CACHED, CertificateReader, read_caller
from greatseald.domain.errors import IdentityInvalid

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = datetime(2030, 1, 1, tzinfo=UTC)

URI = x509.UniformResourceIdentifier
DNS = x509.DNSName
EMAIL = x509.RFC822Name


def pem(*names: x509.GeneralName, subject: str = "someone", serial: int = 0xABC, key=KEY) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else [])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")]))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    "names,identity",
    [
        ((URI("spiffe://example.org/ci"),), "spiffe://example.org/ci"),
        ((URI("spiffe://example.org/ci"), DNS("ci.example.org"), EMAIL("a@b.c")), "spiffe://example.org/ci"),
        ((DNS("ci.example.org"),), "ci.example.org"),
        ((DNS("ci.example.org"), EMAIL("a@b.c")), "ci.example.org"),
        ((URI("https://example.org/x"), DNS("ci.example.org")), "ci.example.org"),
        ((EMAIL("release@example.org"),), "release@example.org"),
        ((URI("https://example.org/x"),), "CN=someone"),
        ((), "CN=someone"),
    ],
)
def test_the_most_specific_single_name_is_the_identity(names, identity):
    assert read_caller(pem(*names)).id == identity


@pytest.mark.parametrize(
    "names",
    [
        (URI("spiffe://example.org/a"), URI("spiffe://example.org/b")),
        (URI("spiffe://example.org/a"), URI("https://example.org/")),
        (URI("spiffe://example.org/a/"),),
        (URI("spiffe://example.org/a/../b"),),
        (URI("spiffe://Example.org/a"),),
        (URI("spiffe:///a"),),
        (URI("spiffe://example.org/a?x=1"),),
        (URI("SPIFFE://example.org/a"),),
        (URI("spiffe://example.org/" + "a" * 2100),),
        (DNS("a.example.org"), DNS("b.example.org")),
        (EMAIL("a@example.org"), EMAIL("b@example.org")),
        (DNS("*.example.org"),),
    ],
)
def test_names_that_are_ambiguous_or_malformed_name_nobody(names):
    with pytest.raises(IdentityInvalid):
        read_caller(pem(*names))


@pytest.mark.parametrize("name", [DNS("spiffe://greatseal.local/pipeline"), DNS("CN=admin"), DNS("a@b.c")])
def test_no_name_of_one_kind_can_spell_one_of_another(name):
    with pytest.raises(IdentityInvalid):
        read_caller(pem(name))


def test_a_subject_cannot_spell_a_spiffe_id():
    assert read_caller(pem(subject="spiffe://greatseal.local/pipeline")).id == "CN=spiffe://greatseal.local/pipeline"


def test_a_certificate_without_any_name_names_nobody():
    with pytest.raises(IdentityInvalid, match="names nobody"):
        read_caller(pem(subject=""))


def test_serial_issuer_and_hashes_are_those_that_openssl_prints():
    caller = read_caller(pem(serial=0x0A1B2C))
    assert caller.serial == "a1b2c"
    assert caller.issuer == "CN=Test CA"
    assert len(caller.spki_sha256) == len(caller.cert_sha256) == 64
    assert caller.not_after == NOW + timedelta(days=1)


def test_a_renewed_certificate_keeps_the_scope_of_request_ids():
    first = read_caller(pem(URI("spiffe://example.org/ci"), serial=1))
    second = read_caller(pem(URI("spiffe://example.org/ci"), serial=2, key=ec.generate_private_key(ec.SECP256R1())))
    assert first.cert_sha256 != second.cert_sha256
    assert first.request_scope == second.request_scope


def test_a_certificate_that_expires_on_an_open_connection_is_refused_from_then_on():
    now = NOW.timestamp()
    reader = CertificateReader(lambda: now)
    data = pem(DNS("ci.example.org"))
    assert reader.caller(data) is reader.caller(data)
    now = (NOW + timedelta(days=2)).timestamp()
    with pytest.raises(IdentityInvalid, match="expired"):
        reader.caller(data)


def test_the_cache_is_bounded():
    reader = CertificateReader(NOW.timestamp)
    first = pem(DNS("first.example.org"))
    kept = reader.caller(first)
    for serial in range(1, MAX_CACHED + 1):
        # PEM readers ignore text around the armour: cheap distinct inputs of one certificate.
        reader.caller(first + b"# %d\n" % serial)
    assert reader.caller(first) is not kept
    assert len(reader._known) <= MAX_CACHED


@given(st.binary(max_size=300))
def test_junk_is_an_identity_error_and_nothing_else(data):
    with pytest.raises(IdentityInvalid):
        read_caller(b"-----BEGIN CERTIFICATE-----\n" + data + b"\n-----END CERTIFICATE-----\n")
    with pytest.raises(IdentityInvalid):
        read_caller(data)
