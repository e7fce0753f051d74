"""A token that an operator unlocks: at most one C_Login for each thing an operator does, whatever happens around it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pkcs11_shim as ckr
import pytest

from fault_processes import children
from greatseald.adapters.tokens.operator_client import HostUnreachable, OperatedHost
from greatseald.adapters.tokens.operator_notes import OnAct
from greatseald.adapters.tokens.operator_protocol import Answer
from greatseald.adapters.tokens.secret import Secret
from greatseald.adapters.tokens.supervisor import SupervisedToken
from greatseald.domain.errors import TokenLocked, TokenUnavailable
from greatseald.ports.tokens import OperatorAct, Signed, TokenState
from token_site import P256, TokenSite, end_process, until_state

pytestmark = [pytest.mark.shim, pytest.mark.softhsm]


class Operated:
    """A token's front and an operator at its host, in one test."""

    def __init__(self, site: TokenSite, **changes: object) -> None:
        self.site = site
        self.settings = site.settings(pin_file=None, by_operator=True, **changes)
        self.pin = (site.directory / "pin").read_text().strip()
        self.acts: list[OperatorAct] = []
        self.log_works = True

    async def record(self, _token: str, act: OperatorAct) -> None:
        if not self.log_works:
            raise TokenUnavailable("the log cannot be written")
        self.acts.append(act)

    @asynccontextmanager
    async def front(self, on_act: OnAct | None = None) -> AsyncIterator[SupervisedToken]:
        token = SupervisedToken(self.settings, on_act=on_act or self.record)
        await token.start()
        try:
            yield token
        finally:
            await token.stop()

    async def ask(self, action: str, *pins: str, final_try: bool = False) -> Answer:
        """What an operator asks, in a thread as in another process."""

        def work() -> Answer:
            secrets = [Secret(bytearray(pin.encode())) for pin in pins]
            return OperatedHost(self.settings, temporary=False).ask(action, secrets, final_try=final_try)

        return await asyncio.to_thread(work)

    async def signs(self, token: SupervisedToken) -> bool:
        results = await self.site.sign(token, "release", P256, self.site.operations(3))
        return all(isinstance(result, Signed) for result in results)

    @property
    def logins(self) -> list[int]:
        assert self.site.shim is not None
        return [call.rv for call in self.site.shim.logins()]


@pytest.fixture
def operated(tmp_path: Path) -> Operated:
    return Operated(TokenSite.create(tmp_path, shim=True))


def test_a_token_waits_locked_signs_once_unlocked_and_is_locked_after_a_restart(operated: Operated):
    async def run() -> None:
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
            assert "greatseald token unlock soft" in token.detail
            with pytest.raises(TokenLocked):
                token.sign("pkcs11:object=release", P256, operated.site.operations(1))
            assert operated.logins == []
            answer = await operated.ask("unlock", operated.pin)
            assert answer.result == "done", answer
            await until_state(token, TokenState.READY)
            assert await operated.signs(token)
            assert operated.logins == [ckr.CKR_OK]
            # A host that is killed leaves nothing of the PIN: its successor waits again.
            assert token.host_pid is not None
            end_process(token.host_pid)
            await until_state(token, TokenState.LOCKED)
            assert operated.logins == [ckr.CKR_OK]
        assert [(act.action, act.result, act.uid) for act in operated.acts] == [("unlock", "unlocked", os.geteuid())]

    asyncio.run(run())


def test_a_refused_pin_is_tried_once_and_never_again_and_another_may_be(operated: Operated):
    async def run() -> None:
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
            answer = await operated.ask("unlock", "not-the-pin")
            assert answer.result == "refused"
            assert "CKR_PIN_INCORRECT" in answer.message
            for _ in range(3):
                answer = await operated.ask("unlock", "not-the-pin")
                assert answer.result == "forbidden"
                assert "refused before" in answer.message
            assert operated.logins == [ckr.CKR_PIN_INCORRECT]
            assert (operated.settings.state_dir / "pin-attempt.latch").exists()
            assert (await operated.ask("unlock", operated.pin)).result == "done"
            await until_state(token, TokenState.READY)
            assert operated.logins == [ckr.CKR_PIN_INCORRECT, ckr.CKR_OK]
            assert not (operated.settings.state_dir / "pin-attempt.latch").exists()
        assert [act.result for act in operated.acts] == ["refused", "unlocked"]

    asyncio.run(run())


