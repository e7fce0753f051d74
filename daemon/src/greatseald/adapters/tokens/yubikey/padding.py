"""What a YubiKey's raw RSA is given to sign: it has no padding of its own (RFC 8017, section 9).

yubikit makes and throws away an RSA key for each signature to have its padding computed, which
takes seconds at 4096 bits.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

# DigestInfo of RFC 8017 section 9.2, before the digest.
_DIGEST_INFO: Final = {
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}


def pkcs1(digest: bytes, hash_name: str, modulus_bits: int) -> bytes:
    """EMSA-PKCS1-v1_5 of a digest (section 9.2), as long as the modulus."""
    info = _DIGEST_INFO[hash_name] + digest
    return b"\x00\x01" + b"\xff" * (modulus_bits // 8 - len(info) - 3) + b"\x00" + info


def pss(digest: bytes, hash_name: str, modulus_bits: int) -> bytes:
    """EMSA-PSS of a digest (section 9.1.1): MGF1 with the same hash, a random salt as long as the digest."""
    size = len(digest)
    encoded_bits = modulus_bits - 1
    length = (encoded_bits + 7) // 8
    salt = secrets.token_bytes(size)
    h = hashlib.new(hash_name, bytes(8) + digest + salt).digest()
    block = bytes(length - 2 * size - 2) + b"\x01" + salt
    mask = _mgf1(h, hash_name, len(block))
    masked = bytearray(a ^ b for a, b in zip(block, mask, strict=True))
    masked[0] &= 0xFF >> (8 * length - encoded_bits)
    return (bytes(masked) + h + b"\xbc").rjust(modulus_bits // 8, b"\x00")


def _mgf1(seed: bytes, hash_name: str, length: int) -> bytes:
    """MGF1 (appendix B.2.1)."""
    blocks = range(-(-length // hashlib.new(hash_name).digest_size))
    return b"".join(hashlib.new(hash_name, seed + n.to_bytes(4, "big")).digest() for n in blocks)[:length]
