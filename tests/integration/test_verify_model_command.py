"""`greatseal verify model` as a person or a pipeline meets it: words, exit codes, JSON."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sysconfig
from pathlib import Path

import pytest

import model_site as site

GREATSEAL = Path(sysconfig.get_path("scripts")) / "greatseal"
KEY = site.new_key()
ROOT = site.Authority.root()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "key.pem").write_bytes(site.public_pem(KEY))
    (tmp_path / "root.pem").write_bytes(site.certificate_pem(ROOT.certificate))
    model = site.make_model(tmp_path / "llama")
    site.sign_locally(model, KEY, [ROOT.leaf(KEY)])
    return model


def verify(model: Path, *options: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [GREATSEAL, "verify", "model", model, *options]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=model.parent)
    assert ran.returncode == expect, ran.stderr
    return ran


def test_a_good_model_is_described_on_stdout(model: Path):
    for trust in (("--public-key", "key.pem"), ("--root-cert", "root.pem")):
        ran = verify(model, "--signature", model / "model.sig", *trust)
        assert "llama" in ran.stdout
        assert ".gitattributes" in ran.stderr
        assert "OK" in ran.stderr
    assert "CN=Model Release" in ran.stdout


def test_json_is_one_object_on_stdout(model: Path):
    said = json.loads(verify(model, "--root-cert", "root.pem", "--json").stdout)
    assert (said["verified"], said["model"], said["files"]) == (True, "llama", len(site.FILES))
    assert said["signer"] == "CN=Model Release"


def test_what_differs_is_listed_and_the_exit_code_is_6(model: Path):
    (model / "a-b").write_bytes(b"changed")
    (model / "a/b").unlink()
    (model / "extra").write_bytes(b"")
    ran = verify(model, "--public-key", "key.pem", expect=6)
    assert ran.stdout.splitlines() == ["changed\ta-b", "missing\ta/b", "extra\textra"]
    assert "not the one that was signed" in ran.stderr
    said = json.loads(verify(model, "--public-key", "key.pem", "--json", expect=6).stdout)
    assert said == {"verified": False, "changed": ["a-b"], "missing": ["a/b"], "extra": ["extra"]}


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda model: (model.parent / "key.pem").write_bytes(site.public_pem(site.new_key())), "another key"),
        (lambda model: (model / "link").symlink_to("a-b"), "'link' is a symbolic link"),
        (lambda model: (model / "model.sig").write_bytes(b"{}"), "mediaType"),
        (lambda model: (model / "model.sig").unlink(), "cannot be read"),
    ],
    ids=["key", "link", "signature file", "no signature file"],
)
def test_every_other_failure_is_6_and_says_why(model: Path, spoil, why: str):
    spoil(model)
    ran = verify(model, "--public-key", "key.pem", expect=6)
    assert why in ran.stderr
    assert not ran.stdout
    assert "Traceback" not in ran.stderr


def test_a_wrong_root_is_6(model: Path):
    (model.parent / "root.pem").write_bytes(site.certificate_pem(site.Authority.root().certificate))
    assert "does not lead to the trusted root" in verify(model, "--root-cert", "root.pem", expect=6).stderr


@pytest.mark.parametrize(
    "options", [(), ("--public-key", "key.pem", "--root-cert", "root.pem"), ("--public-key", "nowhere.pem")]
)
def test_unclear_trust_is_a_mistake_of_usage(model: Path, options: tuple[str, ...]):
    assert verify(model, *options, expect=2).stderr


def on_terminal(*command: str | Path, **environment: str) -> tuple[str, str]:
    """What a command writes to a pipe on stdout, and to a terminal on stderr."""
    ours, theirs = pty.openpty()
    try:
        variables = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "NO_COLOR": "1"} | environment
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=variables, timeout=60, check=True)
        os.write(theirs, b"END")
        shown = b""
        while not shown.endswith(b"END"):
            shown += os.read(ours, 1 << 16)
    finally:
        os.close(ours)
        os.close(theirs)
    return ran.stdout.decode(), shown.removesuffix(b"END").decode()


def test_a_terminal_gets_a_progress_bar_and_a_pipe_none(model: Path):
    command = (GREATSEAL, "verify", "model", model, "--public-key", model.parent / "key.pem")
    stdout, shown = on_terminal(*command)
    assert "verifying" in shown
    assert "MiB/s" in shown
    assert "verifying" not in stdout
    assert "verifying" not in verify(model, "--public-key", "key.pem").stderr
    for silent in ([*command, "--no-progress"], [*command, "--json"]):
        assert "verifying" not in on_terminal(*silent)[1]
    assert "\x1b" not in on_terminal(*command, TERM="dumb")[1]


def test_a_pipe_gets_lines_where_progress_is_asked_for(model: Path):
    ran = verify(model, "--public-key", "key.pem", "--progress", "--json")
    size = json.loads(ran.stdout)["bytes"]
    assert size
    first, *_ = lines = [line for line in ran.stderr.splitlines() if line.startswith("verifying: ")]
    assert lines[-1].startswith("verifying: 100 %, 2.2 MiB of 2.2 MiB, ")
    assert first.endswith("/s")
    assert "\x1b" not in ran.stderr
    assert "\r" not in ran.stderr
