"""Every algorithm through the real commands: a key in SoftHSM, the daemon, the client, the receipt; OpenSSL and OpenSSF agree."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployment import Deployment
from greatseal.algorithms import Algorithm
from greatseald.adapters.tokens.provision import add_keys, find_softhsm

pytestmark = pytest.mark.softhsm

KINDS = {"p256": "ec-p256", "p384": "ec-p384", "p521": "ec-p521", "rsa": "rsa-2048", "ed25519": "ed25519"}
STATEMENT = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [{"name": "model", "digest": {"sha256": "ab" * 32}}],
    "predicateType": "https://example.org/checked/v1",
    "predicate": {"checked": True},
}
DIGESTED = [algorithm for algorithm in Algorithm if not algorithm.is_pure]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployment = Deployment.create(tmp_path_factory.mktemp("algorithms"))
    add_keys(deployment.directory / "tokens" / "soft", find_softhsm(), "greatseal", list(KINDS.items()))
    tables = [
        f'[[keys]]\nname = "{family}"\ntoken = "soft"\nuri = "pkcs11:object={family}"\nalgorithms = '
        + json.dumps([algorithm.value for algorithm in Algorithm if algorithm.family == family])
        for family in KINDS
    ]
    tables.append(
        '[[allow]]\nclient = "spiffe://greatseal.local/pipeline"\nactions = ["sign", "signBlind", "readKeys"]\n'
        f'keys = {json.dumps(list(KINDS))}\npayload_types = ["application/vnd.in-toto+json"]'
    )
    deployment.append("\n" + "\n".join(tables) + "\n")
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.close()


@pytest.fixture
def statement(tmp_path: Path) -> Path:
    (tmp_path / "statement.json").write_text(json.dumps(STATEMENT))
    return tmp_path / "statement.json"


def ok(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def public_pem(site: Deployment, family: str, tmp_path: Path) -> Path:
    path = tmp_path / f"{family}.pem"
    path.write_text(ok(site.client("keys", "public", family)))
    return path


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_statement_signed_with_it_verifies_with_its_receipt(
    site: Deployment, statement: Path, tmp_path: Path, algorithm: Algorithm
) -> None:
    receipt, pem = tmp_path / "receipt", public_pem(site, algorithm.family, tmp_path)
    sign = ("sign", "statement", statement, "--key", algorithm.family, "--algorithm", algorithm.value)
    envelope = json.loads(ok(site.client(*sign, "--receipt", receipt)))
    assert base64.b64decode(envelope["payload"]) == statement.read_bytes()

    verify = ("receipt", "verify", receipt, "--log-key", site.log_vkey, "--public-key", pem, "--statement", statement)
    proven = json.loads(ok(site.client(*verify, "--json")))
    assert proven["signature_verified"] is True
    assert proven["algorithm"] == algorithm.value

    other = tmp_path / "other.json"
    other.write_text(json.dumps({**STATEMENT, "predicate": {"checked": False}}))
    assert site.client(*verify[:-1], other).returncode == 6


@pytest.mark.parametrize("algorithm", DIGESTED)
def test_openssl_verifies_a_digest_signed_with_it(site: Deployment, tmp_path: Path, algorithm: Algorithm) -> None:
    content, signature = tmp_path / "content", tmp_path / "signature"
    content.write_bytes(b"what is signed")
    name = algorithm.hash_name
    digest = hashlib.new(name, content.read_bytes()).hexdigest()
    sign = ("sign", "digest", f"--{name}", digest, "--key", algorithm.family, "--algorithm", algorithm.value)
    ok(site.client(*sign, "--output", signature))
    options = [f"-{name}", "-verify", str(public_pem(site, algorithm.family, tmp_path)), "-signature", str(signature)]
    if "pss" in algorithm.value:
        options += ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"]
    verified = subprocess.run(["openssl", "dgst", *options, str(content)], capture_output=True, text=True, check=False)
    assert "Verified OK" in verified.stdout, verified.stderr


def test_openssl_verifies_ed25519_over_the_dsse_encoding(site: Deployment, statement: Path, tmp_path: Path) -> None:
    signature, encoded = tmp_path / "signature", tmp_path / "pae"
    sign = ("sign", "statement", statement, "--key", "ed25519", "--format", "signature", "--output", signature)
    ok(site.client(*sign))
    kind, payload = b"application/vnd.in-toto+json", statement.read_bytes()
    encoded.write_bytes(b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload))
    verify = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(public_pem(site, "ed25519", tmp_path)), "-rawin"]
    files = ["-in", str(encoded), "-sigfile", str(signature)]
    ran = subprocess.run([*verify, *files], capture_output=True, text=True, check=False)
    assert "Verified Successfully" in ran.stdout, ran.stderr


def test_ed25519_signs_no_digest_and_says_so(site: Deployment) -> None:
    refused = site.client("sign", "digest", "--sha256", "ab" * 32, "--key", "ed25519")
    assert refused.returncode == 2, refused.stderr
    assert "whole messages" in refused.stderr


def test_a_receipt_of_ed25519_without_its_statement_says_what_was_not_verified(
    site: Deployment, statement: Path, tmp_path: Path
) -> None:
    receipt, pem = tmp_path / "receipt", public_pem(site, "ed25519", tmp_path)
    ok(site.client("sign", "statement", statement, "--key", "ed25519", "--receipt", receipt))
    verify = ("receipt", "verify", receipt, "--log-key", site.log_vkey, "--public-key", pem)
    assert json.loads(ok(site.client(*verify, "--json")))["signature_verified"] is False
    assert "--statement" in site.client(*verify).stderr


def test_the_same_request_of_ed25519_is_replayed(site: Deployment, statement: Path) -> None:
    sign = ("sign", "statement", statement, "--key", "ed25519", "--json", "--request-id")
    request = "0190c7a8-6b5e-7cc3-98c4-dc0c0c07398f"
    first, second = (json.loads(ok(site.client(*sign, request))) for _ in range(2))
    assert second["signature"] == first["signature"]
    assert (first["replayed"], second["replayed"]) == (False, True)


def test_an_algorithm_of_another_kind_is_refused_naming_what_there_is(site: Deployment, statement: Path) -> None:
    refused = site.client("sign", "statement", statement, "--key", "p521", "--algorithm", "rsa-pss-sha512")
    assert refused.returncode == 2
    assert "ecdsa-p521-sha512" in refused.stderr


@pytest.mark.parametrize("family", ["p521", "rsa", "ed25519"])
def test_models_are_signed_with_what_verifiers_of_models_accept(site: Deployment, tmp_path: Path, family: str) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"w" * 1000)
    signed = site.client("sign", "model", model, "--key", family)
    if family != "p521":
        assert signed.returncode != 0
        assert "no key for models" in signed.stderr
        assert not (model / "model.sig").exists()
        return
    ok(signed)
    command = [
        sys.executable,
        "-m",
        "model_signing",
        "verify",
        "key",
        str(model),
        "--signature",
        str(model / "model.sig"),
    ]
    ran = subprocess.run(
        [*command, "--public_key", str(public_pem(site, family, tmp_path))], capture_output=True, text=True, check=False
    )
    assert "Verification succeeded" in ran.stdout, ran.stderr


def test_a_token_shows_what_it_lists_and_what_it_has_accepted(site: Deployment) -> None:
    token = json.loads(ok(site.client("tokens", "show", "soft", "--json")))
    assert token["state"] == "READY"
    assert token["label"] == "greatseal"
    assert token["sessions"] == 2
    assert {each["algorithm"] for each in token["capabilities"] if each["proven"]} == {each.value for each in Algorithm}
    assert set(token["keys"]) == {f"keys/{name}" for name in (*KINDS, "release", "scratch")}
    shown = ok(site.client("tokens", "show", "soft"))
    assert "ed25519" in shown
    assert str(site.directory) not in shown
    assert "libsofthsm" not in json.dumps(token)
    assert [each["name"] for each in json.loads(ok(site.client("tokens", "list", "--json")))["tokens"]] == [
        "tokens/soft"
    ]


def test_tokens_are_shown_to_those_who_may_and_their_names_to_nobody_else(site: Deployment) -> None:
    missing = site.client("tokens", "show", "nowhere")
    assert missing.returncode == 2
    assert "tokens/nowhere" in missing.stderr
    stranger = site.add_client("stranger")
    for name in ("soft", "nowhere"):
        refused = site.client("tokens", "show", name, profile=stranger)
        assert refused.returncode == 3
        assert "readTokens" in refused.stderr
    denied = [json.loads(line) for line in ok(site.client("audit", "list", "--json")).splitlines()]
    assert "readTokens" in json.dumps(denied)
