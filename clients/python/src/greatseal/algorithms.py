"""The algorithms that Greatseal signs with, as one table.

An `Algorithm` is the API's word for how a key signs; the PKCS#11 mechanism behind it is the token
adapter's business. Configuration, log entries and receipts spell it as `Algorithm.value`, the wire
as `greatseal.v1.Algorithm`, whose names are the same in upper case with underscores.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Algorithm(str, Enum):
    """How a key signs: all but Ed25519 a digest, Ed25519 the message itself."""

    ECDSA_P256_SHA256 = "ecdsa-p256-sha256"
    ECDSA_P384_SHA384 = "ecdsa-p384-sha384"
    ECDSA_P521_SHA512 = "ecdsa-p521-sha512"
    RSA_PKCS1_SHA256 = "rsa-pkcs1-sha256"
    RSA_PKCS1_SHA384 = "rsa-pkcs1-sha384"
    RSA_PKCS1_SHA512 = "rsa-pkcs1-sha512"
    RSA_PSS_SHA256 = "rsa-pss-sha256"
    RSA_PSS_SHA384 = "rsa-pss-sha384"
    RSA_PSS_SHA512 = "rsa-pss-sha512"
    ED25519 = "ed25519"

    hash_name: str
    """The digest's hash as hashlib names it. Of Ed25519 `sha256`: what the log names a message by."""
    digest_size: int
    """Exact length in bytes of that digest: 32, 48 or 64."""
    family: str
    """The kind of key that it takes: `p256`, `p384`, `p521`, `rsa` or `ed25519`."""
    is_ecdsa: bool
    """Whether signatures are DER-encoded ECDSA."""
    is_pure: bool
    """Whether the message itself is signed, not a digest of it (RFC 8032, PureEdDSA)."""

    def __init__(self, value: str) -> None:
        """Read the facts off the name once: they are asked for with every signature."""
        self.is_pure = value == "ed25519"
        self.hash_name = "sha256" if self.is_pure else value.rsplit("-", 1)[1]
        self.digest_size = {"sha256": 32, "sha384": 48, "sha512": 64}[self.hash_name]
        self.is_ecdsa = value.startswith("ecdsa-")
        self.family = value.split("-")[1] if self.is_ecdsa else value.split("-", 1)[0]


RSA_MODULUS_BITS: Final = (2048, 4096)
"""Smallest and largest RSA modulus accepted, in bits."""
