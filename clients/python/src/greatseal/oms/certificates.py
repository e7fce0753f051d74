"""Which certificates may sign a model, and whether a chain leads to the root that is trusted.

A leaf signs models if it is valid now, has keyUsage digitalSignature *and* extendedKeyUsage
codeSigning, is no CA, and holds a P-256, P-384 or P-521 key. (Other verifiers are content with one
of the two usages; a certificate that satisfies us satisfies them.) The path to the root is built and
checked by `cryptography`: signatures, names, validity, basicConstraints, path lengths, name
constraints, unknown critical extensions. No revocation list is fetched: verification is offline.
Source: RFC 5280, 4.2.1 and 6.1; OMS specification 1.0, 4.1.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

from greatseal.oms.errors import SignerUntrusted, printable

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

_MALFORMED: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    CryptographyDeprecationWarning,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

MAX_CHAIN_DEPTH: Final = 8
"""Intermediate certificates between leaf and root, at most."""
CURVES: Final = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
"""The curves whose keys sign models, as every implementation of OMS knows them."""


def load_certificate(der: bytes) -> x509.Certificate:
    """Read a certificate, all of it: `cryptography` parses most fields only when they are asked for.

    Raises:
        ValueError: any part of it is malformed or of an unknown kind.
    """
    try:
        # What RFC 5280 forbids and `cryptography` only warns about, such as a serial number of zero.
        with warnings.catch_warnings():
            warnings.simplefilter("error", CryptographyDeprecationWarning)
            certificate = x509.load_der_x509_certificate(der)
            _read_all(certificate)
    except _MALFORMED as error:
        raise ValueError(f"not a certificate that can be read: {printable(str(error))[:200]}") from error
    return certificate


def parse_roots(data: bytes) -> list[x509.Certificate]:
    """The certificates of PEM text. Raises SignerUntrusted where it holds none."""
    try:
        return [load_certificate(each.public_bytes(Encoding.DER)) for each in x509.load_pem_x509_certificates(data)]
    except _MALFORMED as error:
        raise SignerUntrusted(f"the trusted root is no certificate in PEM: {printable(str(error))[:200]}") from None


def require_signing_leaf(leaf: x509.Certificate, at: datetime) -> None:
    """Return if `leaf` may sign models at that time (aware). Raises SignerUntrusted, which says why not."""
    name = f"the signing certificate ({_subject(leaf)})"
    _require_valid(leaf, at, name)
    usage = _extension(leaf, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        raise SignerUntrusted(f"{name} has no keyUsage digitalSignature")
    purposes = _extension(leaf, x509.ExtendedKeyUsage)
    if purposes is None or ExtendedKeyUsageOID.CODE_SIGNING not in purposes:
        raise SignerUntrusted(f"{name} has no extendedKeyUsage codeSigning")
    constraints = _extension(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise SignerUntrusted(f"{name} is a certificate authority's, which signs certificates and no models")


def verify_chain(
    chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], at: datetime | None = None
) -> ec.EllipticCurvePublicKey:
    """The leaf's key, if `chain` (leaf first) leads to one of `roots` and the leaf may sign models.

    `at` is the time of judgement (aware), now by default. Raises SignerUntrusted.
    """
    moment = at or datetime.now(UTC)
    leaf = chain[0]
    require_signing_leaf(leaf, moment)
    builder = (
        PolicyBuilder()
        .store(Store(list(roots)))
        .time(moment)
        .max_chain_depth(MAX_CHAIN_DEPTH)
        .extension_policies(ca_policy=_authority_policy(), ee_policy=ExtensionPolicy.permit_all())
    )
    try:
        builder.build_client_verifier().verify(leaf, list(chain[1:]))
    except (VerificationError, ValueError) as error:
        for authority in (*chain[1:], *roots):
            _require_valid(authority, moment, f"the certificate of the authority ({_subject(authority)})")
        trusted = ", ".join(_subject(root) for root in roots)
        raise SignerUntrusted(
            f"the signing certificate ({_subject(leaf)}) does not lead to the trusted root ({trusted}): {error}"
        ) from error
    return require_curve(leaf.public_key(), f"the signing certificate ({_subject(leaf)})")


def require_curve(key: object, what: str) -> ec.EllipticCurvePublicKey:
    """The key, if it is one that signs models. Raises SignerUntrusted."""
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in CURVES:
        return key
    kind = f"on the curve {key.curve.name}" if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
    raise SignerUntrusted(
        f"{what} is a key ({kind}) that OMS verifiers do not accept: models are signed with P-256, P-384 or P-521"
    )


def _authority_policy() -> ExtensionPolicy:
    """What is asked of every CA on the path, the trusted one included."""
    return (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
        .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs_certificates)
        .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _issues_code_signing)
    )


def _signs_certificates(_policy: Policy, _certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("an authority's keyUsage lacks keyCertSign")


def _issues_code_signing(
    _policy: Policy, _certificate: x509.Certificate, purposes: x509.ExtendedKeyUsage | None
) -> None:
    allowed = {ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
    if purposes is not None and allowed.isdisjoint(purposes):
        raise ValueError("an authority's extendedKeyUsage lacks codeSigning")


def _read_all(certificate: x509.Certificate) -> None:
    certificate.public_key()
    for name in (certificate.subject, certificate.issuer):
        name.rfc4514_string()
    _ = (certificate.extensions, certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    _ = (certificate.serial_number, certificate.signature_algorithm_oid)


def _require_valid(certificate: x509.Certificate, at: datetime, name: str) -> None:
    if at < certificate.not_valid_before_utc:
        raise SignerUntrusted(f"{name} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC")
    if at > certificate.not_valid_after_utc:
        raise SignerUntrusted(f"{name} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC")


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _subject(certificate: x509.Certificate) -> str:
    return printable(certificate.subject.rfc4514_string()) or "no name"
