"""A token host as a unit of its own on an AF_UNIX path, and hosts that must not outlive their front."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pkcs11_shim as ckr
import pytest

from greatseald.adapters.tokens import frames
from greatseald.adapters.tokens.supervisor import SupervisedToken
from greatseald.domain.errors import TokenUnavailable
from greatseald.ports.tokens import NotSigned, Signed, TokenState
from token_site import P256, TokenSite, end_process, is_alive, until_state

pytestmark = pytest.mark.softhsm

RELEASE = "pkcs11:object=release"
WAIT_SECONDS = 30.0


def write_config(site: TokenSite, **changes: object) -> Path:
    settings = site.settings()
    environment = ", ".join(f'{name} = "{value}"' for name, value in settings.environment.items())
    values: dict[str, object] = {
        "name": "soft",
        "type": "pkcs11",
        "uri": settings.uri,
        "module": str(settings.module),
        "pin_file": str(settings.pin_file),
        "state_dir": str(settings.state_dir),
        "sessions": 2,
        "operation_timeout": 2.0,
        "lockout": "none",
        "host_socket": str(site.directory / "host.sock"),
    } | changes
    lines = [f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in values.items()]
    config = site.directory / "greatseald.toml"
    config.write_text("[[tokens]]\n" + "\n".join(lines) + f"\nenvironment = {{ {environment} }}\n")
    return config


def host_command(config: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "greatseald.adapters.tokens.host", "--config", str(config), "--token", "soft", *more]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def listens(path: Path) -> bool:
    """Whether somebody listens there: the path exists a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@contextmanager
def unit(site: TokenSite, *more: str, **changes: object) -> Iterator[subprocess.Popen[str]]:
    """A running unit, listening; stopped and reaped afterwards, and nothing of it left."""
    config = write_config(site, **changes)
    process = subprocess.Popen(host_command(config, *more), stderr=subprocess.PIPE, text=True)
    path = site.directory / "host.sock"
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not listens(path):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
        workers = children(process.pid)
        process.terminate()
        assert process.wait(WAIT_SECONDS) == 0
        assert not path.exists()
        assert not any(is_alive(worker) for worker in workers)
    finally:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


def test_a_front_signs_through_a_units_socket_and_a_second_front_after_it(tmp_path: Path):
    site = TokenSite.create(tmp_path)
    path = site.directory / "host.sock"
    with unit(site):
        assert path.stat().st_mode & 0o777 == 0o600

        async def run() -> None:
            async with site.token(host_socket=path, pin_file=None) as token:
                assert token.host_pid is None
                assert token.info is not None
                operations = site.operations(300)
                site.verify("release", P256, operations, await site.sign(token, "release", P256, operations))

        asyncio.run(run())
        asyncio.run(run())
    assert len(site.ledger()) == 600


async def until_it_signs(site: TokenSite, token: SupervisedToken) -> None:
    while True:
        await until_state(token, TokenState.READY)
        operations = site.operations(2)
        try:
            results = await site.sign(token, "release", P256, operations)
        except TokenUnavailable:  # the end of the connection was seen before the call
            continue
        if all(isinstance(result, Signed) for result in results):
            site.verify("release", P256, operations, results)
            return


@pytest.mark.shim
def test_a_unit_whose_module_hangs_replaces_its_worker_and_the_front_finds_it(tmp_path: Path):
    site = TokenSite.create(tmp_path, shim=True)
    assert site.shim is not None
    shim = site.shim
    with unit(site) as process:

        async def run() -> None:
            async with site.token(host_socket=site.directory / "host.sock", operation_timeout=2.0) as token:
                (worker,) = children(process.pid)
                shim.rule("C_Sign", "hang", times=1)
                results = await site.sign(token, "release", P256, site.operations(20))
                assert any(isinstance(result, NotSigned) and result.unknown for result in results)
                while is_alive(worker):  # the front may be back at it before its own watchdog has ended it
                    await asyncio.sleep(0.01)
                await until_it_signs(site, token)
                assert children(process.pid) != [worker]

        asyncio.run(run())


