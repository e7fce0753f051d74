"""A raw gRPC client and a PKI of the test's own, for attacks that the product's client would not make."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from google.rpc import error_details_pb2, status_pb2

from deployment import Deployment
from greatseal.v1 import identity_pb2, identity_pb2_grpc, signing_pb2, signing_pb2_grpc, types_pb2

TIMEOUT = 20
BLIND_KEY = "keys/scratch"


class Ca:
    """A certificate authority: the deployment's own, read back, or a foreign one."""

    def __init__(self, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.cert = cert
        self.key = key

    @classmethod
    def of(cls, deployment: Deployment) -> Ca:
        pki = deployment.directory / "pki"
        key = serialization.load_pem_private_key((pki / "ca.key").read_bytes(), password=None)
        return cls(x509.load_pem_x509_certificate((pki / "ca.pem").read_bytes()), key)

    @classmethod
    def foreign(cls, name: str = "Foreign CA") -> Ca:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        cert = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(cert, key)

    def pem(self) -> bytes:
        return self.cert.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, *names: x509.GeneralName, days: float = 1, started: float = 1, server: bool = False
    ) -> tuple[bytes, bytes]:
        """Return (certificate, key) as PEM; it is valid from `started` days ago for `days` days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        cert = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")]))
            .issuer_name(self.cert.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=started))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return cert.public_bytes(serialization.Encoding.PEM), private


def pipeline(deployment: Deployment) -> tuple[bytes, bytes]:
    """The certificate and key that `init` made for `pipeline`."""
    return identity_of(deployment, "pipeline")


def identity_of(deployment: Deployment, client: str) -> tuple[bytes, bytes]:
    """The certificate and key that `init` or `client add` made for this client."""
    pki = deployment.directory / "pki"
    return (pki / f"{client}.pem").read_bytes(), (pki / f"{client}.key").read_bytes()


@contextmanager
def connected(
    deployment: Deployment, identity: tuple[bytes, bytes] | None, *, roots: bytes | None = None
) -> Iterator[grpc.Channel]:
    """A channel of its own (no shared connections), presenting `identity` or nothing."""
    roots = roots or (deployment.directory / "pki" / "ca.pem").read_bytes()
    cert, key = identity or (None, None)
    options = [
        ("grpc.ssl_target_name_override", "localhost"),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
    ]
    channel = grpc.secure_channel(deployment.address, grpc.ssl_channel_credentials(roots, key, cert), options=options)
    try:
        yield channel
    finally:
        channel.close()


def who_am_i(channel: grpc.Channel) -> identity_pb2.WhoAmIResponse:
    return identity_pb2_grpc.IdentityServiceStub(channel).WhoAmI(identity_pb2.WhoAmIRequest(), timeout=TIMEOUT)


def digest_request(text: str = "x", *, key: str = BLIND_KEY, request_id: str = "") -> signing_pb2.SignDigestRequest:
    return signing_pb2.SignDigestRequest(
        key=key,
        request_id=request_id or str(uuid.uuid4()),
        digest=types_pb2.Digest(sha256=hashlib.sha256(text.encode()).digest()),
    )


def sign(channel: grpc.Channel, text: str = "x", **fields: str) -> signing_pb2.Signature:
    return signing_pb2_grpc.SigningServiceStub(channel).SignDigest(digest_request(text, **fields), timeout=TIMEOUT)


def reason_of(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """The code and the reason of the one ErrorInfo; fails where there is not exactly one."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    infos = [detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1
    info = error_details_pb2.ErrorInfo()
    infos[0].Unpack(info)
    assert info.domain == "greatseal"
    assert status.code == error.code().value[0]
    return error.code(), info.reason


def logged(deployment: Deployment, event: str) -> list[dict[str, object]]:
    """The daemon's own log lines of one event since its newest start."""
    lines = (line for line in deployment.stderr.splitlines() if line.startswith("{"))
    return [record for record in map(json.loads, lines) if record["event"] == event]


def wait_for(condition, seconds: float = 15.0):
    """Poll until `condition()` is true, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    message = "the condition did not come true in time"
    raise AssertionError(message)


def reload(deployment: Deployment, event: str = "reloaded") -> list[dict[str, object]]:
    """Send SIGHUP and wait until the daemon says `event` once more."""
    import signal

    before = len(logged(deployment, event))
    deployment.signal(signal.SIGHUP)
    return wait_for(lambda: (found := logged(deployment, event))[before:] and found[before:])


def read_address(path: Path) -> str:
    return path.read_text().strip()
