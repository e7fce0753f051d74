"""The client and its command against a real daemon with a SoftHSM token."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

import greatseal as api
from deployment import SCRIPTS, Deployment, clean_environment, greatseal, run
from greatseal.cli import main
from greatseal.dsse import envelope_from_json
from greatseal.signatures import load_public_key

DIGEST = hashlib.sha256(b"something").digest()
STATEMENT = json.dumps(
    {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "thing", "digest": {"sha256": DIGEST.hex()}}],
        "predicateType": "https://example.com/predicate/v1",
        "predicate": {},
    }
).encode()

pytestmark = pytest.mark.softhsm


def _public(deployment: Deployment, name: str) -> api.PublicKey:
    with api.Client.from_profile(deployment.profile) as client:
        return client.keys.public_key(name)


# --- the library


def test_a_digest_a_statement_and_a_batch_are_signed_with_receipts(shared_deployment: Deployment):
    with api.Client.from_profile(shared_deployment.profile) as client:
        key = load_public_key(client.keys.public_key("keys/scratch").pem.encode())
        one = client.sign_digest("keys/scratch", DIGEST)
        two = client.sign_statement("keys/scratch", STATEMENT)
        many = client.sign_batch(
            [api.DigestRequest("keys/scratch", DIGEST)] * 3 + [api.StatementRequest("scratch", STATEMENT)]
        )
        log_key = api.VerifierKey.parse(client.profile.log_key)
    for signature in (one, two, *many):
        assert isinstance(signature, api.Signature)
        api.verify_digest(key, signature.algorithm, signature.digest, signature.signature)
        proven = signature.receipt.verify(log_key, public_key=key, digest=signature.digest)
        assert proven.request_id == signature.request_id
    assert len({signature.request_id for signature in many}) == 4


def test_the_same_request_id_returns_the_same_signature(shared_deployment: Deployment):
    request_id = str(uuid.uuid4())
    with api.Client.from_profile(shared_deployment.profile) as client:
        first = client.sign_digest("keys/scratch", DIGEST, request_id=request_id)
        again = client.sign_digest("keys/scratch", DIGEST, request_id=request_id)
        with pytest.raises(api.RequestIdReused) as caught:
            client.sign_digest("keys/scratch", hashlib.sha256(b"other").digest(), request_id=request_id)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.signature == first.signature
    assert again.receipt.intent.index == first.receipt.intent.index
    assert caught.value.reason == "REQUEST_ID_REUSED"


def test_one_refused_item_leaves_the_others_their_signatures(shared_deployment: Deployment):
    items = [
        api.DigestRequest("keys/scratch", DIGEST),
        api.DigestRequest("keys/release", DIGEST),
        api.DigestRequest("keys/scratch", hashlib.sha384(b"x").digest()),
        api.StatementRequest("keys/release", b"not a statement"),
        api.StatementRequest("keys/release", STATEMENT),
    ]
    with api.Client.from_profile(shared_deployment.profile) as client:
        results = client.sign_batch(items)
    reasons = [getattr(result, "reason", "signed") for result in results]
    assert reasons == ["signed", "ACCESS_DENIED", "DIGEST_INVALID", "STATEMENT_INVALID", "signed"]
    assert all(getattr(result, "request_id", "") for result in results)


def test_a_batch_over_the_limit_is_split(shared_deployment: Deployment):
    digests = [hashlib.sha256(n.to_bytes(2, "big")).digest() for n in range(1003)]
    with api.Client.from_profile(shared_deployment.profile) as client:
        results = client.sign_batch([api.DigestRequest("keys/scratch", digest) for digest in digests], timeout=120)
    assert [result.digest for result in results if isinstance(result, api.Signature)] == digests


def test_asyncio_signs_too(shared_deployment: Deployment):
    async def use() -> list[api.Signature]:
        async with api.AsyncClient.from_profile(shared_deployment.profile) as client:
            return await asyncio.gather(*(client.sign_digest("keys/scratch", DIGEST) for _ in range(8)))

    signatures = asyncio.run(use())
    assert len({signature.receipt.intent.index for signature in signatures}) == 8


def test_a_restored_older_log_is_noticed(deployment: Deployment, tmp_path: Path):
    """The daemon's own anchor is removed with the database, as an attacker or a careless restore would."""
    import shutil

    with deployment.running():
        _sign_once(deployment, tmp_path / "checkpoint")
    shutil.copytree(deployment.directory / "data", tmp_path / "data")
    shutil.copytree(deployment.directory / "anchor", tmp_path / "anchor")
    with deployment.running():
        _sign_once(deployment, tmp_path / "checkpoint")
        _sign_once(deployment, tmp_path / "checkpoint")
    kept = (tmp_path / "checkpoint").read_text()
    for name in ("data", "anchor"):
        shutil.rmtree(deployment.directory / name)
        shutil.copytree(tmp_path / name, deployment.directory / name)
    with deployment.running():
        done = deployment.client("--checkpoint-file", tmp_path / "checkpoint", "audit", "checkpoint")
        assert done.returncode == 6, done.stderr
        assert "rolled back or forked" in done.stderr
        done = deployment.client("--checkpoint-file", tmp_path / "checkpoint", "audit", "verify")
        assert done.returncode == 6, done.stderr
    assert (tmp_path / "checkpoint").read_text() == kept