def test_a_unit_whose_worker_is_killed_brings_another(tmp_path: Path):
    site = TokenSite.create(tmp_path)
    with unit(site) as process:

        async def run() -> None:
            async with site.token(host_socket=site.directory / "host.sock") as token:
                end_process(children(process.pid)[0])
                await until_it_signs(site, token)

        asyncio.run(run())


def test_a_unit_says_what_is_wrong_and_comes_up_when_it_is_right(tmp_path: Path):
    site = TokenSite.create(tmp_path)
    away = (site.directory / "pin").rename(site.directory / "pin-elsewhere")
    with unit(site):

        async def run() -> None:
            async with site.token(ready=False, host_socket=site.directory / "host.sock") as token:
                await until_state(token, TokenState.UNAVAILABLE)
                assert str(site.directory / "pin") in token.detail
                away.rename(site.directory / "pin")
                await until_state(token, TokenState.READY)

        asyncio.run(run())


@pytest.mark.shim
def test_a_wrong_pin_is_tried_once_by_a_unit_however_many_fronts_come(tmp_path: Path):
    site = TokenSite.create(tmp_path, shim=True)
    assert site.shim is not None
    (site.directory / "pin").write_bytes(b"wrong-pin\n")
    with unit(site):

        async def run() -> None:
            async with site.token(ready=False, host_socket=site.directory / "host.sock") as token:
                await until_state(token, TokenState.LOCKED)
                assert "CKR_PIN_INCORRECT" in token.detail

        for _ in range(3):
            asyncio.run(run())
    assert len(site.shim.logins()) == 1


def test_a_front_without_a_host_to_reach_says_where_it_looked(tmp_path: Path):
    site = TokenSite.create(tmp_path)
    path = tmp_path / "nobody.sock"

    async def run() -> None:
        async with site.token(ready=False, host_socket=path) as token:
            await until_state(token, TokenState.UNAVAILABLE)
            assert str(path) in token.detail

    asyncio.run(run())


