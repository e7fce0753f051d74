"""`greatseald client add` issues a certificate that works at once, or changes nothing."""

from __future__ import annotations

import json
import signal
import stat
import time
import tomllib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from deployment import Deployment

pytestmark = pytest.mark.softhsm


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return Deployment.create(tmp_path_factory.mktemp("clients"))


def snapshot(deployment: Deployment) -> dict[str, bytes]:
    return {
        str(path.relative_to(deployment.directory)): path.read_bytes()
        for path in deployment.directory.rglob("*")
        if path.is_file()
    }


def test_a_client_without_actions_may_only_ask_who_it_is(deployment):
    profile = deployment.add_client("guest")
    with deployment.running():
        told = json.loads(deployment.client("--json", "whoami", profile=profile).stdout)
        listed = deployment.client("--json", "keys", "list", profile=profile)
        denied = deployment.client("audit", "list", profile=profile)
    assert (told["client"], told["grants"]) == ("spiffe://greatseal.local/guest", [])
    assert (listed.returncode, listed.stdout) == (3, ""), listed.stderr
    assert denied.returncode == 3, denied.stderr


def test_a_client_with_actions_may_do_them_and_no_more(deployment):
    profile = deployment.add_client("auditor", "--actions", "readAudit")
    with deployment.running():
        assert deployment.client("audit", "checkpoint", profile=profile).returncode == 0
        signed = deployment.client("sign", "digest", "--sha256", "00" * 32, "--key", "keys/scratch", profile=profile)
    assert signed.returncode == 3, signed.stderr


def test_a_running_daemon_reads_the_new_rule_on_sighup(deployment):
    with deployment.running():
        profile = deployment.add_client("late", "--actions", "readAudit")
        assert deployment.client("audit", "checkpoint", profile=profile).returncode == 3
        deployment.signal(signal.SIGHUP)
        deadline = time.monotonic() + 20
        while deployment.client("audit", "checkpoint", profile=profile).returncode != 0:
            assert time.monotonic() < deadline, deployment.stderr


def test_the_certificate_lives_as_long_as_it_was_told(made):
    made.add_client("brief", "--days", "3")
    certificate = x509.load_pem_x509_certificate((made.directory / "pki/brief.pem").read_bytes())
    assert abs(certificate.not_valid_after_utc - datetime.now(UTC) - timedelta(days=3)) < timedelta(minutes=10)
    assert stat.S_IMODE((made.directory / "pki/brief.key").stat().st_mode) == 0o600


def test_options_may_be_repeated_or_separated_by_commas(made):
    made.add_client("many", "--actions", "sign,readKeys", "--actions", "readAudit", "--keys", "release, scratch")
    (rule,) = [rule for rule in tomllib.loads(made.config.read_text())["allow"] if rule["client"].endswith("/many")]
    assert rule["actions"] == ["sign", "readKeys", "readAudit"]
    assert rule["keys"] == ["release", "scratch"]
    assert rule["payload_types"] == ["application/vnd.in-toto+json"]


def test_what_stood_in_the_configuration_stays_as_it_was(made):
    made.append("# a comment of the operator's")
    before = made.config.read_text()
    mode = stat.S_IMODE(made.config.stat().st_mode)
    made.add_client("another", "--actions", "readAudit")
    assert made.config.read_text().startswith(before)
    assert stat.S_IMODE(made.config.stat().st_mode) == mode


def test_json_names_the_profile_the_serial_and_the_end(made):
    done = made.daemon("client", "add", "scripted", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    certificate = x509.load_pem_x509_certificate((made.directory / "pki/scripted.pem").read_bytes())
    assert told["client"] == "spiffe://greatseal.local/scripted"
    assert int(told["serial"], 16) == certificate.serial_number
    assert told["not_after"].startswith(f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M}")
    assert told["rule_added"] is False


@pytest.mark.parametrize(
    "arguments,expected",
    [
        (("pipeline",), "exists already"),
        (("ca",), "exists already"),
        (("server",), "exists already"),
        (("../escape",), "is not a client name"),
        (("UPPER",), "is not a client name"),
        (("x", "--days", "0"), "1 to 825 days"),
        (("x", "--days", "9999"), "1 to 825 days"),
        (("x", "--actions", "sing", "--keys", "release"), "sing"),
        (("x", "--actions", "sign", "--keys", "relaese"), "relaese"),
        (("x", "--actions", "sign"), "keys"),
        (("x", "--keys", "release"), "--actions"),
    ],
)
def test_a_wrong_argument_is_a_usage_error_and_changes_nothing(made, arguments, expected):
    before = snapshot(made)
    done = made.daemon("client", "add", *arguments)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(made) == before


def test_a_configuration_with_errors_is_named_by_line_and_changes_nothing(deployment):
    deployment.edit(r"^sessions = 2", "sesions = 2")
    before = snapshot(deployment)
    done = deployment.daemon("client", "add", "x")
    assert done.returncode == 2
    line = deployment.config.read_text().split("sesions")[0].count("\n") + 1
    assert f"greatseald.toml:{line}" in done.stderr
    assert "sesions" in done.stderr
    assert snapshot(deployment) == before


def test_a_ca_key_that_others_can_read_is_refused(deployment):
    (deployment.directory / "pki/ca.key").chmod(0o644)
    done = deployment.daemon("client", "add", "x")
    assert done.returncode == 2
    assert "chmod 600" in done.stderr
    assert not (deployment.directory / "pki/x.pem").exists()


def test_without_a_local_ca_other_certificates_are_pointed_at(deployment):
    (deployment.directory / "pki/ca.key").unlink()
    done = deployment.daemon("client", "add", "x")
    assert done.returncode == 2
    assert "ca.key" in done.stderr
    assert "another PKI" in done.stderr


def test_a_missing_configuration_is_a_usage_error(deployment, tmp_path):
    deployment.config = tmp_path / "nothere" / "greatseald.toml"
    done = deployment.daemon("client", "add", "x")
    assert done.returncode == 2
    assert str(tmp_path / "nothere") in done.stderr
