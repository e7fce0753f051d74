"""Signing a model with a key that stays in its token: hash here, have the statement signed there.

The daemon is sent the statement, not a digest, so that it can read what it signs. Before a long
model is hashed, everything that can be known to fail is tried: the key, its certificates, the paths
that are to be written. What comes back is verified as any consumer would, before a byte is written;
files are written whole or not at all.

A signature file or receipt inside the model is ignored by its statement, so that verification does
not stumble over it. Neither ever replaces a file of another kind: a mistyped `--signature
model/config.json` must not cost the file, nor drop it from what is signed.

    with greatseal.Client.from_profile("client.toml") as client:
        signed = sign_model(client, Path("llama"))
    signed.signature_path, signed.root
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from greatseal.algorithms import Algorithm
from greatseal.dsse import IN_TOTO_PAYLOAD_TYPE
from greatseal.files import write_whole
from greatseal.messages import PublicKey, Signature
from greatseal.oms.bundle import MAX_BUNDLE_BYTES, is_bundle, parse_bundle, write_bundle
from greatseal.oms.certificates import load_certificate, require_signing_leaf
from greatseal.oms.errors import CertificateUnusable, KeyUnusable, ModelRefused, SignerUntrusted
from greatseal.oms.hashing import Progress
from greatseal.oms.listing import IgnoredPaths, relative_to_model, require_directory
from greatseal.oms.manifest import ModelManifest, build_manifest
from greatseal.oms.method import Method
from greatseal.oms.verify import Trust, verify_bundle

if TYPE_CHECKING:
    from greatseal.oms.digest_cache import DigestCache

SIGNATURE_NAME: Final = "model.sig"
RECEIPT_MEDIA_TYPE: Final = "application/vnd.greatseal.receipt.v1+json"

_ALGORITHMS: Final = {
    "secp256r1": Algorithm.ECDSA_P256_SHA256,
    "secp384r1": Algorithm.ECDSA_P384_SHA384,
    "secp521r1": Algorithm.ECDSA_P521_SHA512,
}


class KeyReader(Protocol):
    """The half of a client that reads keys."""

    def public_key(self, name: str) -> PublicKey: ...


class SigningClient(Protocol):
    """What signing a model needs of a client; `greatseal.Client` is one."""

    @property
    def keys(self) -> KeyReader: ...

    def sign_statement(
        self,
        key: str,
        payload: bytes,
        *,
        payload_type: str = ...,
        algorithm: Algorithm | None = ...,
        request_id: str = ...,
    ) -> Signature: ...


@dataclass(frozen=True, slots=True)
class ModelSigner:
    """A key that may sign models: its public half, and its certificates where the file is to hold them."""

    key: ec.EllipticCurvePublicKey
    algorithm: Algorithm
    certificates: tuple[x509.Certificate, ...]


@dataclass(frozen=True, slots=True)
class SignedModelFile:
    """A model that was signed and the files that prove it."""

    name: str
    root: str
    """The model's SHA-256, 64 hexadecimal digits."""
    files: int
    size: int
    """Bytes in all files together."""
    method: Method
    signature_path: Path
    receipt_path: Path | None
    released: Signature
    known: int = 0
    """Files whose digests came from the digest cache."""


