"""An RFC 3161 authority on loopback: `openssl ts -reply` behind HTTP, under a root of its own."""

from __future__ import annotations

import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from outside_site import Answering

CONFIG = """\
[tsa]
default_tsa = it
[it]
serial = {directory}/serial
signer_cert = {directory}/tsa.pem
signer_key = {directory}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha512
ess_cert_id_alg = sha256
"""


class Authority:
    """Signs timestamps; `root` is the file that whoever trusts it is given."""

    def __init__(self, directory: Path, name: str = "Test TSA") -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self.root = directory / "root.pem"
        self._guard = threading.Lock()
        self.asked = 0
        root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        root = self._issue(f"{name} root", root_key, f"{name} root", root_key, None)
        cert = self._issue(name, key, f"{name} root", root_key, ExtendedKeyUsageOID.TIME_STAMPING)
        self.root.write_bytes(root.public_bytes(serialization.Encoding.PEM))
        (directory / "tsa.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        (directory / "tsa.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        (directory / "serial").write_text("01\n")
        (directory / "openssl.cnf").write_text(CONFIG.format(directory=directory))
        self.server = Answering(self._answer)

    @staticmethod
    def _issue(name, key, issuer, issuer_key, usage) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=usage is None, path_length=None), critical=True)
        )
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        return builder.sign(issuer_key, hashes.SHA256())

    @property
    def url(self) -> str:
        return f"{self.server.url}/tsr"

    def reply(self, query: bytes) -> bytes:
        """Return the TimeStampResp to a TimeStampReq."""
        with self._guard:
            self.asked += 1
            (self.directory / "query").write_bytes(query)
            subprocess.run(
                [
                    *("openssl", "ts", "-reply", "-config", self.directory / "openssl.cnf"),
                    *("-queryfile", self.directory / "query", "-out", self.directory / "reply"),
                ],
                check=True,
                capture_output=True,
                timeout=30,
            )
            return (self.directory / "reply").read_bytes()

    def _answer(self, path: str, body: bytes) -> tuple[int, str, bytes]:
        if path != "/tsr":
            return 404, "text/plain", b"not here"
        return 200, "application/timestamp-reply", self.reply(body)

    def close(self) -> None:
        self.server.close()
