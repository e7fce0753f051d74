"""Every class of failure has the exit code that the documentation names, and says itself to people and to programs."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client_peer import Peer, refusal, served
from deployment import SCRIPTS, clean_environment, greatseal
from greatseal import errors
from greatseal.cli import failures
from greatseal.profile import Profile

GUIDE = Path(__file__).resolve().parents[2] / "docs/user-guide/cli.md"


@pytest.fixture(scope="module")
def connected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Peer, Profile]]:
    peer = Peer()
    with served(peer, tmp_path_factory.mktemp("peer")) as profile:
        yield peer, profile


def ask(profile: Profile, *arguments: str) -> subprocess.CompletedProcess[str]:
    names = ("address", "server_name", "ca_cert", "client_cert", "client_key", "log_key")
    options = [part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(profile, name)))]
    return greatseal("--timeout", "2", *options, *arguments)


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        ("INTERNAL", "", 1),
        ("INVALID_ARGUMENT", "STATEMENT_INVALID", 2),
        ("ALREADY_EXISTS", "REQUEST_ID_REUSED", 2),
        ("NOT_FOUND", "KEY_NOT_FOUND", 2),
        ("UNAUTHENTICATED", "CALLER_UNIDENTIFIED", 3),
        ("PERMISSION_DENIED", "ACCESS_DENIED", 3),
        ("FAILED_PRECONDITION", "KEY_HALTED", 5),
        ("ABORTED", "REQUEST_IN_FLIGHT", 5),
        ("RESOURCE_EXHAUSTED", "OVERLOADED", 5),
        ("DEADLINE_EXCEEDED", "DEADLINE", 5),
    ],
)
def test_what_the_daemon_refuses(connected: tuple[Peer, Profile], code: str, reason: str, exit_code: int):
    peer, profile = connected
    for form in ((), ("--json",)):
        peer.faults[:] = [refusal(code, reason, "this is why", field="key")]
        done = ask(profile, *form, "whoami")
        assert done.returncode == exit_code, done.stderr
        assert done.stdout == ""
        assert "this is why" in done.stderr
        assert "Traceback" not in done.stderr
    told = json.loads(done.stderr)["error"]
    assert (told["exit_code"], told["code"], told["reason"]) == (exit_code, code, reason)
    assert told["metadata"] == ({"field": "key"} if reason else {})


def test_what_does_not_verify(connected: tuple[Peer, Profile]):
    peer, profile = connected

    def lie(_method: str, answer: Any) -> None:
        answer.size += 1

    peer.tamper = lie
    try:
        done = ask(profile, "--json", "audit", "checkpoint")
    finally:
        peer.tamper = None
    assert done.returncode == 6
    assert json.loads(done.stderr)["error"]["kind"] == "VerificationFailed"
    assert done.stdout == ""


def test_what_goes_well_and_what_cannot_be_reached(connected: tuple[Peer, Profile]):
    _, profile = connected
    done = ask(profile, "--json", "whoami")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["client"] == "spiffe://test/me"
    away = ask(profile, "--json", "--address", "127.0.0.1:9", "whoami")
    assert away.returncode == 5
    assert json.loads(away.stderr)["error"]["kind"] == "Unavailable"


def test_a_full_disk_behind_the_output_is_no_fault_of_greatseal():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [SCRIPTS / "greatseal", "completion", "bash"],
            env=clean_environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "fault of greatseal" not in done.stderr


def test_the_codes_in_the_guide_are_those_of_the_errors():
    section = GUIDE.read_text().split("| exit code |", 1)[1].split("\n\n", 1)[0]
    described = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}

    def tree(kind: type[errors.GreatsealError]) -> set[int]:
        return {kind.exit_code}.union(*map(tree, kind.__subclasses__()))

    reserved = {4}
    assert tree(errors.GreatsealError) & reserved == set()
    assert described == tree(errors.GreatsealError) | {0, failures.INTERRUPTED, failures.BROKEN_PIPE} | reserved


@pytest.mark.parametrize(
    ("server_time", "status", "exit_code"),
    [
        ("2001-01-01T00:00:00.000000Z", "fail", 5),
        ("", "skip", 0),
        ("tomorrow", "skip", 0),
    ],
)
def test_doctor_tells_a_clock_that_is_wrong(
    connected: tuple[Peer, Profile], server_time: str, status: str, exit_code: int
):
    peer, profile = connected

    def say(method: str, answer: Any) -> None:
        if method == "WhoAmI":
            answer.server_time = server_time
            answer.server_version = "9.0.0"

    peer.tamper = say
    try:
        done = ask(profile, "--json", "doctor")
    finally:
        peer.tamper = None
    assert done.returncode == exit_code, done.stdout
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["clock"]["status"] == status
    assert checks["versions"]["status"] == "warn"
    assert checks["log"]["status"] == "ok"
