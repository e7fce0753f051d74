"""`greatseal doctor` against a real daemon, and against everything that can stand between the two."""

from __future__ import annotations

import json
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from deployment import Deployment, greatseal

pytestmark = pytest.mark.softhsm


def page(done) -> dict[str, dict]:
    """The checks by name."""
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_all_is_well_and_everything_is_on_one_page(shared_deployment, tmp_path):
    done = shared_deployment.client("--checkpoint-file", tmp_path / "seen", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) <= 24
    assert {line.split()[0] for line in lines if line[0] != " "} == {"ok"}
    for expected in (
        "spiffe://greatseal.local/pipeline",
        "TLSv1.3",
        "keys/release: readKeys, sign",
        "continues the one",
    ):
        assert expected in done.stdout
    again = shared_deployment.client("--checkpoint-file", tmp_path / "seen", "doctor", "--json")
    checks = page(again)
    assert json.loads(again.stdout)["status"] == "ok"
    assert checks["client certificate"]["days_left"] in {88, 89}
    assert "localhost" in checks["server certificate"]["names"]
    assert checks["clock"]["seconds_ahead"] == 0
    assert checks["log"]["size"] >= 1
    assert checks["keys"]["keys"][0] == {
        "name": "keys/release",
        "state": "ENABLED",
        "allowed_actions": ["readKeys", "sign"],
    }


def test_no_daemon(deployment):
    done = deployment.client("--address", "127.0.0.1:9", "--json", "doctor")
    assert done.returncode == 5
    checks = page(done)
    assert checks["client certificate"]["status"] == "ok"
    assert checks["connection"]["status"] == "fail"
    assert "greatseald running" in checks["connection"]["todo"]
    assert [checks[name]["status"] for name in ("tls", "identity", "clock", "keys", "log")] == ["skip"] * 5
    assert checks["versions"]["client"]


def test_a_port_that_speaks_something_else(deployment):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            accepted, _ = server.accept()
            with accepted:
                accepted.sendall(b"SSH-2.0-OpenSSH\r\n")

        other = threading.Thread(target=hang_up)
        other.start()
        done = deployment.client("--address", f"127.0.0.1:{server.getsockname()[1]}", "--json", "doctor")
        other.join(10)
    assert done.returncode == 5
    assert page(done)["tls"]["status"] == "fail"
    assert "Traceback" not in done.stderr


def test_a_daemon_of_a_foreign_ca_is_described_and_not_asked(shared_deployment, new_deployment):
    foreign = new_deployment()
    done = shared_deployment.client("--ca-cert", foreign.directory / "pki/ca.pem", "--json", "doctor")
    assert done.returncode == 5
    found = page(done)["server certificate"]
    assert found["status"] == "fail"
    assert "localhost" in found["text"]
    assert "ca_cert" in found["todo"]
    assert page(done)["identity"]["status"] == "skip"


def test_another_name_than_the_certificates(shared_deployment):
    done = shared_deployment.client("--server-name", "signer.example", "--json", "doctor")
    assert done.returncode == 5
    assert "server_name" in page(done)["server certificate"]["todo"]


def test_a_client_of_a_foreign_ca_is_told_so(shared_deployment, new_deployment):
    foreign = new_deployment()
    pki = foreign.directory / "pki"
    done = shared_deployment.client(
        "--client-cert", pki / "pipeline.pem", "--client-key", pki / "pipeline.key", "--json", "doctor"
    )
    assert done.returncode == 5
    checks = page(done)
    assert checks["server certificate"]["status"] == "ok"
    assert checks["tls"]["status"] == "fail"
    assert "client_ca" in checks["tls"]["todo"]


def test_a_certificate_that_has_expired(shared_deployment, tmp_path):
    pki = shared_deployment.directory / "pki"
    authority = x509.load_pem_x509_certificate((pki / "ca.pem").read_bytes())
    signer = load_pem_private_key((pki / "ca.key").read_bytes(), None)
    ours = x509.load_pem_x509_certificate((pki / "pipeline.pem").read_bytes())
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        authority.subject,
        ours.subject,
        ours.public_key(),
        x509.random_serial_number(),
        now - timedelta(9),
        now - timedelta(1),
        list(ours.extensions),
    )
    hashed = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    (tmp_path / "old.pem").write_bytes(builder.sign(signer, hashed).public_bytes(Encoding.PEM))
    done = shared_deployment.client("--client-cert", tmp_path / "old.pem", "--json", "doctor")
    assert done.returncode == 5
    checks = page(done)
    assert "expired on" in checks["client certificate"]["text"]
    assert checks["client certificate"]["days_left"] == -1
    assert checks["server certificate"]["status"] == "ok"
    assert checks["tls"]["status"] == "fail"


def test_a_key_that_is_not_the_certificates_and_one_that_others_can_read(shared_deployment, new_deployment):
    other = new_deployment().directory / "pki/pipeline.key"
    done = shared_deployment.client("--client-key", other, "--json", "doctor")
    assert done.returncode == 2
    assert "is not the key of" in page(done)["client certificate"]["text"]
    assert page(done)["connection"]["status"] == "ok"
    other.chmod(0o644)
    done = shared_deployment.client("--client-key", other, "--json", "doctor")
    assert done.returncode == 2
    assert "chmod 600" in page(done)["client certificate"]["text"]


def test_no_profile_and_a_broken_one(tmp_path: Path):
    nothing = greatseal("doctor", "--json")
    assert nothing.returncode == 2
    assert page(nothing)["address"]["status"] == "fail"
    (tmp_path / "client.toml").write_text("adress = 1")
    broken = greatseal("--profile", tmp_path / "client.toml", "doctor", "--json")
    assert broken.returncode == 2
    assert "adress" in page(broken)["profile"]["text"]


def test_a_log_of_another_key_and_one_that_went_back(shared_deployment: Deployment, new_deployment, tmp_path):
    other = new_deployment()
    done = shared_deployment.client("--log-key", other.log_vkey, "--json", "doctor")
    assert done.returncode == 6
    assert page(done)["log"]["status"] == "fail"
    other.start()
    remembered = tmp_path / "seen"
    assert shared_deployment.client("--checkpoint-file", remembered, "doctor").returncode == 0
    assert other.client("--checkpoint-file", remembered, "doctor").returncode == 6


def test_a_client_without_rules_and_one_on_the_denylist(deployment):
    deployment.start()
    nobody = deployment.add_client("nobody")
    deployment.reload()
    done = deployment.client("doctor", "--json", profile=nobody)
    assert done.returncode == 0
    checks = page(done)
    assert checks["identity"]["status"] == "warn"
    assert "[[allow]]" in checks["identity"]["todo"]
    assert checks["log"]["status"] == "skip"
    deployment.append(f'[[deny]]\nserial = "{checks["client certificate"]["serial"]}"')
    deployment.reload()
    done = deployment.client("doctor", "--json", profile=nobody)
    assert done.returncode == 3
    assert page(done)["identity"]["reason"] == "CALLER_DENYLISTED"
