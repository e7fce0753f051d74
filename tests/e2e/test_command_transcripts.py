"""Every command of the two tools, as people and scripts type it: what it says, where, and its exit code."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from deployment import SCRIPTS, Deployment, clean_environment, greatseal, greatseald, run

pytestmark = pytest.mark.softhsm

DIGEST = hashlib.sha256(b"transcript").hexdigest()
STATEMENT = json.dumps(
    {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "app.tar", "digest": {"sha256": DIGEST}}],
        "predicateType": "https://example.org/predicate/v1",
        "predicate": {"ok": True},
    },
    separators=(",", ":"),
).encode()


def entries(deployment: Deployment) -> list[dict]:
    done = deployment.client("--json", "audit", "list", "--limit", "0")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def verify_with_cryptography(public_key: Path, signature: bytes, digest: bytes) -> None:
    key = load_pem_public_key(public_key.read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(signature, digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))


# ------------------------------------------------------------------------------------------ good input


def test_whoami_names_the_caller_and_its_rules(shared_deployment):
    done = shared_deployment.client("whoami")
    assert done.returncode == 0
    assert "spiffe://greatseal.local/pipeline" in done.stdout
    assert "allow[0]" in done.stdout
    told = json.loads(shared_deployment.client("--json", "whoami").stdout)
    assert told["client"] == "spiffe://greatseal.local/pipeline"


def test_keys_are_listed_and_shown_and_their_public_half_is_that_of_init(shared_deployment):
    listed = shared_deployment.client("keys", "list")
    assert listed.returncode == 0
    assert "keys/release" in listed.stdout
    assert "keys/scratch" in listed.stdout
    assert "ENABLED" in shared_deployment.client("keys", "show", "release").stdout
    public = shared_deployment.client("keys", "public", "keys/release")
    assert public.stdout == (shared_deployment.directory / "keys/release.pem").read_text()


def test_a_digest_is_signed_and_openssl_verifies_it(shared_deployment, tmp_path):
    (tmp_path / "artifact").write_bytes(b"transcript")
    done = shared_deployment.client(
        "sign", "digest", "--sha256", DIGEST, "--key", "keys/scratch", "--output", tmp_path / "sig"
    )
    assert done.returncode == 0, done.stderr
    key = shared_deployment.directory / "keys/scratch.pem"
    verified = run("openssl", "dgst", "-sha256", "-verify", key, "-signature", tmp_path / "sig", tmp_path / "artifact")
    assert verified.stdout.strip() == "Verified OK", verified.stderr


def test_a_digests_signature_goes_to_stdout_and_nothing_else_does(shared_deployment):
    done = shared_deployment.client("sign", "digest", "--sha256", DIGEST, "--key", "scratch")
    signature = base64.b64decode(done.stdout.strip(), validate=True)
    verify_with_cryptography(shared_deployment.directory / "keys/scratch.pem", signature, bytes.fromhex(DIGEST))


def test_a_statement_is_signed_as_dsse(shared_deployment, tmp_path):
    (tmp_path / "statement.json").write_bytes(STATEMENT)
    done = shared_deployment.client("sign", "statement", tmp_path / "statement.json", "--key", "keys/release")
    assert done.returncode == 0, done.stderr
    envelope = json.loads(done.stdout)
    assert base64.b64decode(envelope["payload"]) == STATEMENT
    kind = envelope["payloadType"]
    pae = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(STATEMENT), STATEMENT)
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    verify_with_cryptography(shared_deployment.directory / "keys/release.pem", signature, hashlib.sha256(pae).digest())


def test_the_same_request_id_gives_the_same_signature(shared_deployment):
    request = "01900000-0000-7000-8000-00000000000a"
    arguments = ("sign", "digest", "--sha256", DIGEST, "--key", "scratch", "--request-id", request)
    first, second = shared_deployment.client(*arguments), shared_deployment.client(*arguments)
    assert first.returncode == second.returncode == 0, second.stderr
    assert first.stdout == second.stdout


def test_a_receipt_verifies_offline_for_its_digest_and_no_other(shared_deployment, tmp_path):
    receipt = tmp_path / "receipt"
    shared_deployment.client("sign", "digest", "--sha256", DIGEST, "--key", "scratch", "--receipt", receipt)
    vkey = shared_deployment.log_vkey.read_text().strip()
    key = shared_deployment.directory / "keys/scratch.pem"
    good = greatseal("receipt", "verify", receipt, "--log-key", vkey, "--public-key", key, "--digest", DIGEST)
    assert good.returncode == 0, good.stderr
    other_digest = greatseal("receipt", "verify", receipt, "--log-key", vkey, "--digest", "00" * 32)
    other_key = greatseal(
        "receipt",
        "verify",
        receipt,
        "--log-key",
        vkey,
        "--public-key",
        shared_deployment.directory / "keys/release.pem",
    )
    assert (other_digest.returncode, other_key.returncode) == (6, 6)


def test_a_receipt_of_another_log_is_refused(shared_deployment, new_deployment, tmp_path):
    receipt = tmp_path / "receipt"
    shared_deployment.client("sign", "digest", "--sha256", DIGEST, "--key", "scratch", "--receipt", receipt)
    stranger = new_deployment().log_vkey.read_text().strip()
    done = greatseal("receipt", "verify", receipt, "--log-key", stranger, "--digest", DIGEST)
    assert done.returncode == 6
    assert done.stdout == ""


def test_the_log_is_listed_shown_and_verified(shared_deployment):
    shared_deployment.client("sign", "digest", "--sha256", DIGEST, "--key", "scratch")
    logged = entries(shared_deployment)
    assert [entry["index"] for entry in logged] == list(range(len(logged)))
    assert {"admin", "intent", "outcome"} <= {entry["entry"]["t"] for entry in logged}
    shown = shared_deployment.client("audit", "show", "0")
    assert shown.returncode == 0, shown.stderr
    assert '"start"' in shown.stdout
    checkpoint = shared_deployment.client("audit", "checkpoint")
    assert checkpoint.stdout.startswith("greatseal.local/log\n")
    verified = shared_deployment.client("audit", "verify")
    assert verified.returncode == 0, verified.stderr


def test_a_remembered_checkpoint_catches_another_log_under_the_same_address(
    shared_deployment, new_deployment, tmp_path
):
    remembered = tmp_path / "checkpoint"
    shared_deployment.client("--checkpoint-file", remembered, "audit", "checkpoint")
    other = new_deployment()
    other.start()
    # The other daemon has a log key of its own; even with that key trusted, its history is not the one remembered.
    done = other.client("--checkpoint-file", remembered, "audit", "checkpoint")
    assert done.returncode == 6, done.stderr


@pytest.mark.parametrize("tool", ["greatseal", "greatseald"])
def test_help_and_version_need_no_configuration(tool):
    for arguments in (("--help",), ("version",)):
        done = run(SCRIPTS / tool, *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "exit_code", "expected"),
    [
        (("sign", "digest", "--sha256", "abcd", "--key", "scratch"), 2, "64"),
        (("sign", "digest", "--sha256", "zz" * 32, "--key", "scratch"), 2, "hex"),
        (("sign", "digest", "--key", "scratch"), 2, "--sha256"),
        (("sign", "digest", "--sha384", "00" * 48, "--key", "scratch"), 2, "sha256"),
        (("sign", "digest", "--sha256", DIGEST, "--key", "No Name"), 2, "No Name"),
        (("sign", "digest", "--sha256", DIGEST, "--key", "scratch", "--algorithm", "rsa-pss-sha256"), 2, "offer"),
        (("sign", "digest", "--sha256", DIGEST, "--key", "scratch", "--request-id", "7"), 2, "UUID"),
        (("sign", "digest", "--sha256", DIGEST, "--key", "release"), 3, "signBlind"),
        (("sign", "digest", "--sha256", DIGEST, "--key", "unknown"), 3, "keys/unknown"),
        (("sign", "statement", "/nonexistent", "--key", "release"), 2, "/nonexistent"),
        (("keys", "show", "unknown"), 3, "keys/unknown"),
        (("audit", "show", "99999999"), 2, "99999999"),
        (("audit", "show", "x"), 2, "INDEX"),
        (("no-such-command",), 2, "no-such-command"),
    ],
)
def test_a_wrong_request_has_its_exit_code_and_says_why(shared_deployment, arguments, exit_code, expected):
    done = shared_deployment.client(*arguments)
    assert done.returncode == exit_code, done.stderr
    assert expected in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "payload", "expected"),
    [
        ("not JSON", b"{", "JSON"),
        ("no statement", b'{"subject":[]}', "_type"),
        ("a foreign field", b'{"a":1}', "a: is not a field"),
        ("another type", STATEMENT.replace(b"Statement/v1", b"Statement/v9"), "_type"),
        (
            "no subject",
            STATEMENT.replace(STATEMENT[STATEMENT.index(b"[") : STATEMENT.index(b"]") + 1], b"[]"),
            "subject",
        ),
        ("duplicate key", b'{"_type":"a","_type":"b"}', "twice"),
    ],
)
def test_a_malformed_statement_is_refused_and_stands_in_the_log(shared_deployment, tmp_path, name, payload, expected):
    (tmp_path / "statement.json").write_bytes(payload)
    before = len(entries(shared_deployment))
    done = shared_deployment.client(
        "sign", "statement", tmp_path / "statement.json", "--key", "release", "--output", tmp_path / "out"
    )
    assert done.returncode == 2, f"{name}: {done.stdout}{done.stderr}"
    assert expected in done.stderr, name
    assert not (tmp_path / "out").exists()
    new = [entry["entry"] for entry in entries(shared_deployment)[before:]]
    assert [(entry["t"], entry["reason"]) for entry in new] == [("denied", "STATEMENT_INVALID")]


def test_a_reused_request_id_is_refused(shared_deployment):
    request = "01900000-0000-7000-8000-00000000000b"
    arguments = ("sign", "digest", "--key", "scratch", "--request-id", request, "--sha256")
    assert shared_deployment.client(*arguments, DIGEST).returncode == 0
    done = shared_deployment.client(*arguments, "00" * 32)
    assert done.returncode == 2
    assert "REQUEST_ID_REUSED" in done.stderr


def test_a_denial_stands_in_the_log_with_who_what_and_why(shared_deployment):
    shared_deployment.client("sign", "digest", "--sha256", DIGEST, "--key", "release")
    denied = [entry["entry"] for entry in entries(shared_deployment) if entry["entry"]["t"] == "denied"]
    assert denied
    assert denied[-1]["cli"]["id"] == "spiffe://greatseal.local/pipeline"
    assert (denied[-1]["act"], denied[-1]["reason"]) == ("signBlind", "ACCESS_DENIED")
    assert denied[-1]["key"]["name"] == "keys/release"


def test_an_output_that_exists_is_not_half_written_when_the_request_is_refused(shared_deployment, tmp_path):
    (tmp_path / "sig").write_text("mine")
    done = shared_deployment.client(
        "sign", "digest", "--sha256", DIGEST, "--key", "release", "--output", tmp_path / "sig"
    )
    assert done.returncode == 3
    assert (tmp_path / "sig").read_text() == "mine"


def test_no_daemon_is_unavailable_and_says_where_it_was_looked_for(deployment):
    done = deployment.client("--timeout", "2", "--address", "127.0.0.1:9", "whoami")
    assert done.returncode == 5
    assert "127.0.0.1:9" in done.stderr


def test_a_client_of_a_foreign_ca_is_not_let_in(shared_deployment, new_deployment):
    foreign = new_deployment()
    done = shared_deployment.client(
        "--timeout", "5",
        "--client-cert", foreign.directory / "pki/pipeline.pem",
        "--client-key", foreign.directory / "pki/pipeline.key",
        "whoami",
    )  # fmt: skip
    assert done.returncode == 5, done.stdout
    assert done.stdout == ""


def test_a_daemon_of_a_foreign_ca_is_not_believed(shared_deployment, new_deployment):
    foreign = new_deployment()
    done = shared_deployment.client("--timeout", "5", "--ca-cert", foreign.directory / "pki/ca.pem", "whoami")
    assert done.returncode == 5
    assert done.stdout == ""


def test_a_key_that_others_can_read_is_refused_before_anything_is_sent(deployment):
    (deployment.directory / "pki/pipeline.key").chmod(0o644)
    done = deployment.client("--address", "127.0.0.1:9", "whoami")
    assert done.returncode == 2
    assert "pipeline.key" in done.stderr


def test_a_denied_serial_is_refused_after_a_reload_and_logged(deployment):
    deployment.start()
    serial = json.loads(deployment.client("--json", "whoami").stdout)["certificate_serial"]
    auditor = deployment.add_client("auditor", "--actions", "readAudit")
    deployment.append(f'[[deny]]\nserial = "{serial}"\ncomment = "stolen"')
    deployment.reload()
    done = deployment.client("whoami")
    assert done.returncode == 3, done.stderr
    assert "CALLER_DENYLISTED" in done.stderr
    listed = deployment.client("--json", "audit", "list", "--limit", "0", profile=auditor)
    assert any(json.loads(line)["entry"].get("reason") == "CALLER_DENYLISTED" for line in listed.stdout.splitlines())


def test_a_reload_of_a_file_with_errors_keeps_what_was_in_force(deployment):
    deployment.start()
    good = deployment.config.read_text()
    deployment.config.write_text(good + "\n[[allow]]\nclient = 7\n")
    deployment.reload(expect="reload_refused")
    assert deployment.client("whoami").returncode == 0
    assert deployment.client("sign", "digest", "--sha256", DIGEST, "--key", "scratch").returncode == 0


@pytest.mark.parametrize(
    ("pattern", "replacement", "expected"),
    [
        (r"^listen = .*$", 'listen = "nowhere"', "server.listen"),
        (r"^tls_cert = .*$", 'tls_cert = "pki/pipeline.pem"', "server.tls_cert"),
        (r"^key_file = .*$", 'key_file = "pki/server.key"', "log.key_file"),
        (r"^anchor = .*$", "", "log.anchor"),
        (r"^module = .*$", 'module = "/nonexistent.so"', "module"),
        (r"^algorithms = .*\n\n\[\[keys", 'algorithms = ["rot13"]\n\n[[keys', "algorithms"),
        (r"^url = .*$", 'url = "mysql://"', "store.url"),
        (r"^lockout = ", 'pin = "1234"\nlockout = ', "pin"),
    ],
)
def test_a_wrong_configuration_is_named_by_file_line_and_key(deployment, pattern, replacement, expected):
    deployment.edit(pattern, replacement)
    for command in (("check-config", str(deployment.config)), ("serve", "--config", str(deployment.config))):
        done = greatseald(*command)
        assert done.returncode == 2, done.stderr
        assert "greatseald.toml" in done.stderr
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
    assert not deployment.database.exists()


def test_a_second_daemon_on_the_same_store_is_refused(deployment):
    deployment.start()
    done = greatseald("serve", "--config", deployment.config, "--listen", "127.0.0.1:0")
    assert done.returncode == 5, done.stderr
    assert "log.db" in done.stderr
    assert deployment.client("whoami").returncode == 0


def test_an_address_in_use_is_refused(deployment, new_deployment):
    deployment.start()
    other = new_deployment(name="other")
    done = greatseald("serve", "--config", other.config, "--listen", deployment.address)
    assert done.returncode == 5, done.stderr
    assert deployment.address in done.stderr


def test_sigterm_ends_the_daemon_in_order(deployment):
    deployment.start()
    assert deployment.client("sign", "digest", "--sha256", DIGEST, "--key", "scratch").returncode == 0
    assert deployment.stop() == 0
    assert not (deployment.directory / "run/address").exists()
    deployment.start()
    kinds = [(entry["entry"]["t"], entry["entry"].get("what")) for entry in entries(deployment)]
    assert ("admin", "stop") in kinds
    assert deployment.client("audit", "verify").returncode == 0


def test_nothing_secret_is_said_in_argv_environment_or_the_daemons_log(deployment):
    deployment.start()
    deployment.client("sign", "digest", "--sha256", DIGEST, "--key", "scratch")
    pin = (deployment.directory / "tokens/soft/pin").read_text().strip()
    head_mac = (deployment.directory / "log/head-mac.key").read_text().strip()
    said = deployment.stderr.encode()
    for process in _family(deployment.process.pid):
        said += Path(f"/proc/{process}/cmdline").read_bytes() + Path(f"/proc/{process}/environ").read_bytes()
    assert pin.encode() not in said
    assert head_mac.encode() not in said
    assert b"PRIVATE KEY" not in said


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def test_output_can_be_piped_to_a_reader_that_goes_away(shared_deployment):
    command = f"{sys.executable} -m greatseald version --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=clean_environment(), capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
