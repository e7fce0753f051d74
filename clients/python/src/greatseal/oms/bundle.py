"""The signature file of a model: a Sigstore bundle v0.3 with one DSSE envelope and one signature.

Two ways to say who signed: `publicKey` names the key by the SHA-256 of its PEM text (the file does
not hold the key), `x509CertificateChain` holds the certificates, leaf first, without the root. The
DSSE `keyid` repeats the key's name: that satisfies the Sigstore schema, the OMS schema and every
verifier alike.

What is read is bounded and strict: at most 64 MiB, no name twice in one object, exactly one
signature. A parsed bundle is *not* verified; `greatseal.oms.verify` does that.
Sources: Sigstore bundle specification 0.3; OMS specification 1.0, section 4; DSSE 1.0.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from greatseal.dsse import Envelope, EnvelopeSignature, envelope_from_dict
from greatseal.oms.certificates import load_certificate
from greatseal.oms.errors import BundleInvalid
from greatseal.oms.method import Method
from greatseal.strictjson import JSONInvalid, decode
from greatseal.verification import EnvelopeInvalid

MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
MAX_BUNDLE_BYTES: Final = 64 * 1024 * 1024
"""About 400,000 files."""
MAX_CERTIFICATES: Final = 16
MAX_CERTIFICATE_BYTES: Final = 64 * 1024

_METHODS: Final = ("publicKey", "x509CertificateChain", "certificate")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A signature file's content, read and not yet verified."""

    payload_type: str
    payload: bytes
    signature: bytes
    key_hint: str
    """Hex SHA-256 of the signer's PEM text, or empty where the file does not say."""
    certificates: tuple[x509.Certificate, ...]
    """Leaf first; empty for the key method."""

    @property
    def method(self) -> Method:
        """How it says who signed."""
        return Method.CERTIFICATE if self.certificates else Method.KEY


def key_hint(key: PublicKeyTypes | CertificatePublicKeyTypes) -> str:
    """The name of a key in a bundle: hex SHA-256 of its SubjectPublicKeyInfo as PEM, last newline included."""
    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def write_bundle(
    payload_type: str,
    payload: bytes,
    signature: bytes,
    key: PublicKeyTypes | CertificatePublicKeyTypes,
    certificates: Sequence[x509.Certificate] = (),
) -> bytes:
    """The signature file: one line of JSON.

    Args:
        payload_type: the DSSE payload type.
        payload: the statement's exact bytes.
        signature: DER for ECDSA.
        key: the signer's public key.
        certificates: leaf first, no root; none for the key method.
    """
    hint = key_hint(key)
    material: dict[str, object] = {"publicKey": {"hint": hint}}
    if certificates:
        material = {
            "x509CertificateChain": {
                "certificates": [{"rawBytes": _base64(each.public_bytes(Encoding.DER))} for each in certificates]
            }
        }
    envelope = Envelope(payload_type, payload, (EnvelopeSignature(signature, hint),))
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {**material, "tlogEntries": []},
        "dsseEnvelope": envelope.to_dict(),
    }
    return json.dumps(bundle, separators=(",", ":"), ensure_ascii=False).encode()


def read_bundle(path: Path) -> Bundle:
    """Read and parse a signature file. Raises BundleInvalid, also where it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise BundleInvalid(f"the signature file {path} cannot be read: {error.strerror}") from None
    try:
        return parse_bundle(data)
    except BundleInvalid as error:
        raise BundleInvalid(f"{path}: {error.message}") from error


def parse_bundle(data: bytes) -> Bundle:
    """Parse a signature file's bytes. Raises BundleInvalid."""
    try:
        document = _object(decode(data, max_bytes=MAX_BUNDLE_BYTES, what="the signature file"), "the signature file")
    except JSONInvalid as error:
        raise BundleInvalid(error.message) from error
    media_type = document.get("mediaType")
    if media_type != MEDIA_TYPE:
        raise BundleInvalid(f"mediaType is {media_type!r:.100}; a model's signature file has {MEDIA_TYPE}")
    if "dsseEnvelope" not in document or document.get("messageSignature") is not None:
        raise BundleInvalid("the bundle holds no DSSE envelope, or more than it: it is not a model's signature")
    try:
        envelope = envelope_from_dict(document["dsseEnvelope"])
    except EnvelopeInvalid as error:
        raise BundleInvalid(str(error)) from error
    if len(envelope.signatures) != 1:
        raise BundleInvalid(
            f"a model's signature file has exactly one signature, and this one has {len(envelope.signatures)}"
        )
    hint, certificates = _signer(_object(document.get("verificationMaterial"), "verificationMaterial"))
    return Bundle(envelope.payload_type, envelope.payload, envelope.signatures[0].signature, hint, certificates)


def is_bundle(data: bytes) -> bool:
    """Whether these bytes are a signature file that may be replaced by a newer one."""
    try:
        parse_bundle(data)
    except BundleInvalid:
        return False
    return True


def _signer(material: dict[str, object]) -> tuple[str, tuple[x509.Certificate, ...]]:
    named = [method for method in _METHODS if material.get(method) is not None]
    if named == ["publicKey"]:
        hint = _object(material["publicKey"], "publicKey").get("hint")
        if hint is not None and not isinstance(hint, str):
            raise BundleInvalid("publicKey.hint is not text")
        return hint or "", ()
    if named == ["x509CertificateChain"]:
        return "", _certificates(_object(material["x509CertificateChain"], "x509CertificateChain").get("certificates"))
    if named == ["certificate"]:
        raise BundleInvalid(
            "the bundle was signed keyless, through a Sigstore instance: verify it with `model_signing verify sigstore`"
        )
    raise BundleInvalid("verificationMaterial names neither a public key nor a certificate chain, or both")


def _certificates(value: object) -> tuple[x509.Certificate, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CERTIFICATES:
        raise BundleInvalid(f"a certificate chain has 1 to {MAX_CERTIFICATES} certificates")
    return tuple(_certificate(each, f"certificate {position}") for position, each in enumerate(value, 1))


def _certificate(value: object, where: str) -> x509.Certificate:
    raw = _object(value, where).get("rawBytes")
    if not isinstance(raw, str) or len(raw) > 2 * MAX_CERTIFICATE_BYTES:
        raise BundleInvalid(f"{where} has no rawBytes, or too many")
    try:
        return load_certificate(base64.b64decode(raw, validate=True))
    except binascii.Error:
        raise BundleInvalid(f"{where} is not base64") from None
    except ValueError as error:
        raise BundleInvalid(f"{where}: {error}") from error


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise BundleInvalid(f"{where} is not a JSON object")
    return value


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
