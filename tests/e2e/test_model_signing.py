"""A model signed through a real daemon by a key in SoftHSM, and verified by everybody who should be able to."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import serialization

import model_site as site
from deployment import Deployment, greatseal

pytestmark = pytest.mark.softhsm


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return site.make_model(tmp_path / "llama")


def files_below(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def sign(
    deployment: Deployment, model: Path, *options: str | Path, expect: int = 0
) -> subprocess.CompletedProcess[str]:
    ran = deployment.client("sign", "model", model, *options)
    assert ran.returncode == expect, ran.stderr
    return ran


def test_a_signed_model_verifies_here_upstream_and_in_the_log(
    shared_deployment: Deployment, model: Path, tmp_path: Path
):
    key = shared_deployment.directory / "keys/release.pem"
    signature, receipt = model / "model.sig", model / "model.receipt"
    said = json.loads(sign(shared_deployment, model, "--receipt", receipt, "--json").stdout)
    assert (said["model"], said["files"], said["method"]) == ("llama", len(site.FILES), "key")

    ours = greatseal("verify", "model", model, "--signature", signature, "--public-key", key, "--json")
    assert json.loads(ours.stdout)["sha256"] == said["sha256"]

    command = [sys.executable, "-m", "model_signing", "verify", "key", model, "--signature", signature]
    theirs = subprocess.run([*command, "--public_key", key], capture_output=True, text=True, timeout=60, check=False)
    assert theirs.returncode == 0, theirs.stderr

    log = ("--log-key", shared_deployment.log_vkey, "--public-key", key)
    proven = greatseal("receipt", "verify", receipt, *log, "--model", model)
    assert proven.returncode == 0, proven.stderr

    other = site.make_model(tmp_path / "other", {"weights": b"x"})
    sign(shared_deployment, other)
    mixed = greatseal("receipt", "verify", receipt, *log, "--model", other)
    assert mixed.returncode == 6, mixed.stdout


def test_the_log_names_the_model_and_its_root(shared_deployment: Deployment, model: Path):
    said = json.loads(sign(shared_deployment, model, "--json").stdout)
    entry = shared_deployment.client("audit", "show", str(said["intent_index"])).stdout
    assert said["sha256"] in entry
    assert "llama" in entry


def test_the_same_request_again_returns_the_same_signature(shared_deployment: Deployment, model: Path):
    first = json.loads(sign(shared_deployment, model, "--json").stdout)
    before = (model / "model.sig").read_bytes()
    again = json.loads(sign(shared_deployment, model, "--json", "--request-id", first["request_id"]).stdout)
    assert again["replayed"]
    assert (model / "model.sig").read_bytes() == before


def test_a_model_that_changed_is_another_request(shared_deployment: Deployment, model: Path):
    first = json.loads(sign(shared_deployment, model, "--json").stdout)
    (model / "a-b").write_bytes(b"changed")
    before = files_below(model)
    ran = sign(shared_deployment, model, "--request-id", first["request_id"], expect=2)
    assert "REQUEST_ID_REUSED" in ran.stderr
    assert files_below(model) == before


@pytest.mark.parametrize(("options", "exit_code"), [(("--key", "keys/nothing"), 3), (("--method", "certificate"), 2)])
def test_a_refusal_leaves_nothing_behind(
    shared_deployment: Deployment, model: Path, options: tuple[str, ...], exit_code: int
):
    before = files_below(model.parent)
    assert sign(shared_deployment, model, *options, expect=exit_code).stderr
    assert files_below(model.parent) == before


def test_a_link_in_the_model_is_a_mistake_of_usage(shared_deployment: Deployment, model: Path):
    (model / "weights/link").symlink_to("00001.bin")
    ran = sign(shared_deployment, model, expect=2)
    assert "'weights/link' is a symbolic link" in ran.stderr
    assert not (model / "model.sig").exists()


def test_without_a_daemon_nothing_is_written_and_the_exit_code_is_5(new_deployment, model: Path):
    down = new_deployment(name="down")
    (down.directory / "run").mkdir(exist_ok=True)
    before = files_below(model)
    ran = down.client("--address", "127.0.0.1:1", "--timeout", "1", "sign", "model", model)
    assert ran.returncode == 5, ran.stderr
    assert files_below(model) == before


def test_ten_thousand_files_are_one_statement(shared_deployment: Deployment, tmp_path: Path):
    model = site.make_model(
        tmp_path / "many", {f"part-{n % 50:02}/tensor-{n:05}.bin": n.to_bytes(4) for n in range(10_000)}
    )
    assert json.loads(sign(shared_deployment, model, "--json").stdout)["files"] == 10_000
    key = shared_deployment.directory / "keys/release.pem"
    ran = greatseal("verify", "model", model, "--public-key", key, "--json")
    assert json.loads(ran.stdout)["verified"] is True


def certified(deployment: Deployment) -> Path:
    """Give the key `release` a certificate chain of a test authority; returns the root's PEM file."""
    public = serialization.load_pem_public_key((deployment.directory / "keys/release.pem").read_bytes())
    root = site.Authority.root()
    middle = root.intermediate()
    leaf = middle.leaf(SimpleNamespace(public_key=lambda: public))
    (deployment.directory / "release-chain.pem").write_bytes(site.certificate_pem(leaf, middle.certificate))
    deployment.edit(r'^(name = "release").*$', r"\g<1>" + '\ncertificate_chain = "release-chain.pem"')
    path = deployment.directory / "release-root.pem"
    path.write_bytes(site.certificate_pem(root.certificate))
    return path


def test_a_key_with_certificates_signs_what_verifies_by_the_root(deployment: Deployment, model: Path):
    root = certified(deployment)
    with deployment.running():
        said = json.loads(sign(deployment, model, "--json").stdout)
    assert said["method"] == "certificate"
    ours = greatseal("verify", "model", model, "--signature", model / "model.sig", "--root-cert", root, "--json")
    assert json.loads(ours.stdout)["signer"] == "CN=Model Release"
    command = [
        sys.executable,
        "-m",
        "model_signing",
        "verify",
        "certificate",
        model,
        "--signature",
        model / "model.sig",
    ]
    theirs = subprocess.run(
        [*command, "--certificate_chain", root], capture_output=True, text=True, timeout=60, check=False
    )
    assert theirs.returncode == 0, theirs.stderr