def greeting_of(path: Path, hello: bytes) -> bytes:
    """What the host answers to these bytes, until it hangs up or 2 seconds pass."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.settimeout(2)
        sock.sendall(hello)
        try:
            return sock.recv(65536)
        except TimeoutError:
            return b"nothing"


def wait_until_listening(path: Path) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(path))
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                return


def test_a_unit_refuses_junk_foreign_versions_and_requests_before_the_greeting(tmp_path: Path):
    site = TokenSite.create(tmp_path)
    path = site.directory / "host.sock"
    with unit(site):
        assert greeting_of(path, b"GET / HTTP/1.1\r\n\r\n") == b""
        assert greeting_of(path, b"\xff\xff\xff\xff") == b""
        assert greeting_of(path, frames.encode(frames.FindKey(1, RELEASE))) == b""
        assert greeting_of(path, frames.encode(frames.Sign(1, RELEASE, P256.value, site.operations(1)))) == b""
        assert b"\xa8NotReady" in greeting_of(path, frames.encode(frames.Hello(99, "soft", None)))
        assert b"\xa8NotReady" in greeting_of(path, frames.encode(frames.Hello(frames.VERSION, "other", None)))
        assert b"\xa5Ready" in greeting_of(path, frames.encode(frames.Hello(frames.VERSION, "soft", None)))
    assert site.ledger() == []


@pytest.mark.root
def test_a_unit_serves_only_the_fronts_user(tmp_path: Path):
    if os.geteuid() != 0:
        pytest.skip("needs root to become other users")
    site = TokenSite.create(tmp_path)
    path = site.directory / "host.sock"
    front, other = pwd.getpwnam("nobody"), pwd.getpwnam("daemon")
    # Only for the test: the socket has to be reachable before its own rights are what decides.
    for directory in [site.directory, *site.directory.parents][: len(site.directory.parents) - 1]:
        if directory.stat().st_uid == 0 and directory != Path("/tmp"):
            directory.chmod(directory.stat().st_mode | 0o011)
    hello = frames.encode(frames.Hello(frames.VERSION, "soft", None))
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(sys.argv[1])\n"
        # Whom it does not serve, it hangs up on: before or after the greeting has gone out.
        "try: s.sendall(bytes.fromhex(sys.argv[2])); sys.stdout.buffer.write(s.recv(4096))\n"
        "except (ConnectionResetError, BrokenPipeError): pass\n"
    )

    def ask(uid: int, gid: int) -> bytes:
        command = ["/usr/bin/python3", "-c", script, str(path), hello.hex()]
        done = subprocess.run(command, user=uid, group=gid, extra_groups=[], capture_output=True, check=False)
        return done.stdout if done.returncode == 0 else done.stderr

    with unit(site, "--front", "nobody"):
        assert path.stat().st_mode & 0o777 == 0o660
        assert b"\xa5Ready" in ask(front.pw_uid, front.pw_gid)
        assert b"PermissionError" in ask(other.pw_uid, other.pw_gid)
        # In the socket's group, so that the file's rights let it in: the kernel's word on its user does not.
        assert ask(other.pw_uid, front.pw_gid) == b""


@pytest.mark.parametrize(
    ("changes", "more", "why"),
    [
        ({"host_socket": ""}, (), "no host_socket"),
        ({}, ("--front", "no-such-user"), "no-such-user"),
        ({"host_socket": "/nowhere/host.sock"}, (), "/nowhere/host.sock"),
    ],
)
def test_a_unit_that_cannot_run_says_why_and_ends_with_2(
    tmp_path: Path, changes: dict[str, object], more: tuple[str, ...], why: str
):
    site = TokenSite.create(tmp_path)
    config = write_config(site, **changes)
    done = subprocess.run(host_command(config, *more), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert why in done.stderr


def test_a_second_unit_does_not_take_the_socket_and_a_stale_one_is_replaced(tmp_path: Path):
    site = TokenSite.create(tmp_path)
    path = site.directory / "host.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with unit(site):
        wait_until_listening(path)
        done = subprocess.run(
            host_command(site.directory / "greatseald.toml"), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 2
        assert "another host listens" in done.stderr


FRONT = """
import asyncio, sys
sys.path[:0] = {path!r}
from pathlib import Path
from token_site import TokenSite, P256
async def run():
    site = TokenSite(Path({directory!r}), {{}})
    async with site.token(operation_timeout=60.0) as token:
        print(token.host_pid, flush=True)
        await asyncio.sleep(600)
asyncio.run(run())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_host_does_not_outlive_its_front(tmp_path: Path, number: signal.Signals):
    """SIGSTOP: the host outlives a front that is only stopped, and ends with it when it is killed."""
    site = TokenSite.create(tmp_path)
    script = FRONT.format(
        path=[str(Path(__file__).parents[1]), str(Path(ckr.__file__).parent)], directory=str(site.directory)
    )
    front = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert front.stdout is not None
    try:
        host = int(front.stdout.readline())
        assert is_alive(host)
        if number is signal.SIGSTOP:
            front.send_signal(number)
            time.sleep(0.3)
            assert is_alive(host)
        front.kill()
        front.wait()
        deadline = time.monotonic() + WAIT_SECONDS
        while is_alive(host):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        front.kill()
        front.wait()
        front.stdout.close()


def test_a_host_ignores_the_signals_that_a_terminal_or_service_manager_sends_to_everybody(tmp_path: Path):
    site = TokenSite.create(tmp_path)

    async def run() -> None:
        async with site.token() as token:
            assert token.host_pid is not None
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(token.host_pid, number)
            operations = site.operations(3)
            site.verify("release", P256, operations, await site.sign(token, "release", P256, operations))

    asyncio.run(run())
