"""A real installation in a directory of the test: `greatseald init`, then `serve`, as an operator would.

    deployment = Deployment.create(tmp_path)      # greatseald init
    with deployment.running():                    # greatseald serve, on a free port
        deployment.client("whoami")               # greatseal --profile …
    deployment.start(); deployment.kill(); deployment.start(); deployment.stop()

Nothing is imported from the product: what is tested is what is installed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

READY = re.compile(r"^greatseald ready: listening on (\S+)$", re.MULTILINE)
SCRIPTS = Path(sysconfig.get_path("scripts"))
# Put before a command: root without the right to ignore file modes, so that an unwritable place is one.
WITHOUT_OVERRIDE = (
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
)
START_SECONDS = 60.0
STOP_SECONDS = 40.0


class DeploymentError(Exception):
    """The daemon did not do what the test needs; the message holds what it said."""


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without anything that would configure Greatseal, SoftHSM or the terminal from outside."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GREATSEAL", "SOFTHSM2_", "PYTEST_", "COV_"))
    }
    environment |= {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200", "PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8"}
    return environment | dict(extra or {})


def run(
    *command: str | Path, env: Mapping[str, str] | None = None, timeout: float = 120, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end with captured output and no standard input; never raises for an exit code."""
    return subprocess.run(
        [str(part) for part in command],
        env=clean_environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
    )


def greatseald(*arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a `greatseald` command to its end."""
    return run(sys.executable, "-m", "greatseald", *arguments, env=env)


def greatseal(*arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a `greatseal` command to its end."""
    return run(SCRIPTS / "greatseal", *arguments, env=env)


class Deployment:
    """What `greatseald init` made in `directory`, and the daemon that serves it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "greatseald.toml"
        self.profile = directory / "client.toml"
        self.database = directory / "data" / "log.db"
        self.log_vkey = directory / "log" / "log.vkey"
        self.stderr_file = directory.with_name(directory.name + ".stderr")
        self.process: subprocess.Popen[bytes] | None = None
        self.address = ""
        self._offset = 0

    @classmethod
    def create(cls, parent: Path, *init_options: str, name: str = "seal") -> Deployment:
        """Run `greatseald init parent/name`; options are added to those that keep it off fixed ports."""
        directory = parent / name
        done = greatseald(
            "init", directory, "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", *init_options
        )
        if done.returncode:
            message = f"init exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
            raise DeploymentError(message)
        return cls(directory)

    # -- the daemon

    def start(self, *options: str, env: Mapping[str, str] | None = None, wait: bool = True) -> Deployment:
        """Start `serve` (with `options`) and, unless told not to, wait until it says that it is ready."""
        if self.process is not None and self.process.poll() is None:
            message = "the daemon of this deployment runs already"
            raise DeploymentError(message)
        self._offset = self.stderr_file.stat().st_size if self.stderr_file.exists() else 0
        with self.stderr_file.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "greatseald", "serve", "--config", str(self.config), *options],
                env=clean_environment(env),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, seconds: float = START_SECONDS) -> str:
        """Wait for the ready line of the newest start and return the address in it."""
        assert self.process is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := READY.search(self.stderr):
                self.address = found[1]
                return self.address
            if self.process.poll() is not None:
                message = f"serve exited {self.process.returncode} before it was ready:\n{self.stderr}"
                raise DeploymentError(message)
            time.sleep(0.02)
        self.kill()
        message = f"serve was not ready within {seconds:.0f} s:\n{self.stderr}"
        raise DeploymentError(message)

    @property
    def stderr(self) -> str:
        """What the daemon wrote since its newest start: stderr and stdout together."""
        if not self.stderr_file.exists():
            return ""
        with self.stderr_file.open("rb") as file:
            file.seek(self._offset)
            return file.read().decode(errors="replace")

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """End the daemon with SIGTERM, wait for it and return its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait_exit(seconds)

    def wait_exit(self, seconds: float = STOP_SECONDS) -> int:
        """Wait until the daemon has ended by itself; it is killed, and an error raised, if it does not."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            message = f"the daemon did not end within {seconds:.0f} s:\n{self.stderr}"
            raise DeploymentError(message) from None

    def kill(self) -> None:
        """End the daemon with SIGKILL, and nothing else: its token hosts have to notice by themselves."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send the daemon a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def close(self) -> None:
        """End the daemon and whatever it started, by force if need be. For the end of a test."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @contextmanager
    def running(self, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Deployment]:
        """The daemon runs within the block and is ended after it."""
        self.start(*options, env=env)
        try:
            yield self
        finally:
            self.close()

    def reload(self, expect: str = '"reloaded"', seconds: float = 20.0) -> None:
        """Send SIGHUP and wait until the daemon's log says `expect` once more than before."""
        before = self.stderr.count(expect)
        self.signal(signal.SIGHUP)
        deadline = time.monotonic() + seconds
        while self.stderr.count(expect) == before:
            if time.monotonic() > deadline:
                message = f"the daemon did not say {expect} within {seconds:.0f} s of SIGHUP:\n{self.stderr}"
                raise DeploymentError(message)
            time.sleep(0.02)

    # -- the configuration

    def edit(self, pattern: str, replacement: str, *, path: Path | None = None) -> None:
        """Replace the one place in the configuration that the regular expression matches (multi-line mode)."""
        target = path or self.config
        text, count = re.subn(pattern, lambda found: found.expand(replacement), target.read_text(), flags=re.MULTILINE)
        if count != 1:
            message = f"{pattern!r} matches {count} places in {target.name}, and one was meant"
            raise DeploymentError(message)
        target.write_text(text)

    def append(self, text: str) -> None:
        """Add tables at the end of the configuration."""
        with self.config.open("a") as file:
            file.write("\n" + text + "\n")

    # -- commands

    def client(
        self, *arguments: str | Path, profile: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `greatseal --profile …` with this deployment's profile, or another one."""
        return greatseal("--profile", profile or self.profile, *arguments, env=env)

    def daemon(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a `greatseald` command that takes `--config`, with this deployment's."""
        return greatseald(*arguments, "--config", self.config)

    def add_client(self, name: str, *options: str) -> Path:
        """Run `client add NAME` and return the profile it wrote."""
        done = self.daemon("client", "add", name, *options)
        if done.returncode:
            message = f"client add exited {done.returncode}:\n{done.stderr}"
            raise DeploymentError(message)
        return self.directory / f"{name}-client.toml"