def _sign_once(deployment: Deployment, checkpoint: Path) -> None:
    with api.Client.from_profile(deployment.profile, checkpoint_file=checkpoint) as client:
        client.sign_statement("keys/release", STATEMENT)


# --- the command


def test_whoami_and_keys(shared_deployment: Deployment):
    done = shared_deployment.client("--json", "whoami")
    assert json.loads(done.stdout)["client"] == "spiffe://greatseal.local/pipeline"
    done = shared_deployment.client("keys", "list", "--json")
    assert {key["name"] for key in json.loads(done.stdout)["keys"]} == {"keys/release", "keys/scratch"}
    done = shared_deployment.client("keys", "list")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["KEY", "keys/release", "keys/scratch"]
    done = shared_deployment.client("keys", "show", "release")
    assert "keys/release/versions/1" in done.stdout
    done = shared_deployment.client("keys", "public", "release")
    assert done.stdout == (shared_deployment.directory / "keys" / "release.pem").read_text()


def test_sign_digest_writes_what_openssl_verifies(shared_deployment: Deployment, tmp_path: Path):
    (tmp_path / "data").write_bytes(b"something")
    signature, receipt, public = tmp_path / "sig", tmp_path / "receipt.json", tmp_path / "public.pem"
    shared_deployment.client("keys", "public", "scratch", "--output", public)
    done = shared_deployment.client(
        "sign", "digest", "--sha256", DIGEST.hex(), "--key", "keys/scratch", "--output", signature, "--receipt", receipt
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    verified = subprocess.run(
        ["openssl", "dgst", "-sha256", "-verify", public, "-signature", signature, tmp_path / "data"], check=False
    )
    assert verified.returncode == 0
    done = shared_deployment.client("sign", "digest", "--sha256", DIGEST.hex(), "--key", "scratch")
    assert base64.b64decode(done.stdout)[0] == 0x30


def test_sign_statement_writes_an_envelope_that_verifies(shared_deployment: Deployment, tmp_path: Path):
    (tmp_path / "statement.json").write_bytes(STATEMENT)
    done = shared_deployment.client("sign", "statement", tmp_path / "statement.json", "--key", "keys/release")
    envelope = envelope_from_json(done.stdout.encode())
    key = load_public_key(_public(shared_deployment, "release").pem.encode())
    digest = hashlib.sha256(envelope.signed_bytes()).digest()
    api.verify_digest(key, api.Algorithm.ECDSA_P256_SHA256, digest, envelope.signatures[0].signature)
    assert envelope.payload == STATEMENT


def test_a_receipt_verifies_offline_and_only_for_what_was_signed(shared_deployment: Deployment, tmp_path: Path):
    receipt, public, vkey = (
        tmp_path / "r.json",
        tmp_path / "public.pem",
        shared_deployment.directory / "log" / "log.vkey",
    )
    (tmp_path / "statement.json").write_bytes(STATEMENT)
    shared_deployment.client("keys", "public", "scratch", "--output", public)
    shared_deployment.client("sign", "digest", "--sha256", DIGEST.hex(), "--key", "scratch", "--receipt", receipt)
    verify = ("receipt", "verify", receipt, "--log-key")
    done = greatseal(*verify, vkey, "--public-key", public, "--digest", DIGEST.hex(), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["caller"] == "spiffe://greatseal.local/pipeline"
    assert greatseal(*verify, vkey.read_text().strip()).returncode == 0
    other = "ab" * 32
    release = tmp_path / "release.pem"
    shared_deployment.client("keys", "public", "release", "--output", release)
    for wrong in (("--digest", other), ("--public-key", release), ("--statement", tmp_path / "statement.json")):
        done = greatseal(*verify, vkey, *wrong)
        assert done.returncode == 6, done.stdout
        assert done.stdout == ""
    forged = "greatseal.local/log+5fbb5f5b+AfrHqFvYQl4gM8sxFfYPrHyC9wZ1OQU2xO1FzWmrXxGH"
    assert greatseal(*verify, forged).returncode in {2, 6}
    receipt.write_bytes(receipt.read_bytes().replace(b'"outcome"', b'"intent"', 1))
    assert greatseal(*verify, vkey).returncode == 6


def test_a_models_receipt_verifies_against_the_model(shared_deployment: Deployment, tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"weights")
    receipt = tmp_path / "receipt.json"
    done = shared_deployment.client("sign", "model", model, "--receipt", receipt)
    assert done.returncode == 0, done.stderr
    verify = ("receipt", "verify", receipt, "--log-key", shared_deployment.directory / "log" / "log.vkey")
    assert greatseal(*verify, "--model", model).returncode == 0
    (model / "weights").write_bytes(b"poisoned")
    done = greatseal(*verify, "--model", model)
    assert done.returncode == 6
    assert "weights" in done.stderr


def test_the_log_is_listed_shown_and_verified(shared_deployment: Deployment, tmp_path: Path):
    receipt, checkpoint = tmp_path / "r.json", tmp_path / "checkpoint"
    shared_deployment.client("sign", "digest", "--sha256", DIGEST.hex(), "--key", "scratch", "--receipt", receipt)
    assert shared_deployment.client("audit", "checkpoint", "--output", checkpoint).returncode == 0
    shared_deployment.client("sign", "digest", "--sha256", DIGEST.hex(), "--key", "scratch")
    done = shared_deployment.client("audit", "verify", "--checkpoint", checkpoint, "--receipt", receipt, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["verified"], summary["receipts"], summary["open_intents"]) == (True, 2, [])
    done = shared_deployment.client("audit", "list", "--json", "--limit", "4")
    listed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["index"] for each in listed] == list(range(summary["size"] - 4, summary["size"]))
    assert listed[-1]["entry"]["t"] == "outcome"
    done = shared_deployment.client("audit", "show", str(summary["size"] - 1), "--json")
    assert json.loads(done.stdout)["entry"] == listed[-1]["entry"]
    assert shared_deployment.client("audit", "list", "--from", "0", "--limit", "2").stdout.count("\n") == 3


def test_a_checkpoint_of_a_larger_log_says_that_this_one_was_cut(shared_deployment: Deployment, tmp_path: Path):
    from greatseal.checkpoint import Checkpoint
    from greatseal.note import NoteSigner

    key = (shared_deployment.directory / "log" / "log.key").read_bytes()
    forged = Checkpoint("greatseal.local/log", 10**6, b"\1" * 32).sign(NoteSigner.from_pem("greatseal.local/log", key))
    (tmp_path / "larger").write_text(forged)
    done = shared_deployment.client("audit", "verify", "--checkpoint", tmp_path / "larger")
    assert done.returncode == 6
    assert "cut off or rolled back" in done.stderr


# --- how commands end


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("sign", "digest", "--sha256", "ab" * 32, "--key", "release"), 3, "ACCESS_DENIED"),
        (("sign", "digest", "--sha256", "ab" * 31, "--key", "scratch"), 2, "64 hexadecimal digits"),
        (("sign", "digest", "--sha256", "zz" * 32, "--key", "scratch"), 2, "64 hexadecimal digits"),
        (("sign", "digest", "--key", "scratch"), 2, "one digest"),
        (("sign", "digest", "--sha384", "ab" * 48, "--key", "scratch"), 2, "DIGEST_INVALID"),
        (("sign", "digest", "--sha256", "ab" * 32, "--key", "scratch", "--request-id", "x"), 2, "UUID"),
        (
            ("sign", "digest", "--sha256", "ab" * 32, "--key", "scratch", "--output", "/nonexistent/x"),
            2,
            "nothing was signed",
        ),
        (
            ("sign", "digest", "--sha256", "ab" * 32, "--key", "scratch", "--algorithm", "rsa-pss-sha256"),
            2,
            "ALGORITHM_NOT_OFFERED",
        ),
        (("sign", "statement", "/nonexistent", "--key", "release"), 2, "No such file"),
        (("audit", "show", "99999999"), 2, "ENTRY_NOT_FOUND"),
        (("keys", "show", "elsewhere"), 3, "ACCESS_DENIED"),
        (("--timeout", "0", "whoami"), 2, "timeout"),
        (("--timeout", "2", "--address", "127.0.0.1:1", "whoami"), 5, "cannot be reached"),
        (("nonsense",), 2, "nonsense"),
        (("receipt", "verify", "/nonexistent"), 2, "No such file"),
    ],
)
def test_exit_codes_and_what_is_said(
    shared_deployment: Deployment,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    said: str,
):
    # In this process, for the interpreter's start would take most of the time.
    monkeypatch.setattr(sys, "argv", ["greatseal", "--profile", str(shared_deployment.profile), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    assert ended.value.code == code, err
    assert said in err
    assert out == ""
    assert "Traceback" not in err


def test_an_error_is_one_json_object_for_programs(shared_deployment: Deployment):
    done = shared_deployment.client("--json", "sign", "digest", "--sha256", "ab" * 32, "--key", "release")
    error = json.loads(done.stderr)["error"]
    assert (error["reason"], error["exit_code"], done.returncode) == ("ACCESS_DENIED", 3, 3)
    assert uuid.UUID(error["request_id"])


def test_nothing_is_written_when_nothing_was_signed(shared_deployment: Deployment, tmp_path: Path):
    done = shared_deployment.client(
        "sign",
        "digest",
        "--sha256",
        "ab" * 32,
        "--key",
        "release",
        "--output",
        tmp_path / "s",
        "--receipt",
        tmp_path / "r",
    )
    assert done.returncode == 3
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_profile_and_an_open_key_are_refused(shared_deployment: Deployment, tmp_path: Path):
    done = shared_deployment.client("whoami", profile=tmp_path / "none.toml")
    assert done.returncode == 2
    open_key = tmp_path / "open.key"
    open_key.write_bytes((shared_deployment.directory / "pki" / "pipeline.key").read_bytes())
    open_key.chmod(0o644)
    done = shared_deployment.client("--client-key", open_key, "whoami")
    assert done.returncode == 2
    assert "chmod 600" in done.stderr


def test_a_profile_can_come_from_the_environment_alone(shared_deployment: Deployment):
    pki = shared_deployment.directory / "pki"
    environment = {
        "GREATSEAL_ADDRESS": (shared_deployment.directory / "run" / "address").read_text().strip(),
        "GREATSEAL_CA_CERT": str(pki / "ca.pem"),
        "GREATSEAL_CLIENT_CERT": str(pki / "pipeline.pem"),
        "GREATSEAL_CLIENT_KEY": str(pki / "pipeline.key"),
        "GREATSEAL_SERVER_NAME": "localhost",
    }
    assert greatseal("whoami", env=environment).returncode == 0
    assert greatseal("whoami", env={"GREATSEAL_PROFILE": str(shared_deployment.profile)}).returncode == 0


def test_a_reader_that_goes_away_is_no_error(shared_deployment: Deployment):
    command = [SCRIPTS / "greatseal", "--profile", shared_deployment.profile, "audit", "list", "--limit", "0", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(), text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode in {0, 141}


def test_an_interrupt_ends_with_130(tmp_path: Path, shared_deployment: Deployment):
    command = [SCRIPTS / "greatseal", "--profile", shared_deployment.profile, "--address", "127.0.0.1:1", "whoami"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=clean_environment(), text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()  # it waits, and says so
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted" in said


def test_a_terminal_gets_a_table_without_colour_if_asked(shared_deployment: Deployment):
    import pty

    primary, secondary = pty.openpty()
    with subprocess.Popen(
        [SCRIPTS / "greatseal", "--profile", shared_deployment.profile, "keys", "list"],
        stdout=secondary,
        stderr=subprocess.PIPE,
        env=clean_environment({"NO_COLOR": "1", "TERM": "xterm"}),
    ):
        os.close(secondary)
        shown = b""
        try:
            while data := os.read(primary, 4096):
                shown += data
        except OSError:  # the other end is closed
            pass
    os.close(primary)
    assert b"keys/release" in shown
    assert b"\t" not in shown
    assert b"\x1b[3" not in shown


def test_help_names_every_command():
    done = run(sys.executable, "-m", "greatseal", "--help")
    for word in ("whoami", "keys", "sign", "verify", "audit", "receipt", "version", "--profile", "--json"):
        assert word in done.stdout
