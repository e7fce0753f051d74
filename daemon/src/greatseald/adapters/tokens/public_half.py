"""The public half of a private key in a PKCS#11 token, wherever the module keeps it.

In the private key itself, in the SubjectPublicKeyInfo stored with it, in a public key or in a
certificate with its id or label: tokens have at least one of them, and which one differs between vendors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import Attribute, KeyType, ObjectClass

from greatseal.algorithms import RSA_MODULUS_BITS
from greatseal.signatures import spki_der
from greatseald.adapters.tokens.cryptoki import CKA_PUBLIC_KEY_INFO, Cryptoki
from greatseald.adapters.tokens.curves import ED25519, Curve, curve_named, curve_of
from greatseald.adapters.tokens.device import KeyUnusable
from greatseald.adapters.tokens.objects import attribute, belongs
from greatseald.adapters.tokens.vendors import decode_ec_point, decode_edwards_point

_EC: Final[dict[str, ec.EllipticCurve]] = {
    curve.name: curve for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())
}


class PublicHalf(NamedTuple):
    """`kind` is P-256, P-384, P-521, RSA or Ed25519, `family` that of its algorithms, `spki` DER.

    `coordinate_bytes` is the size of each half of an ECDSA signature, 0 for other keys.
    """

    kind: str
    family: str
    spki: bytes
    coordinate_bytes: int = 0


class _Candidate(NamedTuple):
    """An object whose attributes may have the public key, or else a whole key."""

    item: Any = None
    key: Any = None


def find_public_half(cryptoki: Cryptoki, opened: Any, reference: str, key: Any) -> PublicHalf:
    """Find the public half of the private key object `key`, which `reference` named.

    Raises:
        KeyUnusable: the key is of a kind, size or curve that is not supported, or no public half is stored with it.
        pkcs11.PKCS11Error: the token does not answer.
    """
    kind = attribute(key, Attribute.KEY_TYPE)
    candidates = partial(_candidates, cryptoki, opened, key, kind)
    if kind == KeyType.RSA:
        return PublicHalf("RSA", "rsa", spki_der(_rsa_key(candidates(), reference)))
    if kind not in {KeyType.EC, KeyType.EC_EDWARDS}:
        message = (
            f"the private key of {reference} is of type {getattr(kind, 'name', kind)}: "
            "EC, Ed25519 and RSA keys are supported"
        )
        raise KeyUnusable(message)
    curve = _curve(candidates(), reference, kind)
    if curve is ED25519:
        return PublicHalf(curve.name, "ed25519", spki_der(_edwards_key(candidates(), reference)))
    family = curve.name.replace("-", "").lower()
    return PublicHalf(curve.name, family, spki_der(_ec_key(candidates(), reference, curve)), curve.coordinate_bytes)


def _candidates(cryptoki: Cryptoki, opened: Any, key: Any, kind: KeyType) -> Iterator[_Candidate]:
    """Where the public half may be found, the likeliest first.

    The private key itself, the SubjectPublicKeyInfo stored with it, then public keys, then certificates
    that belong to it by id or label.
    """
    yield _Candidate(item=key)
    if (stored := _load(cryptoki.attribute(opened.handle, key.handle, CKA_PUBLIC_KEY_INFO))) is not None:
        yield _Candidate(key=stored)
    identity, label = attribute(key, Attribute.ID), attribute(key, Attribute.LABEL)
    links: list[dict[Attribute, Any]] = []
    if identity:
        links.append({Attribute.ID: identity})
    if label:
        links.append({Attribute.LABEL: label})
    for link in links:
        template = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.KEY_TYPE: kind, **link}
        for found in opened.get_objects(template):
            if belongs(found, identity):
                yield _Candidate(item=found)
    for link in links:
        for found in opened.get_objects({Attribute.CLASS: ObjectClass.CERTIFICATE, **link}):
            if belongs(found, identity) and (certified := _certified(found)) is not None:
                yield _Candidate(key=certified)


def _curve(candidates: Iterable[_Candidate], reference: str, kind: KeyType) -> Curve:
    """The curve of a private key, or of its public half: some modules leave CKA_EC_PARAMS off the private one.

    Modules older than PKCS#11 3.0 know CKK_EC only, for Ed25519 too.
    """
    parameters = next(filter(None, map(_parameters, candidates)), None)
    curve = curve_of(parameters)
    if curve is not None and (curve is ED25519 or kind == KeyType.EC):
        return curve
    shown = parameters.hex()[:64] if parameters else "unknown"
    what, supported = ("Edwards", "Ed25519 is") if kind == KeyType.EC_EDWARDS else ("EC", "P-256, P-384 and P-521 are")
    message = f"the {what} key of {reference} is on a curve with CKA_EC_PARAMS {shown}: {supported} supported"
    raise KeyUnusable(message)


def _parameters(candidate: _Candidate) -> bytes | None:
    if candidate.item is not None:
        stored = attribute(candidate.item, Attribute.EC_PARAMS)
        return bytes(stored) if stored else None
    if isinstance(candidate.key, ed25519.Ed25519PublicKey):
        return ED25519.parameters
    named = curve_named(candidate.key.curve.name) if isinstance(candidate.key, ec.EllipticCurvePublicKey) else None
    return named.parameters if named is not None else None


def _ec_key(candidates: Iterable[_Candidate], reference: str, curve: Curve) -> ec.EllipticCurvePublicKey:
    for item, key in candidates:
        if item is None:
            if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == curve.standard_name:
                return key
            continue
        point = decode_ec_point(attribute(item, Attribute.EC_POINT) or b"", curve.coordinate_bytes)
        if point is None:
            continue
        with suppress(ValueError):  # not on the curve: the next candidate
            return ec.EllipticCurvePublicKey.from_encoded_point(_EC[curve.standard_name], point)
    raise _no_public_half(reference)


def _edwards_key(candidates: Iterable[_Candidate], reference: str) -> ed25519.Ed25519PublicKey:
    for item, key in candidates:
        if item is None:
            if isinstance(key, ed25519.Ed25519PublicKey):
                return key
            continue
        point = decode_edwards_point(attribute(item, Attribute.EC_POINT) or b"")
        if point is not None:
            return ed25519.Ed25519PublicKey.from_public_bytes(point)
    raise _no_public_half(reference)


def _rsa_key(candidates: Iterable[_Candidate], reference: str) -> rsa.RSAPublicKey:
    for item, key in candidates:
        found = key if item is None else _rsa_of_parts(item)
        if not isinstance(found, rsa.RSAPublicKey):
            continue
        smallest, largest = RSA_MODULUS_BITS
        if not smallest <= found.key_size <= largest:
            message = f"the RSA key of {reference} has {found.key_size} bits: {smallest} to {largest} are supported"
            raise KeyUnusable(message)
        return found
    raise _no_public_half(reference)


def _rsa_of_parts(item: Any) -> rsa.RSAPublicKey | None:
    """The public key of an object's modulus and exponent, None where they are missing or no key."""
    modulus, exponent = attribute(item, Attribute.MODULUS), attribute(item, Attribute.PUBLIC_EXPONENT)
    if not modulus or not exponent:
        return None
    try:
        return rsa.RSAPublicNumbers(int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big")).public_key()
    except ValueError:
        return None


def _certified(item: Any) -> Any:
    """The public key in a certificate object; None where there is none, or one that nobody here can read."""
    value = attribute(item, Attribute.VALUE)
    try:
        return x509.load_der_x509_certificate(value).public_key() if value else None
    except (ValueError, UnsupportedAlgorithm):
        return None


def _load(value: bytes) -> Any:
    """The public key in a SubjectPublicKeyInfo (DER); None where there is none, or one that nobody here can read."""
    try:
        return load_der_public_key(value) if value else None
    except (ValueError, UnsupportedAlgorithm):
        return None


def _no_public_half(reference: str) -> KeyUnusable:
    return KeyUnusable(
        f"no public key belongs to the private key of {reference}: the token has neither a public key object nor a "
        "certificate with its id or label that fits, and stores none with the key; store one of them with the vendor's tool"
    )