def sign_model(
    client: SigningClient,
    model: Path,
    *,
    key: str = "keys/release",
    signature: Path | None = None,
    receipt: Path | None = None,
    ignore: Iterable[str] = (),
    method: Method | None = None,
    request_id: str = "",
    progress: Progress | None = None,
    workers: int | None = None,
    cache: DigestCache | None = None,
) -> SignedModelFile:
    """Sign a model and write its signature file.

    Args:
        client: asks the daemon.
        model: a directory.
        key: `keys/{key}`, an ECDSA key on P-256, P-384 or P-521.
        signature: where the bundle goes, `model/model.sig` by default.
        receipt: where the audit log's receipt goes, if anywhere.
        ignore: paths that are not signed, relative to the model; what is below one neither.
        method: certificate where the key has a chain, else key, by default.
        request_id: a UUID; the same one again, for the same model, returns the same signature.
        progress: called with the bytes hashed and the bytes in all.
        workers: threads for hashing; one for each core by default.
        cache: digests of files that have not changed since they were read; none by default.

    Raises:
        ModelRefused, ModelChanged: the model, or a path to be written.
        KeyUnusable, CertificateUnusable: the key or its certificate cannot sign models.
        VerificationFailed: what the daemon returned does not verify.
        DaemonError: the daemon said no.
    """
    signature = signature or model / SIGNATURE_NAME
    ignored = require_signable(model, signature, receipt, ignore)
    signer = model_signer(client.keys.public_key(key), method)
    manifest = build_manifest(model, ignored, progress=progress, workers=workers, cache=cache)
    payload = manifest.payload()
    released = client.sign_statement(
        key, payload, payload_type=IN_TOTO_PAYLOAD_TYPE, algorithm=signer.algorithm, request_id=request_id
    )
    return write_signed(manifest, payload, signer, released, signature, receipt)


def require_signable(model: Path, signature: Path, receipt: Path | None, ignore: Iterable[str]) -> IgnoredPaths:
    """Try everything that can be known to fail before a model is hashed; return what its statement leaves out.

    Raises:
        ModelRefused: no directory, or a path that cannot be written or is not meant.
    """
    require_directory(model)
    own = [_require_writable(model, signature, "signature", is_bundle)]
    if receipt is not None:
        own.append(_require_writable(model, receipt, "receipt", _is_receipt))
        if os.path.realpath(receipt) == os.path.realpath(signature):
            raise ModelRefused(f"{signature} cannot be both the signature and the receipt")
    return ignored_when_signing(model, ignore, own)


def write_signed(
    manifest: ModelManifest,
    payload: bytes,
    signer: ModelSigner,
    released: Signature,
    signature: Path,
    receipt: Path | None,
) -> SignedModelFile:
    """Verify what was released over `payload`, write the bundle and, where asked for, the receipt.

    Raises:
        SignatureMismatch: the signature is not by the signer's key over this payload; nothing was written.
        ModelRefused: a file cannot be written; the message says how to come by the signature again.
    """
    bundle = signed_bundle(payload, released.signature, signer)
    _write([(receipt, released.receipt.to_json()), (signature, bundle)] if receipt else [(signature, bundle)], released)
    return SignedModelFile(
        name=manifest.name,
        root=manifest.root,
        files=len(manifest.resources),
        size=manifest.size,
        method=Method.CERTIFICATE if signer.certificates else Method.KEY,
        signature_path=signature,
        receipt_path=receipt,
        released=released,
        known=manifest.known,
    )


def ignored_when_signing(model: Path, ignore: Iterable[str], own: Iterable[Path]) -> IgnoredPaths:
    """What a statement about `model` leaves out: the user's paths, and our own outputs that lie inside.

    Raises ModelRefused for a path that cannot be meant, such as a pattern: paths are taken as they are.
    """
    paths = list(ignore)
    for path in paths:
        if any(char in path for char in "*?[") and not os.path.lexists(model / path):
            raise ModelRefused(
                f"ignored path {path!r} is not there; patterns are not expanded, name each path", path=path
            )
    inside = (relative_to_model(model, path) for path in own)
    return IgnoredPaths.of([*paths, *(name for name in inside if name is not None)])


