"""Offline verification of a model against its signature file.

Trust comes from the caller alone: a public key, or root certificates. The order is: who may sign,
the signature over the payload's pre-authentication encoding, then the statement inside it, then
every file of the model. Nothing that the file says is used before its signature is verified, and
nothing returns False: what does not verify raises ModelUnverified.

Files that the signer left out (`ignore_paths`), the git names at the top, and the signature file
itself are not compared; `VerifiedModel.ignored` names those that are really there, so that nobody
takes them for signed.

    verified = verify_model(Path("llama"), Path("llama/model.sig"), Trust.in_key(pem))
    verified.root
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from greatseal.dsse import IN_TOTO_PAYLOAD_TYPE, pae
from greatseal.oms.bundle import Bundle, key_hint, read_bundle
from greatseal.oms.certificates import CURVES, parse_roots, require_curve, verify_chain
from greatseal.oms.errors import (
    BundleInvalid,
    ModelDiffers,
    ModelRefused,
    ModelUnreadable,
    SignatureMismatch,
    SignerUntrusted,
)
from greatseal.oms.hashing import Progress, hash_files, require_unchanged, settled
from greatseal.oms.listing import IgnoredPaths, Listing, normalised, relative_to_model
from greatseal.statement import OMS_PREDICATE_TYPE, Manifest, parse_statement
from greatseal.verification import StatementInvalid

_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose signatures count: one key, or whoever a root certificate leads to."""

    key: ec.EllipticCurvePublicKey | None = None
    roots: tuple[x509.Certificate, ...] = ()

    @classmethod
    def in_key(cls, pem: bytes) -> Trust:
        """Trust in one public key, PEM. Raises SignerUntrusted for a key that cannot sign models."""
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm):
            raise SignerUntrusted("the trusted public key is not a public key in PEM") from None
        return cls(key=require_curve(key, "the trusted public key"))

    @classmethod
    def in_root_pem(cls, pem: bytes) -> Trust:
        """Trust in the root certificates of PEM text. Raises SignerUntrusted where it holds none."""
        return cls.in_roots(parse_roots(pem))

    @classmethod
    def in_roots(cls, roots: Sequence[x509.Certificate]) -> Trust:
        """Trust in whoever a chain from one of these certificates names."""
        if not roots:
            raise SignerUntrusted("no root certificate to trust was given")
        return cls(roots=tuple(roots))


@dataclass(frozen=True, slots=True)
class SignedModel:
    """What a bundle's signer said, verified: the model's name, root (hex) and files."""

    name: str
    manifest: Manifest
    key: ec.EllipticCurvePublicKey
    certificate: x509.Certificate | None
    """The leaf, where trust came from a root."""


@dataclass(frozen=True, slots=True)
class VerifiedModel:
    """A model whose every file is the one that was signed."""

    name: str
    root: str
    """The model's SHA-256, 64 hexadecimal digits."""
    files: int
    size: int
    """Bytes in all files together."""
    key_hint: str
    """The signer's key, as bundles name it: hex SHA-256 of its PEM."""
    signer: str
    """The leaf certificate's subject (RFC 4514), or empty where trust was in the key."""
    ignored: tuple[str, ...]
    """Paths in the model that were not compared."""


def verify_bundle(bundle: Bundle, trust: Trust, *, at: datetime | None = None) -> SignedModel:
    """Verify who signed and what, without looking at any model.

    A bundle with certificates also verifies by the leaf's bare key: trust in the key is then all
    there is, and the certificates are not looked at. `at` (aware) is the time at which certificates
    have to be valid, now by default.

    Raises:
        SignerUntrusted: another key, no path to a root, a certificate that may not sign.
        SignatureMismatch: the signature is not over this payload.
        BundleInvalid: what was signed is no OMS statement.
    """
    key = _trusted_key(bundle, trust, at)
    try:
        key.verify(bundle.signature, pae(bundle.payload_type, bundle.payload), ec.ECDSA(_HASHES[key.curve.name]))
    except InvalidSignature:
        raise SignatureMismatch(
            f"the signature does not verify with the {CURVES[key.curve.name]} key {key_hint(key)[:16]}…: "
            "the payload or the signature was changed, or another key made it"
        ) from None
    name, manifest = _statement(bundle)
    certificate = bundle.certificates[0] if trust.roots else None
    return SignedModel(name, manifest, key, certificate)


