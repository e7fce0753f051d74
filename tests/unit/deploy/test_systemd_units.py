"""The units are as closed as the documentation says, fit the commands they start, and belong together."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).resolve().parents[3] / "deploy/systemd"
UNITS = ("greatseald.service", "greatseald-host@.service")
MOST_EXPOSURE = 1.5


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def setting(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", (SYSTEMD / unit).read_text(), re.MULTILINE)


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_is_not_exposed_more_than_it_must_be(unit):
    done = analyze("security", "--offline=true", SYSTEMD / unit)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSURE, done.stdout


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_has_no_setting_that_systemd_does_not_know(unit, tmp_path):
    # As installed, but for the program, which is not at that place here.
    program = tmp_path / "greatseald"
    program.symlink_to(sys.executable)
    for name in UNITS:
        shutil.copy(SYSTEMD / name, tmp_path)
    text = (tmp_path / unit).read_text()
    (tmp_path / unit).write_text(text.replace("/opt/greatseal/bin/greatseald", str(program)))
    done = analyze("verify", "--man=no", tmp_path / unit)
    assert str(tmp_path) not in done.stderr.replace(str(program), ""), done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("unit", UNITS)
def test_what_a_unit_starts_is_a_command_with_these_options(unit):
    (command,) = setting(unit, "ExecStart")
    words = command.replace("%i", "soft").split()
    asked = [*words[1 : -2 if "--front" in words else None], "--help"]
    done = subprocess.run([sys.executable, "-m", "greatseald", *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for option in (word for word in words if word.startswith("--")):
        assert option in done.stdout


def test_front_and_hosts_are_different_users_that_sysusers_makes():
    users = set(re.findall(r"^u\s+(\S+)", (SYSTEMD / "sysusers.conf").read_text(), re.MULTILINE))
    (front,), (host,) = setting(UNITS[0], "User"), setting(UNITS[1], "User")
    assert front != host
    assert {front, host.replace("%i", "soft")} <= users
    (command,) = setting(UNITS[1], "ExecStart")
    assert command.endswith(f"--front {front}")
    assert setting(UNITS[1], "SupplementaryGroups") == [front]


def test_the_pin_is_a_credential_of_the_host_alone():
    assert any(value.startswith("pin:") for value in setting(UNITS[1], "LoadCredentialEncrypted"))
    assert not any("pin" in value for value in setting(UNITS[0], "LoadCredentialEncrypted"))
    for unit in UNITS:
        assert not setting(unit, "Environment")
        assert not setting(unit, "EnvironmentFile")


def test_users_and_directories_are_in_the_syntax_of_their_tools(tmp_path):
    for tool, file in (("systemd-sysusers", "sysusers.conf"), ("systemd-tmpfiles", "tmpfiles.conf")):
        root = tmp_path / tool
        (root / "etc").mkdir(parents=True)
        (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\n")
        arguments = ["--create"] if tool == "systemd-tmpfiles" else []
        done = subprocess.run(
            [tool, f"--root={root}", *arguments, str(SYSTEMD / file)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        if tool == "systemd-sysusers":
            assert "greatseald-host-soft" in (root / "etc/passwd").read_text()
        else:
            assert (root / "etc/greatseal/credentials").stat().st_mode & 0o777 == 0o700
