"""`greatseald init` makes a whole installation, or nothing."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from deployment import WITHOUT_OVERRIDE, Deployment, clean_environment, greatseald, run

pytestmark = pytest.mark.softhsm

SECRETS = {"pki/ca.key", "pki/server.key", "pki/pipeline.key", "log/log.key", "log/head-mac.key", "tokens/soft/pin"}
FILES = SECRETS | {
    "greatseald.toml",
    "client.toml",
    "pki/ca.pem",
    "pki/server.pem",
    "pki/pipeline.pem",
    "log/log.vkey",
    "tokens/soft/softhsm2.conf",
    "keys/release.pem",
    "keys/scratch.pem",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return Deployment.create(tmp_path_factory.mktemp("init"))


def test_every_file_of_the_documented_tree_is_there(made):
    present = {str(path.relative_to(made.directory)) for path in made.directory.rglob("*") if path.is_file()}
    assert present >= FILES
    assert {path for path in present - FILES if not path.startswith("tokens/soft/tokens/")} == set()


def test_secrets_and_directories_belong_to_the_owner_alone(made):
    for path in (made.directory, *made.directory.rglob("*")):
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    for name in SECRETS | {"greatseald.toml", "tokens/soft/softhsm2.conf"}:
        assert stat.S_IMODE((made.directory / name).stat().st_mode) == 0o600, name
    for path in (made.directory / "tokens/soft/tokens").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_the_configuration_is_valid(made):
    done = greatseald("check-config", made.config)
    assert done.returncode == 0, done.stderr


def test_the_pin_is_long_random_and_in_no_other_file(made):
    pin = (made.directory / "tokens/soft/pin").read_text().strip()
    assert len(pin) >= 24
    for path in made.directory.rglob("*"):
        if path.is_file() and path.name != "pin":
            assert pin.encode() not in path.read_bytes(), path


def test_the_token_holds_two_p256_keys_that_cannot_be_taken_out(made):
    pin = made.directory / "tokens/soft/pin"
    config = tomllib.loads(made.config.read_text())
    listed = subprocess.run(
        ["pkcs11-tool", "--module", config["tokens"][0]["module"], "--token-label", "greatseal", "--login",
         "--pin", "env:TEST_PIN", "--list-objects", "--type", "privkey"],
        env=clean_environment({**config["tokens"][0]["environment"], "TEST_PIN": pin.read_text().strip()}),
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert sorted(line.split()[1] for line in listed.splitlines() if "label:" in line) == ["release", "scratch"]
    assert listed.count("never extractable") == 2, listed
    assert listed.count("sensitive") >= 2, listed
    for name in ("release", "scratch"):
        key = load_pem_public_key((made.directory / "keys" / f"{name}.pem").read_bytes())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"


def test_two_installations_share_nothing(made, new_deployment):
    other = new_deployment()
    for name in SECRETS | {"log/log.vkey", "keys/release.pem"}:
        assert (made.directory / name).read_bytes() != (other.directory / name).read_bytes(), name


def test_openssl_accepts_the_certificates(made):
    pki = made.directory / "pki"
    for leaf, purpose in (("server", "sslserver"), ("pipeline", "sslclient")):
        done = run(
            "openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", pki / "ca.pem", pki / f"{leaf}.pem"
        )
        assert done.returncode == 0, done.stderr
    wrong = run("openssl", "verify", "-purpose", "sslserver", "-CAfile", pki / "ca.pem", pki / "pipeline.pem")
    assert wrong.returncode != 0


def test_the_server_certificate_bears_the_names_it_was_told(new_deployment):
    made = new_deployment("--server-name", "seal.example.org", "--server-name", "192.0.2.7")
    certificate = x509.load_pem_x509_certificate((made.directory / "pki/server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "seal.example.org"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1", "192.0.2.7"]


def test_json_tells_programs_where_everything_is(tmp_path):
    done = greatseald("init", tmp_path / "seal", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["config"] == str(tmp_path / "seal" / "greatseald.toml")
    assert Path(told["public_keys"]["release"]).is_file()
    assert told["log_vkey"] == (tmp_path / "seal/log/log.vkey").read_text().strip()


def test_next_steps_are_told_and_stdout_stays_empty(tmp_path):
    done = greatseald("init", tmp_path / "seal")
    assert done.stdout == ""
    assert f"greatseald serve --config {tmp_path / 'seal' / 'greatseald.toml'}" in done.stderr


def test_a_directory_with_a_space_and_an_umlaut_works(new_deployment):
    made = new_deployment(name="my sëal")
    with made.running():
        assert made.client("whoami").returncode == 0


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
def test_an_existing_target_is_refused_and_untouched(tmp_path, kind):
    target = tmp_path / "seal"
    {
        "directory": target.mkdir,
        "file": lambda: target.write_text("mine"),
        "dangling link": lambda: target.symlink_to(tmp_path / "nowhere"),
    }[kind]()
    done = greatseald("init", target)
    assert done.returncode == 2
    assert f"{target} exists already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["seal"]
    assert kind != "directory" or not list(target.iterdir())


@pytest.mark.parametrize(
    "options,expected",
    [
        (("--listen", "nowhere"), "--listen"),
        (("--listen", "127.0.0.1:99999"), "--listen"),
        (("--metrics-listen", "0.0.0.0:9464"), "loopback"),
        (("--origin", "has space/log"), "--origin"),
        (("--origin", "noslash"), "log.origin"),
        (("--origin", "a+b/log"), "--origin"),
        (("--trust-domain", "Not A Domain"), "trust domain"),
        (("--server-name", "exämple.org"), "DNS name"),
    ],
)
def test_a_wrong_option_is_a_usage_error_and_leaves_nothing(tmp_path, options, expected):
    done = greatseald("init", tmp_path / "seal", *options)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_module_is_named_and_leaves_nothing(tmp_path):
    done = greatseald("init", tmp_path / "seal", "--module", tmp_path / "libnothere.so")
    assert done.returncode == 5
    assert "libnothere.so" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_is_none_is_named_and_leaves_nothing(tmp_path):
    fake = tmp_path / "fake.so"
    fake.write_text("this is not a library")
    done = greatseald("init", tmp_path / "seal", "--module", fake)
    assert done.returncode == 5
    assert "fake.so" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["fake.so"]


def test_a_missing_parent_is_a_usage_error(tmp_path):
    done = greatseald("init", tmp_path / "a" / "seal")
    assert done.returncode == 2
    assert f"{tmp_path / 'a'} is not a directory" in done.stderr


@pytest.mark.root
def test_an_unwritable_parent_is_a_usage_error(tmp_path):
    parent = tmp_path / "closed"
    parent.mkdir(mode=0o555)
    done = run(*WITHOUT_OVERRIDE, sys.executable, "-m", "greatseald", "init", parent / "seal")
    assert done.returncode == 2, done.stderr
    assert f"{parent} is not writable" in done.stderr
    assert list(parent.iterdir()) == []