def verify_model(
    model: Path,
    signature: Path,
    trust: Trust,
    *,
    ignore: Iterable[str] = (),
    at: datetime | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> VerifiedModel:
    """Verify that `model` is what the signature file says, file by file.

    Args:
        model: the directory.
        signature: the Sigstore bundle, inside the model or not.
        trust: whose signature counts.
        ignore: more paths to leave out, relative to the model.
        at: the time at which certificates have to be valid (aware), now by default.
        progress: called with the bytes hashed and the bytes to hash.
        workers: threads; one for each core by default.

    Raises:
        ModelUnverified: one of its kinds says what is wrong; ModelDiffers names every file.
        ModelRefused: a path in `ignore` cannot be meant.
    """
    wanted = [normalised(path) for path in ignore]
    signed = verify_bundle(read_bundle(signature), trust, at=at)
    listing = _compare(model, signature, signed.manifest, wanted, progress, workers)
    return VerifiedModel(
        name=signed.name,
        root=signed.manifest.root,
        files=len(listing.files),
        size=listing.size,
        key_hint=key_hint(signed.key),
        signer=signed.certificate.subject.rfc4514_string() if signed.certificate else "",
        ignored=listing.ignored,
    )


def signed_payload(model: Path, signature: Path, *, progress: Progress | None = None) -> bytes:
    """The statement in a model's signature file, if the model is exactly what it describes.

    Nothing is said about who signed: for callers that have other evidence of what was signed, such
    as a receipt over these bytes.

    Raises:
        ModelUnverified: the file holds no statement about a model, or the model differs from it.
    """
    bundle = read_bundle(signature)
    _, manifest = _statement(bundle)
    _compare(model, signature, manifest, (), progress, None)
    return bundle.payload


def _statement(bundle: Bundle) -> tuple[str, Manifest]:
    if bundle.payload_type != IN_TOTO_PAYLOAD_TYPE:
        raise BundleInvalid(f"the payload is of type {bundle.payload_type!r:.100}, not {IN_TOTO_PAYLOAD_TYPE}")
    try:
        statement = parse_statement(bundle.payload, any_order=True)
    except StatementInvalid as error:
        raise BundleInvalid(f"the signed statement is not one that can be verified: {error}") from error
    if statement.manifest is None:
        raise BundleInvalid(f"the signed statement is {statement.predicate_type!r:.100}, not {OMS_PREDICATE_TYPE}")
    return statement.subjects[0].name, statement.manifest


def _trusted_key(bundle: Bundle, trust: Trust, at: datetime | None) -> ec.EllipticCurvePublicKey:
    if trust.roots:
        if not bundle.certificates:
            raise SignerUntrusted(
                "the signature file names a key and holds no certificates: verify it with the public key"
            )
        return verify_chain(bundle.certificates, trust.roots, at)
    if trust.key is None:
        raise SignerUntrusted("neither a public key nor a root certificate is trusted")
    given = key_hint(trust.key)
    named = key_hint(bundle.certificates[0].public_key()) if bundle.certificates else bundle.key_hint
    if named and named != given:
        raise SignerUntrusted(
            f"the model was signed with another key: {named[:16]}…, and the trusted one is {given[:16]}…"
        )
    return trust.key


def _compare(
    model: Path,
    signature: Path,
    manifest: Manifest,
    wanted: Sequence[str],
    progress: Progress | None,
    workers: int | None,
) -> Listing:
    """The files of `model`, if they are exactly those of `manifest`."""
    itself = relative_to_model(model, signature)
    ignored = IgnoredPaths.of([*manifest.ignore_paths, *wanted, *([itself] if itself else [])])
    expected = dict(manifest.resources)
    try:
        listing = settled(model, ignored)
        known = [file for file in listing.files if file.name in expected]
        digests = hash_files(known, progress=progress, workers=workers)
        require_unchanged(model, ignored, listing)
    except ModelRefused as error:
        raise ModelUnreadable(error.message) from error
    missing = sorted(expected.keys() - digests.keys())
    extra = [file.name for file in listing.files if file.name not in expected]
    changed = [name for name, digest in digests.items() if digest.hex() != expected[name]]
    if missing or extra or changed:
        raise ModelDiffers(missing, extra, sorted(changed))
    return listing
