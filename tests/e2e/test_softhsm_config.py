"""The script that makes throwaway tokens: what it prints is a configuration, and every kind of key in it signs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from deployment import Deployment, run

pytestmark = pytest.mark.softhsm

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "softhsm-config/create_token.py"
KINDS = {"small": "ec-p256", "wide": "ec-p384", "widest": "ec-p521", "big": "rsa-2048", "pure": "ed25519"}


def test_a_throwaway_token_is_used_with_the_tables_that_are_printed(tmp_path: Path):
    directory = tmp_path / "token"
    made = run(
        sys.executable,
        SCRIPT,
        directory,
        "--label",
        "second",
        *(f"--key={name}:{kind}" for name, kind in KINDS.items()),
    )
    assert made.returncode == 0, made.stderr
    pin = directory / "pin"
    assert pin.stat().st_mode & 0o777 == 0o600
    assert pin.read_text().strip() not in made.stdout + made.stderr
    deployment = Deployment.create(tmp_path)
    deployment.append(made.stdout)
    with deployment.running():
        profile = deployment.add_client("tester", "--actions", "readKeys", "--keys", ",".join(KINDS))
        deployment.reload()
        for name in KINDS:
            shown = deployment.client("keys", "show", name, profile=profile)
            assert shown.returncode == 0, shown.stderr
            public = deployment.client("keys", "public", name, profile=profile)
            assert public.stdout.strip() == (directory / f"{name}.pem").read_text().strip()
    again = run(sys.executable, SCRIPT, directory, "--key", "other:ec-p256")
    assert again.returncode == 1
    assert "exists" in again.stderr.lower()


def test_the_template_is_a_configuration_once_the_directory_is_filled_in(tmp_path: Path):
    (tmp_path / "tokens").mkdir()
    text = (ROOT / "softhsm-config/softhsm2.conf.in").read_text().replace("@DIRECTORY@", str(tmp_path))
    (tmp_path / "softhsm2.conf").write_text(text)
    made = run(
        "softhsm2-util", "--init-token", "--free", "--label", "own", "--so-pin", "12345678", "--pin", "1234",
        env={"SOFTHSM2_CONF": str(tmp_path / "softhsm2.conf")},
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert re.search(r"initialized", made.stdout + made.stderr)
    assert any((tmp_path / "tokens").iterdir())
