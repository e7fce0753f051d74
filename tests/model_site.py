"""Models, keys and certificates for tests of model signing. Keys here are local: they stand in for the token.

model = make_model(tmp_path / "llama")
bundle = sign_locally(model, new_key("P-256"))
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from greatseal.dsse import IN_TOTO_PAYLOAD_TYPE, pae
from greatseal.oms.bundle import write_bundle
from greatseal.oms.listing import IgnoredPaths
from greatseal.oms.manifest import build_manifest

HASHES = {"secp256r1": "sha256", "secp384r1": "sha384", "secp521r1": "sha512"}
CURVES = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}

FILES = {
    "config.json": b'{"layers": 2}\n',
    "a-b": b"sorts before a/b as a string, after it by components",
    "a/b": b"inside a",
    "a.b": b"and between them",
    "empty": b"",
    "weights/00001.bin": bytes(range(256)) * 9000,
    "weights/.gitignore": b"*.tmp\n",
    "sub/.git/config": b"nested, so signed\n",
    "Gewichte/größe-模型-🦙.bin": "Größe".encode(),
    "Gewichte/gro\u0308\u00dfe.bin": b"decomposed, and not normalised by anyone",
    "with space/and 'quotes\".txt": b"x",
}
"""What directories do to implementations: order, emptiness, git names below the top, Unicode."""

IGNORED = {
    ".gitignore": b"*.tmp\n",
    ".gitattributes": b"*.bin filter=lfs\n",
    ".git/HEAD": b"ref: refs/heads/main\n",
    ".github/workflows/ci.yaml": b"on: push\n",
}


def make_model(path: Path, files: dict[str, bytes] | None = None) -> Path:
    """A model directory, with git's names at the top unless `files` says what is in it."""
    for name, content in (FILES | IGNORED if files is None else files).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def new_key(curve: str = "P-256") -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(CURVES[curve]())


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def certificate_pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def sign_payload(payload: bytes, key: ec.EllipticCurvePrivateKey, payload_type: str = IN_TOTO_PAYLOAD_TYPE) -> bytes:
    """What a token does: ECDSA over the digest of the PAE, as DER."""
    name = HASHES[key.curve.name]
    digest = hashlib.new(name, pae(payload_type, payload)).digest()
    return key.sign(digest, ec.ECDSA(Prehashed(getattr(hashes, name.upper())())))


def bundle_of(payload: bytes, key: ec.EllipticCurvePrivateKey, chain: Sequence[x509.Certificate] = ()) -> bytes:
    return write_bundle(IN_TOTO_PAYLOAD_TYPE, payload, sign_payload(payload, key), key.public_key(), chain)


def sign_locally(
    model: Path,
    key: ec.EllipticCurvePrivateKey,
    chain: Sequence[x509.Certificate] = (),
    *,
    name: str = "model.sig",
    ignore: Sequence[str] = (),
) -> Path:
    """Sign a model as we do, the key being here, and write the bundle into it."""
    payload = build_manifest(model, IgnoredPaths.of([name, *ignore])).payload()
    path = model / name
    path.write_bytes(bundle_of(payload, key, chain))
    return path


@dataclass(frozen=True)
class Authority:
    """Issues certificates; tests change what they should not be."""

    name: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    certificate: x509.Certificate | None = None

    @classmethod
    def root(cls, name: str = "Test Root", **changes: object) -> Authority:
        key = new_key("P-384")
        return cls(name, key, issue(name, key, name, key, ca=True, **changes))

    def intermediate(self, name: str = "Test Intermediate", **changes: object) -> Authority:
        key = new_key("P-256")
        return Authority(name, key, issue(name, key, self.name, self.key, ca=True, **changes))

    def leaf(self, key: ec.EllipticCurvePrivateKey, name: str = "Model Release", **changes: object) -> x509.Certificate:
        return issue(name, key, self.name, self.key, ca=False, **changes)


def issue(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    ca: bool,
    begins: timedelta = timedelta(days=-1),
    ends: timedelta = timedelta(days=30),
    path_length: int | None = None,
    digital_signature: bool = True,
    cert_sign: bool = True,
    purposes: Sequence[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.CODE_SIGNING,),
    critical_unknown: bool = False,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=digital_signature and not ca,
                content_commitment=not digital_signature,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=ca and cert_sign,
                crl_sign=ca,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if purposes is not None and not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(purposes)), critical=False)
    if critical_unknown:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
        builder = builder.add_extension(unknown, critical=True)
    return builder.sign(issuer_key, hashes.SHA384())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
