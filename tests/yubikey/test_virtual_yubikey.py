"""The fixture itself: Yubico's own tool, unmodified, works with a virtual YubiKey through a real pcscd."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from yubikeys import YubiKeyRig

pytestmark = pytest.mark.yubikey


def ykman(rig: YubiKeyRig, *arguments: str, tries: int = 1) -> subprocess.CompletedProcess[str]:
    """Run ykman; several `tries` for what has to succeed, as it gives up on a busy machine when a device is slow to answer."""
    for left in reversed(range(tries)):
        ran = subprocess.run(
            [str(Path(sys.executable).with_name("ykman")), *arguments],
            env={**os.environ, **rig.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if ran.returncode == 0 or not left:
            return ran
    raise AssertionError


def test_ykman_lists_generates_attests_and_counts_pin_tries(tmp_path: Path):
    with YubiKeyRig([{"serial": 11111111}, {"serial": 22222222, "version": (5, 4, 3)}]) as rig:
        listed = ykman(rig, "list", tries=3)
        assert "Serial: 11111111" in listed.stdout, listed
        assert "(5.4.3)" in listed.stdout

        public, attestation = tmp_path / "public.pem", tmp_path / "attestation.pem"
        key = "010203040506070801020304050607080102030405060708"
        made = ykman(
            rig,
            "--device",
            "22222222",
            "piv",
            "keys",
            "generate",
            "-m",
            key,
            "-a",
            "ECCP384",
            "9c",
            str(public),
            tries=3,
        )
        assert made.returncode == 0, made.stderr
        attested_by = ykman(rig, "--device", "22222222", "piv", "keys", "attest", "9c", str(attestation), tries=3)
        assert attested_by.returncode == 0, attested_by.stderr
        attested = x509.load_pem_x509_certificate(attestation.read_bytes()).public_key()
        assert attested == load_pem_public_key(public.read_bytes())

        wrong = ykman(rig, "--device", "11111111", "piv", "access", "change-pin", "-P", "999999", "-n", "111111")
        assert wrong.returncode != 0
        assert rig.look(11111111)["tries"] == 2
        assert rig.look(22222222)["tries"] == 3
