"""`greatseald token`, as an operator types it, at a daemon that runs; and where the PIN does not show up."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployment import Deployment, clean_environment
from fault_processes import children

pytestmark = [pytest.mark.softhsm]

WRONG = "wr0ng-4f81c2aa"
NEW = "n3w-PIN-77d0e1"
WAIT_SECONDS = 30.0


class Site:
    """An installation whose token an operator unlocks."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.pin_file = deployment.directory / "tokens/soft/pin"
        self.pin = self.pin_file.read_text().strip()
        deployment.edit(r"^pin_file = .*$", 'unlock = "operator"')
        self.pin_file.unlink()

    def token(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "greatseald", "token", *arguments, "--config", str(self.deployment.config)]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=60, check=False, env=clean_environment(),
            start_new_session=True,  # no terminal
        )  # fmt: skip

    def state(self) -> str:
        shown = self.deployment.client("tokens", "show", "soft", "--json")
        return str(json.loads(shown.stdout)["state"]).lower()

    def wait_for(self, state: str) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.state().endswith(state):
            assert time.monotonic() < deadline, self.state()
            time.sleep(0.05)

    def signs(self) -> subprocess.CompletedProcess[str]:
        return self.deployment.client("sign", "digest", "--sha256", "ab" * 32, "--key", "keys/scratch")

    def acts(self) -> list[dict[str, Any]]:
        listed = self.deployment.client("audit", "list", "--type", "admin", "--limit", "0", "--json")
        entries = [json.loads(line)["entry"] for line in listed.stdout.splitlines()]
        return [entry for entry in entries if entry["what"] in {"unlock", "lock", "change-pin", "unblock"}]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    deployment = Deployment.create(tmp_path)
    made = Site(deployment)
    deployment.start()
    yield made
    deployment.close()


def test_an_operator_unlocks_signs_changes_the_pin_and_locks_and_the_log_has_it(site: Site):
    assert site.state().endswith("locked")
    assert site.signs().returncode == 5
    locked = site.token("status", "soft")
    assert "locked, waiting for an operator" in locked.stdout
    refused = site.token("unlock", "soft", "--stdin", stdin=WRONG + "\n")
    assert refused.returncode == 3
    assert "refused" in refused.stderr
    done = site.token("unlock", "soft", "--stdin", "--json", stdin=site.pin + "\n")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"] == "done"
    site.wait_for("ready")
    assert site.signs().returncode == 0
    changed = site.token("change-pin", "soft", "--stdin", stdin=f"{site.pin}\n{NEW}\n")
    assert changed.returncode == 0, changed.stderr
    assert site.token("lock", "soft").returncode == 0
    site.wait_for("locked")
    assert site.signs().returncode == 5
    again = site.token("unlock", "soft", "--stdin", stdin=f"{NEW}\n")
    assert again.returncode == 0, again.stderr
    site.wait_for("ready")
    acts = site.acts()
    assert [(act["what"], act["info"]["result"]) for act in acts] == [
        ("unlock", "refused"), ("unlock", "unlocked"), ("change-pin", "changed"), ("lock", "locked"), ("unlock", "unlocked"),
    ]  # fmt: skip
    assert all(act["info"]["uid"] == os.geteuid() and act["info"]["token"] == "soft" for act in acts)
    verified = site.deployment.client("audit", "verify")
    assert verified.returncode == 0, verified.stderr
    # A restart of the daemon restarts its host: locked again.
    assert site.deployment.stop() == 0
    site.deployment.start()
    assert site.state().endswith("locked")


def test_the_pin_is_in_no_argument_environment_log_file_or_other_memory(site: Site):
    assert site.deployment.process is not None
    daemon = site.deployment.process.pid
    assert site.token("unlock", "soft", "--stdin", stdin=WRONG + "\n").returncode == 3
    (host,) = children(daemon)
    if os.geteuid() == 0:  # root may read what PR_SET_DUMPABLE hides from everybody else
        assert not in_memory(host, WRONG), "a refused PIN is still in the host's memory"
    said = site.token("unlock", "soft", "--stdin", stdin=site.pin + "\n")
    site.wait_for("ready")
    assert site.signs().returncode == 0
    for secret in (WRONG, site.pin):
        assert secret not in said.stdout + said.stderr + site.deployment.stderr
        for pid in (daemon, host):
            for name in ("cmdline", "environ"):
                assert secret.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
        if os.geteuid() == 0:
            assert not in_memory(daemon, secret), "the front has the PIN"
        for path in site.deployment.directory.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path
    limits = Path(f"/proc/{host}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)


def in_memory(pid: int, text: str) -> bool:
    """Whether a process has these bytes in memory that it can write."""
    needle = text.encode()
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in maps:
            span, mode, *rest = line.split()
            if not mode.startswith("rw") or rest[-1] in ("[vvar]", "[vsyscall]"):
                continue
            start, end = (int(bound, 16) for bound in span.split("-"))
            memory.seek(start)
            try:
                if needle in memory.read(end - start):
                    return True
            except OSError:
                continue
    return False


class Terminal:
    """A command on a terminal of its own, and somebody who types."""

    def __init__(self, site: Site, *arguments: str) -> None:
        self.seen = ""
        command = [sys.executable, "-m", "greatseald", "token", *arguments, "--config", str(site.deployment.config)]
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execve(command[0], command, clean_environment())

    def until(self, text: str) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.descriptor], [], [], 0.5)[0]:
                try:
                    self.seen += os.read(self.descriptor, 4096).decode()
                except OSError:  # the command has ended
                    assert text in self.seen, self.seen

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode() + b"\n")

    def end(self) -> int:
        try:
            while data := os.read(self.descriptor, 4096):
                self.seen += data.decode()
        except OSError:
            pass
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_on_a_terminal_nothing_is_echoed_and_another_pin_is_asked_for(site: Site):
    terminal = Terminal(site, "unlock", "soft")
    terminal.until("PIN of token soft: ")
    terminal.type(WRONG)
    terminal.until("refused")
    terminal.until("PIN of token soft: ")
    terminal.type(site.pin)
    assert terminal.end() == 0
    assert "is unlocked" in terminal.seen
    assert WRONG not in terminal.seen
    assert site.pin not in terminal.seen