def test_the_last_try_is_taken_only_when_it_is_asked_for_by_name(operated: Operated):
    assert operated.site.shim is not None
    operated.site.shim.rule("C_Login", "lockout", 2)

    async def run() -> None:
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
            answer = await operated.ask("unlock", "not-the-pin")
            assert answer.result == "refused"
            assert "one try is left" in answer.message
            answer = await operated.ask("unlock", operated.pin)
            assert answer.result == "forbidden"
            assert "--final-try" in answer.message
            assert operated.logins == [ckr.CKR_PIN_INCORRECT]
            assert (await operated.ask("unlock", operated.pin, final_try=True)).result == "done"
            await until_state(token, TokenState.READY)

    asyncio.run(run())
    assert operated.logins == [ckr.CKR_PIN_INCORRECT, ckr.CKR_OK]


def test_a_locked_pin_is_not_tried_at_all(operated: Operated):
    assert operated.site.shim is not None
    operated.site.shim.rule("C_Login", "lockout", 1)

    async def run() -> None:
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
            assert (await operated.ask("unlock", "not-the-pin", final_try=True)).result == "refused"
            answer = await operated.ask("unlock", operated.pin, final_try=True)
            assert answer.result == "forbidden"
            assert "greatseald token unblock soft" in answer.message

    asyncio.run(run())
    assert operated.logins == [ckr.CKR_PIN_INCORRECT]


def test_an_answer_that_says_nothing_of_the_pin_costs_one_try_and_the_operator_decides(operated: Operated):
    assert operated.site.shim is not None
    operated.site.shim.rule("C_Login", "rv", ckr.CKR_FUNCTION_FAILED, times=1)

    async def run() -> None:
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
            answer = await operated.ask("unlock", operated.pin)
            assert answer.result == "failed"
            assert "did not say whether it tried the PIN" in answer.message
            assert answer.status is not None
            assert "may have cost a try" in answer.status.last_attempt
            assert operated.logins == [ckr.CKR_FUNCTION_FAILED]
            assert (await operated.ask("unlock", operated.pin)).result == "done"
            await until_state(token, TokenState.READY)

    asyncio.run(run())
    assert operated.logins == [ckr.CKR_FUNCTION_FAILED, ckr.CKR_OK]


@pytest.mark.parametrize("end", ["segv", "hang"])
def test_a_host_that_dies_in_the_login_tries_nothing_by_itself_afterwards(tmp_path: Path, end: str):
    operated = Operated(TokenSite.create(tmp_path, shim=True), operation_timeout=2.0)
    assert operated.site.shim is not None
    rule = operated.site.shim.rule("C_Login", end, times=1)
    shim = operated.site.shim

    async def run() -> None:
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
            host = token.host_pid
            asking = asyncio.create_task(operated.ask("unlock", operated.pin))
            if end == "hang":  # its time is that of a start, of which a test does not want to wait for the end
                while not shim.hits(rule):
                    await asyncio.sleep(0.01)
                assert (operated.settings.state_dir / "pin-attempt.latch").exists()
                assert host is not None
                end_process(host)
            with pytest.raises(HostUnreachable, match="gave no answer"):
                await asking
            while "may have cost a try" not in token.detail:
                await asyncio.sleep(0.01)
            assert token.state is TokenState.LOCKED
            assert token.host_pid != host
            assert operated.logins == []  # the shim writes a line after the call; nothing else was tried
            assert (await operated.ask("unlock", operated.pin)).result == "done"
            await until_state(token, TokenState.READY)

    asyncio.run(run())
    assert operated.logins == [ckr.CKR_OK]
    assert [act.result for act in operated.acts] == ["interrupted", "unlocked"]


def test_nothing_is_signed_before_the_unlocking_is_in_the_log(operated: Operated):
    async def run() -> None:
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
            operated.log_works = False
            answer = await operated.ask("unlock", operated.pin)
            assert answer.result == "done"
            assert answer.status is not None
            assert (answer.status.state, answer.status.acts_waiting) == ("ready", 1)
            for _ in range(20):
                await asyncio.sleep(0.02)
                assert token.state is TokenState.LOCKED
                with pytest.raises(TokenLocked):
                    token.sign("pkcs11:object=release", P256, operated.site.operations(1))
            operated.log_works = True
            await until_state(token, TokenState.READY)
            assert [act.result for act in operated.acts] == ["unlocked"]
            assert await operated.signs(token)

    asyncio.run(run())


