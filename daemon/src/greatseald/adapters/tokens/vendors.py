"""What differs between vendors' modules, in one place.

A row is chosen by what the token says of itself. Modules without a row are taken to follow the
specification, which is right for SoftHSM, p11-kit, OpenSC and most network HSMs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_DER_SEQUENCE: Final = 0x30


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


def ecdsa_to_der(signature: bytes, coordinate_bytes: int) -> bytes | None:
    """The DER form of what C_Sign gave for CKM_ECDSA, None if it cannot be a signature on that curve.

    The specification wants r ‖ s, each as long as the curve's order; modules that strip leading
    zeroes give two shorter halves, and some give DER already.
    """
    length = len(signature)
    if length > 2 * coordinate_bytes or length % 2:
        return signature if _is_der(signature, coordinate_bytes) else None
    if length == 0:
        return None
    half = length // 2
    r, s = signature[:half].lstrip(b"\0") or b"\0", signature[half:].lstrip(b"\0") or b"\0"
    if r[0] & 0x80:
        r = b"\0" + r
    if s[0] & 0x80:
        s = b"\0" + s
    # P-256 and P-384 stay under 128 bytes of content, so every length is one byte.
    return bytes((_DER_SEQUENCE, len(r) + len(s) + 4, 2, len(r))) + r + bytes((2, len(s))) + s


def _is_der(signature: bytes, coordinate_bytes: int) -> bool:
    """Whether this is SEQUENCE { INTEGER, INTEGER } with integers of the curve's size."""
    if len(signature) < 8 or signature[0] != _DER_SEQUENCE or signature[1] != len(signature) - 2:
        return False
    rest = signature[2:]
    for _ in range(2):
        if len(rest) < 2 or rest[0] != 2 or not 0 < rest[1] <= coordinate_bytes + 1:
            return False
        rest = rest[2 + rest[1] :]
    return not rest