def model_signer(public: PublicKey, method: Method | None = None, *, at: datetime | None = None) -> ModelSigner:
    """The signer that a key of the daemon's is, for models.

    Raises:
        KeyUnusable: a key of a kind that verifiers of OMS do not accept, or one without the
            certificates that are asked for.
        CertificateUnusable: the certificate is expired, of another key or without the usages.
    """
    name = public.key_version
    try:
        key = serialization.load_pem_public_key(public.pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise KeyUnusable(f"the daemon's public key of {name} cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _ALGORITHMS:
        raise KeyUnusable(
            f"{name} is no key for models: every verifier of model signatures accepts ECDSA on P-256, P-384 and P-521, "
            "and no RSA or Ed25519. Name such a key, or have this one sign the statement with `greatseal sign statement`"
        )
    algorithm = _ALGORITHMS[key.curve.name]
    if algorithm not in public.algorithms:
        offered = ", ".join(each.value for each in public.algorithms) or "none that this client knows"
        raise KeyUnusable(f"{name} does not offer {algorithm.value}, which models need of it; it offers {offered}")
    if method is Method.KEY or (method is None and not public.certificate_chain):
        return ModelSigner(key, algorithm, ())
    if not public.certificate_chain:
        raise KeyUnusable(f"{name} has no certificate chain in the daemon's configuration; use the method 'key'")
    return ModelSigner(key, algorithm, _certificates(public, key, at or datetime.now(UTC)))


def signed_bundle(payload: bytes, signature: bytes, signer: ModelSigner) -> bytes:
    """The signature file for a payload, verified before it is returned.

    Raises:
        SignatureMismatch: the signature is not by the signer's key over this payload.
    """
    data = write_bundle(IN_TOTO_PAYLOAD_TYPE, payload, signature, signer.key, signer.certificates)
    verify_bundle(parse_bundle(data), Trust(key=signer.key))
    return data


def _certificates(public: PublicKey, key: ec.EllipticCurvePublicKey, at: datetime) -> tuple[x509.Certificate, ...]:
    try:
        chain = [load_certificate(each) for each in public.certificate_chain]
    except ValueError as error:
        raise CertificateUnusable(f"the certificates of {public.key_version}: {error}") from None
    leaf = chain[0]
    if leaf.public_key() != key:
        raise CertificateUnusable(
            f"the first certificate of {public.key_version} ({leaf.subject.rfc4514_string()}) is of another key; "
            "the chain in the daemon's configuration has to begin with the certificate of this key"
        )
    try:
        require_signing_leaf(leaf, at)
    except SignerUntrusted as error:
        raise CertificateUnusable(f"{public.key_version} cannot sign models now: {error.message}") from error
    # The root is the verifier's own business: one that came along would tempt somebody to trust it.
    return tuple(each for place, each in enumerate(chain) if place == 0 or each.subject != each.issuer)


def _require_writable(model: Path, path: Path, kind: str, replaceable: Callable[[bytes], bool]) -> Path:
    """Return `path` if a file of this kind can be written there and costs nothing else."""
    where = f"the {kind} cannot go to {path}"
    if not path.parent.is_dir():
        raise ModelRefused(f"{where}: there is no directory {path.parent}")
    inside = relative_to_model(model, path) is not None
    try:
        if inside and path.is_symlink():
            raise ModelRefused(f"{where}: a model may hold no symbolic link; remove it or choose another place")
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ModelRefused(f"{where}: it is a directory; name a file in it")
        if not stat.S_ISREG(mode) and not inside:
            return path  # a terminal, a pipe: written to, not replaced
        if not stat.S_ISREG(mode) or (path.stat().st_size and not replaceable(_read(path))):
            raise ModelRefused(f"{where}: a file that is no {kind} is there; remove it or choose another place")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ModelRefused(f"{where}: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ModelRefused(f"{where}: {path.parent} is not writable")
    return path


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BUNDLE_BYTES + 1)


def _is_receipt(data: bytes) -> bool:
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("mediaType") == RECEIPT_MEDIA_TYPE


def _write(files: list[tuple[Path, bytes]], released: Signature) -> None:
    for path, data in files:
        try:
            write_whole(path, data)
        except OSError as error:
            raise ModelRefused(
                f"{path} cannot be written: {error.strerror}. The model was signed and the log says so: sign it again "
                f"with --request-id {released.request_id} and a path that can be written, for the same signature"
            ) from error