def test_what_no_front_has_noted_is_told_to_the_next(operated: Operated):
    async def run() -> None:
        operated.log_works = False
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
            await operated.ask("unlock", "not-the-pin")
        operated.log_works = True
        assert operated.acts == []
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
            while json.loads((operated.settings.state_dir / "operator-acts").read_bytes()):
                await asyncio.sleep(0.01)
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
        assert [(act.action, act.result) for act in operated.acts] == [("unlock", "refused")]

    asyncio.run(run())


def test_an_act_whose_host_ends_while_it_is_being_written_is_written_once(operated: Operated):
    """The log takes its time, and the host is gone before the front can say that it has it."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    record = operated.record

    async def slowly(token: str, act: OperatorAct) -> None:
        begun.set()
        await go_on.wait()
        await record(token, act)

    async def run() -> None:
        async with operated.front(slowly) as token:
            await until_state(token, TokenState.LOCKED)
            await operated.ask("unlock", "not-the-pin")
            await begun.wait()
            host = token.host_pid
            assert host is not None
            end_process(host)
            while token.host_pid in (host, None) or token.state is not TokenState.LOCKED:
                await asyncio.sleep(0.01)
            go_on.set()
            while json.loads((operated.settings.state_dir / "operator-acts").read_bytes()):
                await asyncio.sleep(0.01)
        assert [act.result for act in operated.acts] == ["refused"]

    asyncio.run(run())


def test_operators_do_nothing_once_too_much_of_it_is_in_no_log(operated: Operated):
    async def run() -> None:
        operated.log_works = False
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
            for number in range(32):
                assert (await operated.ask("unlock", f"wrong-{number}")).result == "refused"
            answer = await operated.ask("unlock", operated.pin)
            assert answer.result == "failed"
            assert "audit log" in answer.message
            assert len(operated.logins) == 32

    asyncio.run(run())


def test_a_locked_token_signs_nothing_more_and_logs_out(operated: Operated):
    async def run() -> None:
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
            assert (await operated.ask("lock")).message == "token soft is locked already"
            await operated.ask("unlock", operated.pin)
            await until_state(token, TokenState.READY)
            host = token.host_pid
            assert (await operated.ask("lock")).result == "done"
            await until_state(token, TokenState.LOCKED)
            assert token.host_pid != host
            while json.loads((operated.settings.state_dir / "operator-acts").read_bytes()):
                await asyncio.sleep(0.01)
            assert [act.action for act in operated.acts] == ["unlock", "lock"]  # each once, however often it was told

    asyncio.run(run())
    assert operated.logins == [ckr.CKR_OK]


def test_a_pin_of_impossible_length_is_not_tried(operated: Operated):
    async def run() -> None:
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
            answer = await operated.ask("unlock", "123")
            assert answer.result == "forbidden"
            assert "4 to 255" in answer.message
            assert (await operated.ask("unlock")).result == "usage"
            assert operated.logins == []

    asyncio.run(run())


def test_the_socket_is_for_one_user_and_takes_no_junk(operated: Operated):
    path = operated.settings.operator_socket

    def say(data: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.settimeout(5)
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            try:
                return sock.recv(65536)
            except ConnectionResetError:  # hung up on before everything was read
                return b""

    def request(*fields: object) -> bytes:
        body = msgspec.msgpack.encode(fields)
        return len(body).to_bytes(2, "big") + body

    async def run() -> None:
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
            assert path.stat().st_mode & 0o777 == 0o600
            for junk in (
                b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff", b"\x00\x00", b"\x00\x05\xff\xff\xff\xff\xff",
                request(1, "soft", "unlock", False, [257]), request(1, "soft", "unlock", False, [1, 1, 1]),
                request(1, "soft", "unlock", False, [-1]), request(1, "soft", "unlock", False, [8]) + b"123",
            ):  # fmt: skip
                assert await asyncio.to_thread(say, junk) == b""
            assert b"usage" in await asyncio.to_thread(say, request(99, "soft", "status", False, []))
            assert b"usage" in await asyncio.to_thread(say, request(1, "other", "unlock", False, [4]) + b"1234")
            assert b"usage" in await asyncio.to_thread(say, request(1, "soft", "sign", False, []))
            assert operated.logins == []
            assert (await operated.ask("unlock", operated.pin)).result == "done"

    asyncio.run(run())


def test_a_token_with_a_pin_pad_is_unlocked_there_when_the_operator_says_so(operated: Operated):
    assert operated.site.shim is not None
    operated.site.shim.rule("C_GetTokenInfo", "flags", 0x100)  # CKF_PROTECTED_AUTHENTICATION_PATH
    operated.site.shim.rule("C_Login", "rv", ckr.CKR_OK)

    async def run() -> None:
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
            status = (await operated.ask("status")).status
            assert status is not None
            assert status.pin_pad
            assert operated.logins == []
            assert (await operated.ask("unlock")).result == "done"
            await until_state(token, TokenState.READY)

    asyncio.run(run())
    assert operated.logins == [ckr.CKR_OK]


@pytest.mark.root
def test_another_user_is_refused_even_where_the_files_rights_let_him_in(operated: Operated):
    if os.geteuid() != 0:
        pytest.skip("needs root to become other users")
    path = operated.settings.operator_socket
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(sys.argv[1])\n"
        "try: s.sendall(bytes.fromhex(sys.argv[2])); sys.stdout.buffer.write(b'answer:' + s.recv(4096))\n"
        "except (ConnectionResetError, BrokenPipeError): sys.stdout.buffer.write(b'answer:')\n"
    )
    body = msgspec.msgpack.encode((1, "soft", "status", False, []))

    def ask() -> bytes:
        command = ["/usr/bin/python3", "-c", script, str(path), (len(body).to_bytes(2, "big") + body).hex()]
        done = subprocess.run(command, user=65534, group=65534, extra_groups=[], capture_output=True, check=False)
        return done.stdout or done.stderr

    async def run() -> None:
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
            assert b"Error" in await asyncio.to_thread(ask)
            for directory in path.parents:
                if directory.stat().st_uid == 0 and directory not in (Path("/tmp"), Path("/")):
                    directory.chmod(directory.stat().st_mode | 0o011)
            path.chmod(0o666)
            assert await asyncio.to_thread(ask) == b"answer:"

    asyncio.run(run())


def test_a_unit_stays_unlocked_while_its_front_is_restarted(tmp_path: Path):
    site = TokenSite.create(tmp_path, shim=True)
    assert site.shim is not None
    config = site.directory / "greatseald.toml"
    environment = ", ".join(f'{name} = "{value}"' for name, value in site.settings().environment.items())
    config.write_text(
        f'[[tokens]]\nname = "soft"\ntype = "pkcs11"\nuri = "pkcs11:token=greatseal"\nmodule = "{site.shim.module}"\n'
        f'unlock = "operator"\nstate_dir = "{site.directory / "state"}"\nsessions = 2\nlockout = "none"\n'
        f'host_socket = "{site.directory / "host.sock"}"\nenvironment = {{ {environment} }}\n'
    )
    operated = Operated(site, host_socket=site.directory / "host.sock")
    command = [sys.executable, "-m", "greatseald.adapters.tokens.host", "--config", str(config), "--token", "soft"]
    unit = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    async def run() -> None:
        async with operated.front() as token:
            await until_state(token, TokenState.LOCKED)
            assert (await operated.ask("unlock", operated.pin)).result == "done"
            await until_state(token, TokenState.READY)
        # Also an act that no front has noted keeps the next one from work only until it has.
        assert (await operated.ask("change-pin", operated.pin, "another-pin")).result == "done"
        async with operated.front() as token:
            await until_state(token, TokenState.READY)
            assert [act.action for act in operated.acts] == ["unlock", "change-pin"]
            assert await operated.signs(token)
            worker = next(iter(children(unit.pid)))
            end_process(worker)
            await until_state(token, TokenState.LOCKED)

    try:
        asyncio.run(run())
        assert operated.logins == [ckr.CKR_OK]
    finally:
        unit.terminate()
        assert unit.wait(30) == 0
        if unit.stderr is not None:
            said = unit.stderr.read()
            unit.stderr.close()
            assert operated.pin not in said
