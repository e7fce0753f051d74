"""The small certificate authority that `greatseald init` makes for a first start.

It issues exactly three kinds of certificate: its own root, the daemon's server certificate, and
client certificates that carry one SPIFFE id. Production brings its own; nothing else in the daemon
knows this module.

Invariants: every key is P-256 and born here; a serial number has 159 random bits; no certificate
outlives its issuer; a key file is created with mode 0600 and never replaces another.

    ca = create_authority("greatseal.local")
    issued = issue_client(ca, spiffe_id("greatseal.local", "pipeline"))
    write(issued, Path("pki/pipeline.pem"), Path("pki/pipeline.key"))
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS: Final = 3653
"""Ten years: the root of a local PKI is replaced with the installation."""
SERVER_DAYS: Final = 730
"""Two years: renewing it is a file swap that the daemon notices by itself."""
CLIENT_DAYS: Final = 90
"""Ninety days, unless `client add --days` says otherwise."""
MAX_CLIENT_DAYS: Final = 825

_BACKDATED: Final = timedelta(minutes=5)  # so that a client whose clock is a little late may use it at once
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,253}[a-z0-9])?")


class PkiError(Exception):
    """A certificate or key cannot be read, made or written; the message says which, why and what to do."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and the private key that belongs to it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def not_after(self) -> datetime:
        """When it ends; aware, UTC."""
        return self.certificate.not_valid_after_utc

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM, trailing newline included."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key as unencrypted PKCS#8 PEM, trailing newline included."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def spiffe_id(trust_domain: str, name: str) -> str:
    """Return `spiffe://<trust_domain>/<name>` (SPIFFE-ID, section 2).

    Raises:
        PkiError: either part holds what a SPIFFE id or a file name may not.
    """
    if not _TRUST_DOMAIN.fullmatch(trust_domain):
        message = f"{trust_domain!r} is not a trust domain: use lower-case letters, digits, dots and hyphens"
        raise PkiError(message)
    if not _NAME.fullmatch(name):
        message = f"{name!r} is not a client name: use 1 to 63 lower-case letters, digits, dots, hyphens, underscores"
        raise PkiError(message)
    return f"spiffe://{trust_domain}/{name}"


def trust_domain_of(certificate: x509.Certificate) -> str:
    """Return the trust domain that an authority made by `create_authority` issues for.

    Raises:
        PkiError: the certificate names none.
    """
    for uri in _uris(certificate):
        if uri.startswith("spiffe://") and _TRUST_DOMAIN.fullmatch(uri[9:]):
            return uri[9:]
    message = "the CA certificate has no SPIFFE trust domain among its alternative names: it was not made by `init`"
    raise PkiError(message)


def create_authority(trust_domain: str, days: int = CA_DAYS) -> Issued:
    """Make a root of trust for `trust_domain` that lives for `days` days and may sign leaves only.

    Raises:
        PkiError: `trust_domain` is malformed.
    """
    if not _TRUST_DOMAIN.fullmatch(trust_domain):
        message = f"{trust_domain!r} is not a trust domain: use lower-case letters, digits, dots and hyphens"
        raise PkiError(message)
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"Greatseal local CA for {trust_domain}")
    builder = (
        _builder(name, name, key.public_key(), days, latest=None)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificate_authority=True), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
        )
    )
    return Issued(builder.sign(key, hashes.SHA256()), key)


def issue_server(
    authority: Issued, dns_names: Sequence[str], addresses: Sequence[str], days: int = SERVER_DAYS
) -> Issued:
    """Issue a server certificate (serverAuth) for `dns_names` and IP `addresses`, at least one of the former.

    gRPC clients cannot verify a server that has only a URI among its names, hence the DNS name.

    Raises:
        PkiError: no DNS name is given, or one is not ASCII.
        ValueError: an address is not an IP address.
    """
    if not dns_names:
        message = "a server certificate needs at least one DNS name"
        raise PkiError(message)
    try:
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns_names]
    except ValueError as error:
        message = f"{', '.join(dns_names)!r} holds something that is not a DNS name: {error}"
        raise PkiError(message) from error
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    return _issue_leaf(authority, dns_names[0], names, ExtendedKeyUsageOID.SERVER_AUTH, days)


def issue_client(authority: Issued, identity: str, days: int = CLIENT_DAYS) -> Issued:
    """Issue a client certificate (clientAuth) whose one alternative name is the SPIFFE id `identity`.

    Raises:
        PkiError: `days` is not between 1 and 825, or the authority has ended.
    """
    if not 1 <= days <= MAX_CLIENT_DAYS:
        message = f"a client certificate lives 1 to {MAX_CLIENT_DAYS} days, and {days} were asked for"
        raise PkiError(message)
    names = [x509.UniformResourceIdentifier(identity)]
    return _issue_leaf(authority, identity.rsplit("/", 1)[1], names, ExtendedKeyUsageOID.CLIENT_AUTH, days)


def load_authority(certificate_file: Path, key_file: Path) -> Issued:
    """Read an authority back.

    Raises:
        PkiError: a file is missing, unreadable, readable for others, malformed, or the two do not belong together.
    """
    try:
        if key_file.stat().st_mode & 0o077:
            message = f"{key_file}: others can read the CA's key; run: chmod 600 {key_file}"
            raise PkiError(message)
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}: the local CA cannot be used; certificates from another PKI work as well"
        raise PkiError(message) from error
    except (ValueError, TypeError) as error:
        message = f"{certificate_file} or {key_file} is not a PEM certificate with its unencrypted key"
        raise PkiError(message) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        message = f"{key_file} does not hold the key of {certificate_file}"
        raise PkiError(message)
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        message = (
            f"{certificate_file}: the CA ended on {certificate.not_valid_after_utc:%Y-%m-%d}; make a new one with init"
        )
        raise PkiError(message)
    return Issued(certificate, key)


def write(issued: Issued, certificate_file: Path, key_file: Path) -> None:
    """Write the key (0600) and the certificate (0644); both or neither.

    Raises:
        PkiError: one of them exists, or cannot be written.
    """
    try:
        write_new(key_file, issued.key_pem, 0o600)
    except OSError as error:
        message = f"{key_file}: {error.strerror}"
        raise PkiError(message) from error
    try:
        write_new(certificate_file, issued.certificate_pem, 0o644)
    except OSError as error:
        key_file.unlink()
        message = f"{certificate_file}: {error.strerror}"
        raise PkiError(message) from error


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Create `path` with `mode` and `data`, durably; leave nothing behind on failure.

    Raises:
        OSError: it exists or cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(FileNotFoundError):
            path.unlink()
        raise


def _issue_leaf(
    authority: Issued, common_name: str, names: Sequence[x509.GeneralName], purpose: x509.ObjectIdentifier, days: int
) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    builder = (
        _builder(_name(common_name), issuer.subject, key.public_key(), days, latest=issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificate_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    return Issued(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int, latest: datetime | None
) -> x509.CertificateBuilder:
    now = datetime.now(UTC).replace(microsecond=0)
    end = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(end if latest is None else min(end, latest))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _usage(*, certificate_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificate_authority,
        key_cert_sign=certificate_authority,
        crl_sign=certificate_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)