def test_two_new_pins_that_differ_change_nothing(site: Site):
    terminal = Terminal(site, "change-pin", "soft")
    for prompt, text in (("current PIN", site.pin), ("new PIN of", NEW), ("once more", NEW + "x")):
        terminal.until(prompt)
        terminal.type(text)
    assert terminal.end() == 2
    assert "do not agree" in terminal.seen
    assert site.token("unlock", "soft", "--stdin", stdin=site.pin + "\n").returncode == 0


PINENTRY = """#!{python}
import sys
print("OK Pleased to meet you", flush=True)
for line in sys.stdin:
    command = line.split()[0]
    with open({heard!r}, "a") as file:
        file.write(line)
    if command == "GETPIN":
        print({answer!r}, flush=True)
    else:
        print("ERR 83886254 Unknown option" if command == "OPTION" else "OK", flush=True)
"""


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        ("# comment\nS PASSWORD_FROM_CACHE\nD {pin}\nOK", 0, "is unlocked"),
        ("D {half}\nD {other}\nOK closing", 0, "is unlocked"),
        ("ERR 83886179 Operation cancelled <Pinentry>", 130, "no PIN was tried"),
        ("ERR 83886340 No pinentry <Pinentry>", 5, "No pinentry"),
        ("OK", 2, "nothing was tried"),
        ("INQUIRE QUALITY abc", 5, "an inquiry"),
        ("D %4", 5, "percent sign"),
        ("D " + "x" * 1000, 5, "more than 1000 bytes"),
        ("D " + "x" * 300 + "\nOK", 5, "at most 256 bytes"),
        ("# x\n" * 300 + "OK", 5, "more than 200 lines"),
    ],
)
def test_a_pinentry_program_is_asked_and_believed_no_further_than_its_protocol_goes(
    shared_locked: Site, tmp_path: Path, answer: str, code: int, says: str
):
    site = shared_locked
    escaped = "".join(f"%{byte:02X}" for byte in site.pin.encode())
    answer = answer.replace("{pin}", escaped).replace("{half}", site.pin[:5]).replace("{other}", site.pin[5:])
    program = tmp_path / "pinentry-of-the-test"
    heard = tmp_path / "heard"
    program.write_text(PINENTRY.format(python=sys.executable, heard=str(heard), answer=answer))
    program.chmod(0o755)
    done = site.token("unlock", "soft", "--pinentry", "--pinentry-program", str(program))
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "GETPIN" in heard.read_text()
    if code == 0:
        assert site.token("lock", "soft").returncode == 0
        site.wait_for("locked")


@pytest.fixture(scope="module")
def shared_locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    deployment = Deployment.create(tmp_path_factory.mktemp("locked"))
    made = Site(deployment)
    deployment.start()
    yield made
    deployment.close()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["unlock", "soft"], 2, "no terminal"),
        (["unlock", "soft", "--stdin", "--pinentry"], 2, "choose one"),
        (["unlock", "soft", "--stdin"], 2, "is empty"),
        (["unlock", "hard", "--stdin"], 2, "'hard'"),
        (["unlock", "soft", "--pinentry", "--pinentry-program", "/nowhere/pinentry"], 5, "not installed"),
        (["unblock", "soft", "--stdin"], 2, "is empty"),
    ],
)
def test_what_cannot_be_done_says_why(shared_locked: Site, arguments: list[str], code: int, says: str):
    done = shared_locked.token(*arguments)
    assert done.returncode == code
    assert says in done.stderr


def test_without_a_host_unlock_says_where_it_looked_and_change_pin_works(tmp_path: Path):
    deployment = Deployment.create(tmp_path)
    pin_file = deployment.directory / "tokens/soft/pin"
    old = pin_file.read_text()
    command = [sys.executable, "-m", "greatseald", "token"]

    def token(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments, "--config", str(deployment.config)], input=stdin, capture_output=True, text=True,
            timeout=60, check=False, env=clean_environment(), start_new_session=True,
        )  # fmt: skip

    unreached = token("unlock", "soft", "--stdin", stdin="x\n")
    assert unreached.returncode == 5
    assert "tokens/soft/state/unlock.sock" in unreached.stderr
    changed = token("change-pin", "soft", "--stdin", stdin=NEW + "\n")
    assert changed.returncode == 0, changed.stderr
    assert "writes it into the audit log" in changed.stderr
    assert pin_file.read_text() == NEW + "\n" != old
    with deployment.running():
        site = deployment.client("tokens", "show", "soft", "--json")
        assert "ready" in site.stdout.lower()
        unlock = token("unlock", "soft", "--stdin", stdin="x\n")
        assert unlock.returncode == 2
        assert "takes its PIN from" in unlock.stderr
        unblock = token("unblock", "soft", "--stdin")
        assert unblock.returncode == 2
        assert "is logged in" in unblock.stderr
        lock = token("lock", "soft")
        assert lock.returncode == 2
        assert "would log in again" in lock.stderr
