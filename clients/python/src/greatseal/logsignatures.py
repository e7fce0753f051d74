"""Checking the signatures that a log holds, with the public keys that are at hand.

signatures = SignatureCheck([pem, ...])
check = LogCheck(origin, signatures=signatures)
signatures.checked, signatures.unchecked       # how many; by the SHA-256 of a key that was not given
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

from greatseal.algorithms import Algorithm
from greatseal.errors import VerificationFailed
from greatseal.signatures import PublicKey, Verifier, load_public_key, spki_sha256


class SignatureCheck:
    """Verifies signatures over their digests; those of Ed25519 are over messages that no log holds.

    Args:
        keys: public keys, PEM or DER.

    Attributes:
        checked: how many signatures verified.
        unchecked: how many were not looked at, by key (SHA-256 of its SubjectPublicKeyInfo) or algorithm.

    Raises:
        VerificationFailed: one of the keys is none.
    """

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._keys: dict[str, PublicKey] = {spki_sha256(key): key for key in map(load_public_key, keys)}
        self._verifiers: dict[tuple[str, str], Verifier] = {}
        self.checked = 0
        self.unchecked: dict[str, int] = {}

    def problem(self, spki: str, algorithm: str, digest: str, signature: str) -> str:
        """Say what is wrong with a signature (base64) over a digest (hexadecimal); nothing where it verifies."""
        known = {each.value: each for each in Algorithm}
        if spki not in self._keys or algorithm not in known or known[algorithm].is_pure:
            # Of Ed25519 the log has the digest of a message, and only the message would tell.
            name = spki if spki not in self._keys else algorithm
            if name in self.unchecked or len(self.unchecked) < 1000:
                self.unchecked[name] = self.unchecked.get(name, 0) + 1
            return ""
        try:
            verifier = self._verifiers.get((spki, algorithm))
            if verifier is None:
                verifier = self._verifiers[spki, algorithm] = Verifier(self._keys[spki], known[algorithm])
            verifier.verify(bytes.fromhex(digest), base64.b64decode(signature, validate=True))
        except (VerificationFailed, ValueError, binascii.Error) as error:
            return f"holds a signature that its key did not make: {error}"
        self.checked += 1
        return ""
