"""The client certificate of an mTLS connection as a `Caller`.

The certificate has passed the TLS handshake, so its chain and times were good when the connection
began. What is decided here is who it names: the one SPIFFE id; else the one DNS name; else the one
e-mail address; else the subject. A certificate that names two of the kind that counts names nobody.

DNS names and e-mail addresses are held to their syntax, so that no certificate can spell a SPIFFE id
in a field that a CA checks less strictly.

    caller = CertificateReader(time.time).caller(pem)
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from greatseald.domain.errors import IdentityInvalid
from greatseald.domain.identity import Caller

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CACHED: Final = 1024
MAX_PEM_BYTES: Final = 64 * 1024

# https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md, sections 2.1 to 2.3
_SPIFFE: Final = re.compile(r"spiffe://[a-z0-9._-]{1,255}(?:/[A-Za-z0-9._-]+)*")
_DOT_SEGMENT: Final = re.compile(r"/\.{1,2}(?:/|$)")
_MAX_SPIFFE: Final = 2048
_DNS: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62}))*")
_EMAIL: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}")
_MAX_SUBJECT: Final = 2048


class CertificateReader:
    """Reads certificates, remembering the last thousand: a connection presents the same one at every call.

    Not safe for threads; the event loop alone calls it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[bytes, tuple[Caller, float]] = {}

    def caller(self, pem: bytes) -> Caller:
        """Return whom a PEM certificate names.

        Raises:
            IdentityInvalid: it names nobody, or more than one, cannot be parsed, or has expired since
                the connection began.
        """
        known = self._known.get(pem)
        if known is None:
            caller = read_caller(pem)
            known = (caller, caller.not_after.timestamp())
            if len(self._known) >= MAX_CACHED:
                del self._known[next(iter(self._known))]
            self._known[pem] = known
        caller, not_after = known
        if self._clock() > not_after:
            message = f"the client certificate (serial {caller.serial}) expired at {caller.not_after.isoformat()}: connect with a newer one"
            raise IdentityInvalid(message)
        return caller


def read_caller(pem: bytes) -> Caller:
    """Parse a PEM certificate and apply the rule of the module.

    Raises:
        IdentityInvalid: it names nobody, more than one, or cannot be parsed.
    """
    if len(pem) > MAX_PEM_BYTES:
        message = f"the client certificate is larger than {MAX_PEM_BYTES} bytes"
        raise IdentityInvalid(message)
    try:
        cert = x509.load_pem_x509_certificate(pem)
        identity = _identity(cert)
        issuer = cert.issuer.rfc4514_string()
        spki = cert.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        der = cert.public_bytes(Encoding.DER)
    except IdentityInvalid:
        raise
    except Exception as error:  # whatever a hostile certificate makes the parser raise
        message = "the client certificate cannot be parsed"
        raise IdentityInvalid(message) from error
    return Caller(
        id=identity,
        cert_sha256=hashlib.sha256(der).hexdigest(),
        serial=format(cert.serial_number, "x"),
        issuer=issuer,
        spki_sha256=hashlib.sha256(spki).hexdigest(),
        not_after=cert.not_valid_after_utc,
    )


def _identity(cert: x509.Certificate) -> str:
    try:
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return _subject(cert)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if any(uri.lower().startswith("spiffe:") for uri in uris):
        return _spiffe(uris)
    dns = names.get_values_for_type(x509.DNSName)
    if dns:
        return _only(dns, "DNS name", _DNS)
    emails = names.get_values_for_type(x509.RFC822Name)
    if emails:
        return _only(emails, "e-mail address", _EMAIL)
    return _subject(cert)


def _spiffe(uris: list[str]) -> str:
    if len(uris) != 1:
        message = f"the client certificate has {len(uris)} URI names, and a SPIFFE certificate has exactly one"
        raise IdentityInvalid(message)
    uri = uris[0]
    if len(uri) > _MAX_SPIFFE or _SPIFFE.fullmatch(uri) is None or _DOT_SEGMENT.search(uri) is not None:
        message = f"the client certificate's URI name {uri[:80]!r} is no SPIFFE id"
        raise IdentityInvalid(message)
    return uri


def _only(values: list[str], kind: str, syntax: re.Pattern[str]) -> str:
    if len(values) != 1:
        message = (
            f"the client certificate has {len(values)} values of the kind {kind}, so that it is not clear whom it names"
        )
        raise IdentityInvalid(message)
    if syntax.fullmatch(values[0]) is None:
        message = f"the client certificate's {kind} {values[0][:80]!r} is malformed"
        raise IdentityInvalid(message)
    return values[0]


def _subject(cert: x509.Certificate) -> str:
    text = cert.subject.rfc4514_string()
    if not text or len(text) > _MAX_SUBJECT:
        message = "the client certificate names nobody: it has no subject alternative name and no usable subject"
        raise IdentityInvalid(message)
    return text
