"""The elliptic curves that tokens sign on, as PKCS#11 and X.509 name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve. `parameters` is CKA_EC_PARAMS as its OID (DER), `spellings` the printable strings that
    modules have instead (PKCS#11 3.0, 2.3.10), `standard_name` cryptography's name for it.

    `coordinate_bytes` is the size of a coordinate in an ECDSA signature and half a point's; 0 for Ed25519.
    """

    name: str
    standard_name: str
    parameters: bytes
    coordinate_bytes: int
    spellings: tuple[str, ...]

    def is_meant_by(self, parameters: bytes) -> bool:
        """Whether a CKA_EC_PARAMS, an OID or a DER PrintableString, means this curve."""
        return parameters == self.parameters or parameters in {
            bytes((0x13, len(spelling))) + spelling.encode("ascii") for spelling in self.spellings
        }


P256: Final = Curve(
    "P-256", "secp256r1", bytes.fromhex("06082a8648ce3d030107"), 32, ("secp256r1", "prime256v1", "P-256")
)
P384: Final = Curve("P-384", "secp384r1", bytes.fromhex("06052b81040022"), 48, ("secp384r1", "P-384"))
P521: Final = Curve("P-521", "secp521r1", bytes.fromhex("06052b81040023"), 66, ("secp521r1", "P-521"))
ED25519: Final = Curve("Ed25519", "ed25519", bytes.fromhex("06032b6570"), 0, ("edwards25519", "Ed25519"))
CURVES: Final = (P256, P384, P521, ED25519)


def curve_of(parameters: bytes | None) -> Curve | None:
    """Return the curve that a CKA_EC_PARAMS means, None for another or none."""
    return next((curve for curve in CURVES if parameters and curve.is_meant_by(parameters)), None)


def curve_named(standard_name: str) -> Curve | None:
    """Return the curve with cryptography's name, such as `secp256r1` or `ed25519`."""
    return next((curve for curve in CURVES if curve.standard_name == standard_name), None)
