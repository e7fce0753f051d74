"""Signatures over digests: the four algorithms of `greatseal.algorithms`, verified and nothing more.

The daemon checks with this module what its tokens return, before anything is released; the client
checks with it what it receives. Everything works on *digests* (prehashed): who has a message hashes
it first. All failures raise; nothing returns False.

    key = load_public_key(pem)                                   # PEM or DER SubjectPublicKeyInfo
    verify_digest(key, Algorithm.ECDSA_P256_SHA256, digest, signature)

ECDSA is malleable: two different signatures may verify for one digest. Compare (key, digest), never
signature bytes.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from greatseal.algorithms import RSA_MODULUS_BITS, Algorithm
from greatseal.verification import PublicKeyInvalid, SignatureInvalid

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

MAX_PUBLIC_KEY_BYTES: Final = 16 * 1024
"""Longest PEM or DER that `load_public_key` reads, in bytes."""

_CURVES: Final[dict[Algorithm, str]] = {
    Algorithm.ECDSA_P256_SHA256: "secp256r1",
    Algorithm.ECDSA_P384_SHA384: "secp384r1",
}
_SHA256: Final = Prehashed(hashes.SHA256())
_ECDSA: Final[dict[Algorithm, ec.ECDSA]] = {
    Algorithm.ECDSA_P256_SHA256: ec.ECDSA(_SHA256),
    Algorithm.ECDSA_P384_SHA384: ec.ECDSA(Prehashed(hashes.SHA384())),
}
_RSA: Final[dict[Algorithm, padding.AsymmetricPadding]] = {
    Algorithm.RSA_PKCS1_SHA256: padding.PKCS1v15(),
    Algorithm.RSA_PSS_SHA256: padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32),
}


def load_public_key(data: bytes) -> PublicKey:
    """Read an EC or RSA public key from SubjectPublicKeyInfo, as PEM text or DER.

    Only the curves P-256 and P-384 and RSA moduli of 2048 to 4096 bits are keys here.

    Raises:
        PublicKeyInvalid: it is anything else.
    """
    if len(data) > MAX_PUBLIC_KEY_BYTES:
        message = f"a public key of {len(data)} bytes is over the limit of {MAX_PUBLIC_KEY_BYTES}"
        raise PublicKeyInvalid(message)
    try:
        if b"-----BEGIN" in data:
            key = serialization.load_pem_public_key(data)
        else:
            key = serialization.load_der_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        message = f"not a public key (SubjectPublicKeyInfo, PEM or DER): {error}"
        raise PublicKeyInvalid(message) from error
    if not isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey)):
        message = f"a public key of the kind {type(key).__name__} is not supported: EC (P-256, P-384) and RSA are"
        raise PublicKeyInvalid(message)
    algorithms_of(key)
    return key


def algorithms_of(public_key: PublicKey) -> tuple[Algorithm, ...]:
    """Return the algorithms that this key fits, the usual one first.

    Raises:
        PublicKeyInvalid: there is none.
    """
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        fitting = tuple(algorithm for algorithm, curve in _CURVES.items() if curve == public_key.curve.name)
        if not fitting:
            message = f"the curve {public_key.curve.name} is not supported: P-256 and P-384 are"
            raise PublicKeyInvalid(message)
        return fitting
    smallest, largest = RSA_MODULUS_BITS
    if not smallest <= public_key.key_size <= largest:
        message = f"an RSA modulus of {public_key.key_size} bits is not supported: {smallest} to {largest} are"
        raise PublicKeyInvalid(message)
    return tuple(_RSA)


def check_key_fits(public_key: PublicKey, algorithm: Algorithm) -> None:
    """Return if `public_key` can verify signatures of `algorithm`.

    Raises:
        PublicKeyInvalid: it cannot: another kind of key, another curve, a modulus out of bounds.
    """
    fitting = algorithms_of(public_key)
    if algorithm not in fitting:
        names = ", ".join(each.value for each in fitting)
        message = f"the key does not fit {algorithm.value}: it is a key for {names}"
        raise PublicKeyInvalid(message)


def spki_der(public_key: PublicKey) -> bytes:
    """The key as DER SubjectPublicKeyInfo (RFC 5280, 4.1.2.7)."""
    return public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def spki_sha256(public_key: PublicKey | bytes) -> str:
    """SHA-256 of the key's DER SubjectPublicKeyInfo (or of such bytes), lower-case hexadecimal."""
    der = public_key if isinstance(public_key, bytes) else spki_der(public_key)
    return hashlib.sha256(der).hexdigest()


class Verifier:
    """Verifies signatures of one key and algorithm; what does not change from one to the next is settled once."""

    __slots__ = ("_algorithm", "_key", "_parameters", "_size")

    def __init__(self, public_key: PublicKey, algorithm: Algorithm) -> None:
        """Prepare.

        Raises:
            PublicKeyInvalid: the key does not fit the algorithm.
        """
        check_key_fits(public_key, algorithm)
        self._key: Any = public_key
        self._algorithm = algorithm
        self._size = algorithm.digest_size
        self._parameters: tuple[Any, ...] = (_ECDSA[algorithm],) if algorithm.is_ecdsa else (_RSA[algorithm], _SHA256)

    def verify(self, digest: bytes, signature: bytes) -> None:
        """As `verify_digest`.

        Raises:
            SignatureInvalid: the digest has another length, or the signature is not by the key over it.
        """
        if len(digest) != self._size:
            message = f"{self._algorithm.value} signs a digest of {self._size} bytes, and this one has {len(digest)}"
            raise SignatureInvalid(message)
        try:
            self._key.verify(signature, digest, *self._parameters)
        except InvalidSignature as error:
            message = f"the {self._algorithm.value} signature is not by this key over this digest"
            raise SignatureInvalid(message) from error


def verify_digest(public_key: PublicKey, algorithm: Algorithm, digest: bytes, signature: bytes) -> None:
    """Verify that `signature` is by `public_key` over `digest`.

    `digest` is exactly `algorithm.digest_size` bytes; `signature` is DER for ECDSA (strict, so a
    different encoding of the same numbers fails) and as long as the modulus for RSA. PSS has a salt
    of exactly 32 bytes and MGF1 with SHA-256.

    Raises:
        PublicKeyInvalid: the key does not fit the algorithm.
        SignatureInvalid: the digest has another length, or the signature is not by the key over it.
    """
    Verifier(public_key, algorithm).verify(digest, signature)
