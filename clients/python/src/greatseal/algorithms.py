"""The algorithms that Greatseal signs with, as one table.

An `Algorithm` is the API's word for how a key signs; the PKCS#11 mechanism behind it is the token
adapter's business. Configuration, log entries and receipts spell it as `Algorithm.value`, the wire
as `greatseal.v1.Algorithm`, whose names are the same in upper case with underscores.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Algorithm(str, Enum):
    """How a key signs a digest."""

    ECDSA_P256_SHA256 = "ecdsa-p256-sha256"
    ECDSA_P384_SHA384 = "ecdsa-p384-sha384"
    RSA_PKCS1_SHA256 = "rsa-pkcs1-sha256"
    RSA_PSS_SHA256 = "rsa-pss-sha256"

    hash_name: str
    """The digest's hash as hashlib names it: `sha256` or `sha384`."""
    digest_size: int
    """Exact length in bytes of the digest that is signed: 32 or 48."""
    is_ecdsa: bool
    """Whether signatures are DER-encoded ECDSA."""

    def __init__(self, value: str) -> None:
        """Read the facts off the name once: they are asked for with every signature."""
        self.hash_name = value.rsplit("-", 1)[1]
        self.digest_size = {"sha256": 32, "sha384": 48}[self.hash_name]
        self.is_ecdsa = value.startswith("ecdsa-")


RSA_MODULUS_BITS: Final = (2048, 4096)
"""Smallest and largest RSA modulus accepted, in bits."""
