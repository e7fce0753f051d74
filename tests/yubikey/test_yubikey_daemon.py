"""End to end, as an operator does it: generate on a YubiKey, configure it, sign a model that others verify."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from yubikeys import YubiKeyRig

import model_site
from deployment import Deployment, greatseal, greatseald
from greatseald.bootstrap.compose import read_settings
from greatseald.config import ConfigError

pytestmark = [pytest.mark.yubikey, pytest.mark.softhsm]
SERIAL = 11111111


def generate(rig: YubiKeyRig, out: Path, *options: str | Path, serial: int = SERIAL):
    return greatseald("yubikey", "generate", "--serial", str(serial), "--out", out, *options, env=rig.environment)


def add_yubikey(deployment: Deployment, rig: YubiKeyRig, *, slot: str = "9c", more: str = "") -> None:
    pin = deployment.directory / "yubikey-pin"
    pin.touch(0o600)
    pin.write_text("123456\n")
    environment = ", ".join(f'{name} = "{value}"' for name, value in rig.environment.items())
    deployment.append(
        f'[[tokens]]\nname = "yk"\ntype = "yubikey-piv"\nserial = "{SERIAL}"\npin_file = "yubikey-pin"\n'
        f'environment = {{ {environment} }}\nattestation_roots = ["{rig.roots}"]\n{more}\n'
        f'[[keys]]\nname = "board"\ntoken = "yk"\nuri = "piv:slot={slot}"\nalgorithms = ["ecdsa-p256-sha256"]\n'
    )
    deployment.edit(r'keys = \["release"\]', 'keys = ["release", "board"]')


def test_a_key_generated_on_a_yubikey_signs_a_model_that_upstream_verifies(
    deployment: Deployment, rig: YubiKeyRig, tmp_path: Path
):
    made = generate(rig, tmp_path / "keys", "--slot", "9c", "--pin-policy", "always", "--attestation-roots", rig.roots)
    assert made.returncode == 0, made.stderr
    public, attestation = tmp_path / f"keys/{SERIAL}-9c.pem", tmp_path / f"keys/{SERIAL}-9c-attestation.pem"
    assert "PIN always, touch never, generated here" in made.stdout
    assert attestation.read_text().count("BEGIN CERTIFICATE") == 3

    add_yubikey(deployment, rig)
    checked = greatseald("check-config", deployment.config)
    assert checked.returncode == 0, checked.stderr
    model = model_site.make_model(tmp_path / "llama")
    signature, receipt = model / "model.sig", model / "model.receipt"
    with deployment.running():
        ran = deployment.client("sign", "model", model, "--key", "board", "--receipt", receipt)
        assert ran.returncode == 0, ran.stderr
        listed = greatseald("yubikey", "list", env=rig.environment)
        assert f"{SERIAL}" not in listed.stdout  # the daemon holds it, so nobody else can ask it
        assert "another program holds it" in listed.stdout
        entries = [
            json.loads(line)
            for line in deployment.client("--json", "audit", "list", "--limit", "0").stdout.splitlines()
        ]
    attested = [each for each in entries if "attested" in json.dumps(each)]
    assert len(attested) == 1
    assert f"generated in YubiKey {SERIAL}" in json.dumps(attested)
    stored = (deployment.directory / "tokens/yk/state/attestation-9c.pem").read_text()
    assert stored.splitlines()[0] == attestation.read_text().splitlines()[0]  # a device signs a new one each time
    assert stored.count("BEGIN CERTIFICATE") == 3

    command = [sys.executable, "-m", "model_signing", "verify", "key", model, "--signature", signature]
    theirs = subprocess.run([*command, "--public_key", public], capture_output=True, text=True, timeout=60, check=False)
    assert theirs.returncode == 0, theirs.stderr
    log = ("--log-key", deployment.log_vkey, "--public-key", public)
    proven = greatseal("receipt", "verify", receipt, *log, "--model", model)
    assert proven.returncode == 0, proven.stderr


def test_the_operator_sees_that_a_touch_is_waited_for(deployment: Deployment, rig: YubiKeyRig, tmp_path: Path):
    assert generate(rig, tmp_path / "keys", "--slot", "9a", "--touch-policy", "always").returncode == 0
    add_yubikey(deployment, rig, slot="9a")
    rig.switch(SERIAL, touch=False, touch_wait=60.0)
    model = model_site.make_model(tmp_path / "llama")
    with deployment.running():
        signing = subprocess.Popen(
            [Path(sys.executable).with_name("greatseal"), "--profile", deployment.profile, "sign", "model", model, "--key", "board"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while "token_waits_for_touch" not in deployment.stderr and time.monotonic() < deadline:
            time.sleep(0.05)
        assert f"touch YubiKey {SERIAL}" in deployment.stderr
        shown = deployment.client("--json", "keys", "list")
        assert f"touch YubiKey {SERIAL}" in shown.stdout, shown.stdout + shown.stderr
        address = re.search(
            r'"address": ?"([^"]+)"[^\n]*"metrics_listening"|"metrics_listening"[^\n]*"address": ?"([^"]+)"',
            deployment.stderr,
        )
        assert address is not None
        with urllib.request.urlopen(f"http://{address[1] or address[2]}/metrics", timeout=10) as response:
            assert 'greatseald_token_touch_awaited{token="yk"} 1.0' in response.read().decode()
        rig.switch(SERIAL, touch=True)
        _, said = signing.communicate(timeout=60)
        assert signing.returncode == 0, said


def test_generate_makes_what_was_asked_for_or_nothing(rig: YubiKeyRig, tmp_path: Path):
    out = tmp_path / "keys"
    for kind, slot in (("p384", "82"), ("rsa2048", "9d"), ("ed25519", "9e")):
        made = generate(rig, out, "--slot", slot, "--type", kind, "--touch-policy", "cached", "--json")
        assert made.returncode == 0, made.stderr
        told = json.loads(made.stdout)
        assert (told["pin_policy"], told["touch_policy"], told["generated"]) == ("once", "cached", True)
        load_pem_public_key(Path(told["public_key"]).read_bytes())

    listed = json.loads(greatseald("yubikey", "list", "--json", env=rig.environment).stdout)["yubikeys"]
    assert [each["serial"] for each in listed] == ["11111111", "22222222", "33333333"]
    assert [key["uri"] for key in listed[0]["keys"]] == ["piv:slot=9d", "piv:slot=9e", "piv:slot=82"]

    wrong_key = tmp_path / "management"
    wrong_key.touch(0o600)
    wrong_key.write_text("00" * 24)
    other_roots = tmp_path / "empty.pem"
    other_roots.write_text("nothing\n")
    for options, code, why in (
        (("--slot", "9d"), 2, "holds a key (RSA2048): add --overwrite"),
        (("--slot", "f9"), 2, "attests the others"),
        (("--slot", "9z"), 2, "names no key of a YubiKey"),
        (("--slot", "83", "--type", "p521"), 2, "write one of p256"),
        (("--slot", "83", "--management-key-file", wrong_key), 2, "the management key was refused"),
        (("--slot", "83", "--attestation-roots", other_roots), 2, "cannot be read as PEM"),
    ):
        refused = generate(rig, out, *options)
        assert refused.returncode == code, refused.stderr
        assert why in refused.stderr
        assert "Traceback" not in refused.stderr
    assert not (out / f"{SERIAL}-83.pem").exists()
    refused = generate(rig, out, "--slot", "9a", "--type", "ed25519", "--overwrite", serial=33333333)
    assert "requires YubiKey 5.7" in refused.stderr
    assert generate(rig, out, "--slot", "9a", serial=99999999).returncode == 5

    rig.set(SERIAL, management_key="ab" * 24)
    assert "not the factory's" in generate(rig, out, "--slot", "9a").stderr
    wrong_key.write_text("ab" * 24 + "\n")
    assert generate(rig, out, "--slot", "9a", "--management-key-file", wrong_key).returncode == 0
    wrong_key.chmod(0o644)
    assert "others can read" in generate(rig, out, "--slot", "83", "--management-key-file", wrong_key).stderr


def test_generate_says_that_a_key_must_not_be_used_when_its_attestation_lies(rig: YubiKeyRig, tmp_path: Path):
    rig.switch(SERIAL, attested_serial=5)
    made = generate(rig, tmp_path, "--slot", "9a", "--attestation-roots", rig.roots)
    assert made.returncode == 6
    assert "must not be used: the attestation is of YubiKey 5" in made.stderr
    assert not list(tmp_path.glob("*.pem"))


def test_a_wrong_configuration_is_told_by_line_and_key(deployment: Deployment, rig: YubiKeyRig):
    add_yubikey(deployment, rig)
    text = deployment.config.read_text()
    slot, serial = 'uri = "piv:slot=9c"', f'serial = "{SERIAL}"'
    for old, new, why in (
        (slot, 'uri = "pkcs11:id=%02"', 'write uri = "piv:slot=9c"'),
        (slot, 'uri = "piv:slot=f9"', "attests the others"),
        (slot, 'uri = "piv:9c"', "names no key of a YubiKey"),
        (serial, f"serial = {SERIAL}", "must be a string"),
        (serial, 'serial = "0011"', "without leading zeroes"),
        (serial, f'{serial}\nreader = "x"', "is not a known key"),
        (serial, f'{serial}\nmanagement_key_file = "greatseald.toml"', ""),
        ('type = "yubikey-piv"', 'type = "yubikey"', "must be 'pkcs11' or 'yubikey-piv'"),
        ('token = "yk"', 'token = "soft"', "is reached through PKCS#11"),
    ):
        assert text.count(old) == 1
        deployment.config.write_text(text.replace(old, new))
        if not why:
            read_settings(deployment.config, {})
            continue
        with pytest.raises(ConfigError) as refused:
            read_settings(deployment.config, {})
        assert why in "\n".join(str(problem) for problem in refused.value.problems)
