"""The small files that a configuration names, made once, so that a fuzzed configuration may be a good one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

CONFIG = b"""[server]
listen = "127.0.0.1:0"
tls_cert = "server.pem"
tls_key = "server.key"
client_ca = "server.pem"

[store]
url = "sqlite:///tmp/log.db"

[log]
origin = "example.org/log"
key_file = "log.key"
head_mac_key_file = "mac.key"
anchor = "anchor"

[[tokens]]
name = "soft"
type = "pkcs11"
uri = "pkcs11:token=greatseal"
module = "module.so"
environment = { SOFTHSM2_CONF = "softhsm.conf" }
pin_file = "pin"

[[keys]]
name = "release"
token = "soft"
uri = "pkcs11:object=release"
algorithms = ["ecdsa-p256-sha256"]

[[allow]]
client = "spiffe://example.org/ci"
actions = ["sign", "readKeys"]
keys = ["release"]
payload_types = ["application/vnd.in-toto+json"]

[[deny]]
serial = "0A:1B"
comment = "lost"
"""


@cache
def prepared(parent: Path) -> Path:
    """A directory with everything that `CONFIG` names."""
    directory = parent / "site"
    directory.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = {
        "server.pem": certificate.public_bytes(serialization.Encoding.PEM),
        "server.key": _pem(key),
        "log.key": _pem(ed25519.Ed25519PrivateKey.generate()),
        "mac.key": bytes(range(32)).hex().encode(),
        "pin": b"1234",
        "module.so": b"",
    }
    for name_of_file, data in files.items():
        (directory / name_of_file).write_bytes(data)
        (directory / name_of_file).chmod(0o600)
    return directory


def _pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
