"""Signatures of the algorithms of `greatseal.algorithms`, verified and nothing more.

The daemon checks with this module what its tokens return, before anything is released; the client
checks with it what it receives. All algorithms but Ed25519 sign *digests* (prehashed): who has a
message hashes it first. Ed25519 signs the message itself. All failures raise; nothing returns False.

    key = load_public_key(pem)                                   # PEM or DER SubjectPublicKeyInfo
    verify_digest(key, Algorithm.ECDSA_P256_SHA256, digest, signature)
    verify_message(key, Algorithm.ED25519, message, signature)   # any algorithm

ECDSA is malleable: two different signatures may verify for one digest. Compare (key, digest), never
signature bytes.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from greatseal.algorithms import RSA_MODULUS_BITS, Algorithm
from greatseal.verification import PublicKeyInvalid, SignatureInvalid

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

MAX_PUBLIC_KEY_BYTES: Final = 16 * 1024
"""Longest PEM or DER that `load_public_key` reads, in bytes."""

_CURVES: Final = {"secp256r1": "p256", "secp384r1": "p384", "secp521r1": "p521"}
_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


def _parameters(algorithm: Algorithm) -> tuple[Any, ...]:
    """What cryptography's `verify` wants after signature and data."""
    if algorithm.is_pure:
        return ()
    digest = Prehashed(_HASHES[algorithm.hash_name])
    if algorithm.is_ecdsa:
        return (ec.ECDSA(digest),)
    if algorithm.value.startswith("rsa-pss-"):
        mask = padding.MGF1(_HASHES[algorithm.hash_name])
        return padding.PSS(mgf=mask, salt_length=algorithm.digest_size), digest
    return padding.PKCS1v15(), digest


def load_public_key(data: bytes) -> PublicKey:
    """Read an EC, RSA or Ed25519 public key from SubjectPublicKeyInfo, as PEM text or DER.

    Only the curves P-256, P-384 and P-521 and RSA moduli of 2048 to 4096 bits are keys here.

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
    if not isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey, ed25519.Ed25519PublicKey)):
        message = (
            f"a public key of the kind {type(key).__name__} is not supported: "
            "EC (P-256, P-384, P-521), RSA and Ed25519 are"
        )
        raise PublicKeyInvalid(message)
    algorithms_of(key)
    return key


def algorithms_of(public_key: PublicKey) -> tuple[Algorithm, ...]:
    """Return the algorithms that this key fits, the usual one first.

    Raises:
        PublicKeyInvalid: there is none.
    """
    family = _family(public_key)
    return tuple(algorithm for algorithm in Algorithm if algorithm.family == family)


def _family(public_key: PublicKey) -> str:
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return "ed25519"
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        family = _CURVES.get(public_key.curve.name)
        if family is None:
            message = f"the curve {public_key.curve.name} is not supported: P-256, P-384 and P-521 are"
            raise PublicKeyInvalid(message)
        return family
    smallest, largest = RSA_MODULUS_BITS
    if not smallest <= public_key.key_size <= largest:
        message = f"an RSA modulus of {public_key.key_size} bits is not supported: {smallest} to {largest} are"
        raise PublicKeyInvalid(message)
    return "rsa"


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
        self._size = None if algorithm.is_pure else algorithm.digest_size
        self._parameters = _parameters(algorithm)

    def verify(self, signed: bytes, signature: bytes) -> None:
        """Verify `signature` over `signed`: the digest, or of Ed25519 the message itself.

        Raises:
            SignatureInvalid: the digest has another length, or the signature is not by the key over it.
        """
        if self._size is not None and len(signed) != self._size:
            message = f"{self._algorithm.value} signs a digest of {self._size} bytes, and this one has {len(signed)}"
            raise SignatureInvalid(message)
        try:
            self._key.verify(signature, signed, *self._parameters)
        except InvalidSignature as error:
            message = f"the {self._algorithm.value} signature is not by this key over this digest"
            raise SignatureInvalid(message) from error


def verify_digest(public_key: PublicKey, algorithm: Algorithm, digest: bytes, signature: bytes) -> None:
    """Verify that `signature` is by `public_key` over `digest`.

    `digest` is exactly `algorithm.digest_size` bytes; `signature` is DER for ECDSA (strict, so a
    different encoding of the same numbers fails) and as long as the modulus for RSA. PSS has a salt
    as long as the digest and MGF1 with the same hash.

    Raises:
        PublicKeyInvalid: the key does not fit the algorithm.
        SignatureInvalid: the digest has another length, the signature is not by the key over it, or the
            algorithm is Ed25519, which signs no digests.
    """
    if algorithm.is_pure:
        message = f"{algorithm.value} signs whole messages: a digest is not enough to verify its signature"
        raise SignatureInvalid(message)
    Verifier(public_key, algorithm).verify(digest, signature)


def verify_message(public_key: PublicKey, algorithm: Algorithm, message: bytes, signature: bytes) -> None:
    """Verify that `signature` is by `public_key` over `message`, hashed as the algorithm wants it.

    Raises:
        PublicKeyInvalid: the key does not fit the algorithm.
        SignatureInvalid: the signature is not by the key over the message.
    """
    signed = message if algorithm.is_pure else hashlib.new(algorithm.hash_name, message).digest()
    Verifier(public_key, algorithm).verify(signed, signature)
