"""DSSE, the Dead Simple Signing Envelope v1.0: what is signed, and its JSON form.

What a DSSE signature is over is the pre-authentication encoding (PAE) of payload type and payload,
never the payload itself:

    digest = hashlib.sha256(pae("application/vnd.in-toto+json", payload)).digest()

Source: secure-systems-lab/dsse, protocol.md and envelope.md.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, Final

from greatseal.strictjson import JSONInvalid, decode
from greatseal.verification import EnvelopeInvalid

IN_TOTO_PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"

MAX_ENVELOPE_BYTES: Final = 64 * 1024 * 1024
MAX_SIGNATURES: Final = 16


def pae(payload_type: str, payload: bytes) -> bytes:
    """The pre-authentication encoding: `DSSEv1 <len> <type> <len> <payload>`, lengths in bytes, decimal."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True, slots=True)
class EnvelopeSignature:
    """A signature in an envelope: its raw bytes and the unauthenticated hint which key made it."""

    signature: bytes
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload with its type and at least one signature over their PAE."""

    payload_type: str
    payload: bytes
    signatures: tuple[EnvelopeSignature, ...]

    def signed_bytes(self) -> bytes:
        """The bytes that every signature is over."""
        return pae(self.payload_type, self.payload)

    def to_dict(self) -> dict[str, Any]:
        """The envelope as a JSON object: standard, padded base64."""
        return {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": self.payload_type,
            "signatures": [
                {"sig": base64.b64encode(each.signature).decode()} | ({"keyid": each.key_id} if each.key_id else {})
                for each in self.signatures
            ],
        }

    def to_json(self) -> bytes:
        """The envelope as compact UTF-8 JSON."""
        return json.dumps(self.to_dict(), separators=(",", ":"), ensure_ascii=False).encode()


def envelope_from_json(data: bytes) -> Envelope:
    """Read an envelope from UTF-8 JSON.

    Raises:
        EnvelopeInvalid: it is over 64 MiB, malformed, or has no signature.
    """
    try:
        value = decode(data, max_bytes=MAX_ENVELOPE_BYTES, what="the DSSE envelope")
    except JSONInvalid as error:
        raise EnvelopeInvalid(error.message) from error
    return envelope_from_dict(value)


def envelope_from_dict(value: object) -> Envelope:
    """Read an envelope from a decoded JSON object, as a Sigstore bundle holds one.

    Raises:
        EnvelopeInvalid: a field is missing or of the wrong kind, or there is no signature.
    """
    if not isinstance(value, dict):
        message = "a DSSE envelope is a JSON object"
        raise EnvelopeInvalid(message)
    payload_type = value.get("payloadType")
    if not isinstance(payload_type, str) or not payload_type or not _is_utf8(payload_type):
        message = "payloadType of the DSSE envelope is not a text"
        raise EnvelopeInvalid(message)
    signatures = value.get("signatures")
    if not isinstance(signatures, list) or not 1 <= len(signatures) <= MAX_SIGNATURES:
        message = f"a DSSE envelope has 1 to {MAX_SIGNATURES} signatures"
        raise EnvelopeInvalid(message)
    return Envelope(
        payload_type,
        _decode(value.get("payload"), "payload"),
        tuple(_signature(each, f"signatures[{position}]") for position, each in enumerate(signatures)),
    )


def _signature(value: object, where: str) -> EnvelopeSignature:
    if not isinstance(value, dict):
        message = f"{where} of the DSSE envelope is not an object"
        raise EnvelopeInvalid(message)
    key_id = value.get("keyid", "")
    if not isinstance(key_id, str):
        message = f"{where}.keyid of the DSSE envelope is not a text"
        raise EnvelopeInvalid(message)
    return EnvelopeSignature(_decode(value.get("sig"), f"{where}.sig"), key_id)


def _decode(value: object, where: str) -> bytes:
    # The envelope's specification lets producers choose the standard or the URL-safe alphabet.
    if not isinstance(value, str):
        message = f"{where} of the DSSE envelope is not base64 text"
        raise EnvelopeInvalid(message)
    try:
        text = value.encode("ascii")
        return base64.b64decode(text.translate(_FROM_URL_SAFE), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        message = f"{where} of the DSSE envelope is not base64"
        raise EnvelopeInvalid(message) from error


_FROM_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
