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

    @property
    def hash_name(self) -> str:
        """The digest's hash as hashlib names it: `sha256` or `sha384`."""
        return self.value.rsplit("-", 1)[1]

    @property
    def digest_size(self) -> int:
        """Exact length in bytes of the digest that is signed: 32 or 48."""
        return _DIGEST_SIZES[self.hash_name]

    @property
    def is_ecdsa(self) -> bool:
        """Whether signatures are DER-encoded ECDSA."""
        return self.value.startswith("ecdsa-")


_DIGEST_SIZES: Final = {"sha256": 32, "sha384": 48}

RSA_MODULUS_BITS: Final = (2048, 4096)
"""Smallest and largest RSA modulus accepted, in bits."""
