"""The image's steps, and a front and a token host that run from the result as two different users."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from deployment import READY, Deployment
from installed_tree import CONTAINERFILE, ROOT, Tree, User, give, installed, popen_as, run_as, steps

pytestmark = [pytest.mark.softhsm, pytest.mark.root, pytest.mark.slow]

FRONT = User("nobody")
HOST = User("daemon", extra="nobody")
OTHER = User("games")


@pytest.fixture(scope="module")
def tree() -> Iterator[Tree]:
    if os.geteuid() != 0:
        pytest.skip("needs root to become other users")
    with installed() as made:
        yield made


class Manager:
    """The service manager's end of sd_notify."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.channel.bind(str(path))
        self.channel.settimeout(0.5)
        path.chmod(0o777)
        self.heard: list[str] = []

    def wait_for(
        self, line: str, alive: Callable[[], bool] = lambda: True, said: Callable[[], str] = lambda: ""
    ) -> None:
        deadline = time.monotonic() + 60
        while not any(each.startswith(line) for each in self.heard):
            assert time.monotonic() < deadline, said()
            assert alive(), said()
            with suppress(TimeoutError):
                self.heard += self.channel.recv(4096).decode().splitlines()


class Site:
    """An installation shared out between the two users, as the units and the compose file do it."""

    def __init__(self, tree: Tree, name: str) -> None:
        directory = tree.directory / name
        directory.mkdir()
        self.deployment = Deployment.create(directory)
        seal = self.deployment.directory
        for part in ("pki", "log", "data", "anchor", "run"):
            (seal / part).mkdir(exist_ok=True)
            give(seal / part, FRONT)
        give(seal / "tokens", HOST)
        self.sockets = directory / "host"
        self.sockets.mkdir()
        give(self.sockets, HOST, 0o711)
        self.socket = self.sockets / "host.sock"
        self.deployment.edit(r"^host_socket = .*$", f'host_socket = "{self.socket}"')
        seal.chmod(0o711)
        self.deployment.config.chmod(0o644)
        self.pin = seal / "tokens/soft/pin"
        self.errors = {"front": directory / "front.log", "host": directory / "host.log"}
        self.managers = {name: Manager(directory / f"notify-{name}") for name in self.errors}

    def said(self, name: str) -> str:
        return self.errors[name].read_text()

    @contextmanager
    def started(
        self, tree: Tree, name: str, user: User, *arguments: str, traced: Path | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        environment = {"NOTIFY_SOCKET": str(self.managers[name].path)}
        command = [tree.command, *arguments, "--config", self.deployment.config]
        with self.errors[name].open("wb") as stderr:
            process = popen_as(user, *command, env=environment, traced=traced, stderr=stderr, stdout=stderr)
        try:
            self.managers[name].wait_for("READY=1", lambda: process.poll() is None, lambda: self.said(name))
            yield process
            process.terminate()
            assert process.wait(60) == 0, self.said(name)
            self.managers[name].wait_for("STOPPING=1")
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def site(tree: Tree) -> Iterator[Site]:
    made = Site(tree, f"site{len(list(tree.directory.glob('site*')))}")
    yield made
    for manager in made.managers.values():
        manager.channel.close()


def test_a_front_and_a_host_of_two_users_sign_and_cannot_reach_each_others_things(tree: Tree, site: Site):
    deployment = site.deployment
    host = site.started(tree, "host", HOST, "host", "soft", "--front", str(FRONT.uid))
    with host as unit, site.started(tree, "front", FRONT, "serve") as front:
        ready = READY.search(site.said("front"))
        assert ready
        done = deployment.client("--address", ready[1], "sign", "digest", "--sha256", "ab" * 32, "--key", "scratch")
        assert done.returncode == 0, done.stderr + site.said("front") + site.said("host")

        def opens(user: User, path: Path) -> str:
            return run_as(user, tree.python, "-c", f"open({str(path)!r}, 'rb').read()").stderr

        for user in (FRONT, OTHER):
            assert "PermissionError" in opens(user, site.pin)
            assert "PermissionError" in run_as(user, "ls", site.pin.parent).stderr or "denied" in (
                run_as(user, "ls", site.pin.parent).stderr
            )
        assert opens(HOST, site.pin) == ""
        for secret in ("log/log.key", "log/head-mac.key", "pki/server.key", "data/log.db"):
            assert "PermissionError" in opens(HOST, deployment.directory / secret)
        connect = f"import socket; socket.socket(socket.AF_UNIX).connect({str(site.socket)!r})"
        assert "PermissionError" in run_as(OTHER, tree.python, "-c", connect).stderr
        assert run_as(FRONT, tree.python, "-c", connect).stderr == ""

        unit.send_signal(signal.SIGHUP)
        front.send_signal(signal.SIGHUP)
        site.managers["front"].wait_for("RELOADING=1")
        deadline = time.monotonic() + 30
        while "SIGHUP changes nothing" not in site.said("host"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert unit.poll() is None
        for process in (front, unit):
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
            pin = site.pin.read_bytes().strip()
            assert pin not in environment
            assert pin not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert deployment.daemon("reload").returncode == 0  # root reaches the admin socket


def syscalls(name: str) -> set[str]:
    """The members of one of systemd's sets, or the call itself."""
    if not name.startswith("@"):
        return {name}
    told = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    members = [line.strip() for line in told.stdout.splitlines()[1:]]
    return set().union(*(syscalls(member) for member in members if member and not member.startswith("#")))


def allowed(unit: str) -> set[str]:
    """What is left of all system calls after the unit's SystemCallFilter= lines, in their order."""
    found: set[str] = set()
    for value in re.findall(r"^SystemCallFilter=(.*)$", (ROOT / "deploy/systemd" / unit).read_text(), re.MULTILINE):
        named = set().union(*(syscalls(each) for each in value.removeprefix("~").split()))
        found = found - named if value.startswith("~") else found | named
    return found


def test_the_units_allow_every_system_call_that_front_and_host_make(tree: Tree, site: Site):
    traces = {name: tree.directory / f"{name}.strace" for name in ("front", "host")}
    host = site.started(tree, "host", HOST, "host", "soft", "--front", FRONT.name, traced=traces["host"])
    with host, site.started(tree, "front", FRONT, "serve", traced=traces["front"]):
        ready = READY.search(site.said("front"))
        assert ready
        done = site.deployment.client(
            "--address", ready[1], "sign", "digest", "--sha256", "ab" * 32, "--key", "scratch"
        )
        assert done.returncode == 0, done.stderr
        assert site.deployment.daemon("reload").returncode == 0
        assert site.deployment.daemon("backup", site.deployment.directory / "data/copy.db").returncode == 0
    # The wrapper that becomes another user does so with calls of its own, which systemd makes before the filter holds.
    wrapper = {"setgroups", "setresgid", "setresuid", "capset", "setgid", "setuid"}
    known = syscalls("@known")
    for name, unit in (("front", "greatseald.service"), ("host", "greatseald-host@.service")):
        deadline = time.monotonic() + 30
        while not traces[name].exists() or not traces[name].read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        made = (set(traces[name].read_text().split()) & known) - {"syscall"}  # which is the head of the column
        assert made & ({"chown", "fchownat"} if name == "host" else {"accept4"})
        assert made - wrapper - allowed(unit) == set()


def test_the_image_is_installed_by_hash_and_nobody_can_write_to_it(tree: Tree):
    installs = [
        rest for word, rest in steps("build") if word == "RUN" and " install " in rest and "uninstall" not in rest
    ]
    assert all("--require-hashes" in rest or "--no-index" in rest for rest in installs)
    assert len(installs) == 3
    assert run_as(OTHER, tree.command, "version").stdout.startswith("greatseald ")
    for place in (tree.command, tree.directory / "opt/greatseal/lib"):
        assert "denied" in run_as(OTHER, "touch", place / "x" if place.is_dir() else place).stderr
    packages = {path.name for path in (tree.directory / "opt/greatseal/lib").glob("python*/site-packages/*")}
    assert "greatseald" in packages
    assert not {"pip", "hatchling", "pytest"} & packages, "tools are no part of the image"


def test_the_final_stage_needs_no_shell_and_no_root():
    words = [word for word, _ in steps("final")]
    assert set(words) <= {"FROM", "COPY", "ENV", "USER", "WORKDIR", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    text = CONTAINERFILE.read_text()
    assert re.search(r"^USER [1-9][0-9]*:[1-9][0-9]*$", text, re.MULTILINE)
    for word, rest in steps("final"):
        if word in {"ENTRYPOINT", "CMD"}:
            assert rest.startswith("["), "the shell form needs a shell"
    assert not re.search(
        r"pin|secret|password", " ".join(rest for word, rest in steps("final") if word == "ENV"), re.IGNORECASE
    )


def test_the_compose_file_starts_closed_services_of_two_users():
    services = yaml.safe_load((ROOT / "deploy/container/compose.yaml").read_text())["services"]
    assert len({service["user"] for service in services.values()}) == len(services) == 2
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert "privileged" not in service
    assert services["host"]["network_mode"] == "none"
    front = services["front"]["user"].split(":")[0]
    assert services["host"]["command"][-2:] == ["--front", front]
    assert services["host"]["group_add"] == [front]
    mounted = str(services["front"]["volumes"])
    assert "pin" not in mounted
    assert "host-state" not in mounted
