"""What differs between vendors' modules, in one place.

A row is chosen by what the token says of itself. Modules without a row are taken to follow the
specification, which is right for SoftHSM, p11-kit, OpenSC and most network HSMs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_DER_SEQUENCE: Final = 0x30
_MOST_STRIPPED: Final = 4
"""By how many bytes the halves of a signature without leading zeroes differ: more happens once in 2^40."""


@dataclass(frozen=True, slots=True)
class VendorProfile:
    """How a vendor's tokens deviate.

    `keep_alive`: seconds after which an idle session is used, under half of the vendor's idle
    limit. `max_sessions`: sessions that the device shares among all its users, minus a few.
    """

    keep_alive: float = 15.0
    max_sessions: int = 64


_PROFILES: Final[tuple[tuple[str, str, VendorProfile], ...]] = (
    # (beginning of the manufacturer, beginning of the model, profile)
    ("Yubico", "YubiHSM", VendorProfile(keep_alive=12.0, max_sessions=12)),  # 30 s idle, 16 sessions in all
)


def profile_of(manufacturer: str, model: str) -> VendorProfile:
    """The profile of the token that names itself so."""
    for maker, kind, profile in _PROFILES:
        if manufacturer.startswith(maker) and model.startswith(kind):
            return profile
    return VendorProfile()


def decode_ec_point(data: bytes, coordinate_bytes: int) -> bytes | None:
    """The encoded point (0x04 ‖ x ‖ y, or compressed) in a CKA_EC_POINT, None where there is none.

    The specification wants a DER OCTET STRING around the point. Modules also give the bare point,
    a BIT STRING, a wrong length, or the two coordinates alone. The caller checks that the point is
    on its curve, which a wrong guess here would fail.
    """
    uncompressed = 1 + 2 * coordinate_bytes
    if len(data) == 2 * coordinate_bytes:
        return b"\x04" + data
    if len(data) >= uncompressed and data[-uncompressed] == 4:
        return data[-uncompressed:]
    compressed = 1 + coordinate_bytes
    if len(data) >= compressed and data[-compressed] in (2, 3):
        return data[-compressed:]
    return None


def decode_edwards_point(data: bytes) -> bytes | None:
    """The 32 bytes of an Ed25519 public key in a CKA_EC_POINT, None where there are none.

    The specification wants a DER OCTET STRING around them; modules also give them bare, as a BIT STRING, or
    as a whole SubjectPublicKeyInfo, in which they stand last. Whether a guess was right shows at the first
    signature, which is verified before it is released.
    """
    return data[-32:] if len(data) in {32, 34, 35, 44} else None


def ecdsa_candidates(signature: bytes, coordinate_bytes: int) -> tuple[bytes, ...]:
    """The DER forms that what C_Sign gave for CKM_ECDSA can mean, none if it cannot be a signature on that curve.

    The specification wants r ‖ s, each as long as the curve's order, which has one meaning; so has the DER
    that some modules give. Modules that strip leading zeroes leave open where r ends: the caller takes
    the one that verifies, the halves of equal length first.
    """
    length = len(signature)
    if length == 2 * coordinate_bytes:
        return (_der(signature[:coordinate_bytes], signature[coordinate_bytes:]),)
    if _is_der(signature, coordinate_bytes):
        return (signature,)
    if not 2 <= length < 2 * coordinate_bytes:
        return ()
    half = length // 2
    near = range(max(1, length - coordinate_bytes, half - _MOST_STRIPPED), min(length, coordinate_bytes + 1))
    ends = sorted((end for end in near if end <= half + _MOST_STRIPPED), key=lambda end: abs(2 * end - length))
    return tuple(_der(signature[:end], signature[end:]) for end in ends)


def _der(r: bytes, s: bytes) -> bytes:
    r, s = r.lstrip(b"\0") or b"\0", s.lstrip(b"\0") or b"\0"
    if r[0] & 0x80:
        r = b"\0" + r
    if s[0] & 0x80:
        s = b"\0" + s
    content = bytes((2, len(r))) + r + bytes((2, len(s))) + s
    # Only P-521 goes beyond 127 bytes of content, whose length then takes two bytes.
    length = len(content)
    return bytes((_DER_SEQUENCE, length) if length < 128 else (_DER_SEQUENCE, 0x81, length)) + content


def _is_der(signature: bytes, coordinate_bytes: int) -> bool:
    """Whether this is SEQUENCE { INTEGER, INTEGER } with integers of the curve's size."""
    if len(signature) < 8 or signature[0] != _DER_SEQUENCE:
        return False
    head = 3 if signature[1] == 0x81 else 2
    length, rest = signature[head - 1], signature[head:]
    if length != len(rest) or (length >= 128) != (head == 3):
        return False
    for _ in range(2):
        if len(rest) < 2 or rest[0] != 2 or not 0 < rest[1] <= coordinate_bytes + 1:
            return False
        rest = rest[2 + rest[1] :]
    return not rest
