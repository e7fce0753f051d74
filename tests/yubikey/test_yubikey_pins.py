"""A YubiKey's PIN and PUK in an operator's hands: unlock, change, unblock, and the tries that they cost."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from yubikey_site import P256, PIN, YubiKeySite, until_state

from greatseald.adapters.tokens.operator_client import reach
from greatseald.adapters.tokens.operator_protocol import Answer
from greatseald.adapters.tokens.secret import Secret
from greatseald.ports.tokens import Signed, TokenState

pytestmark = pytest.mark.yubikey
SERIAL = 11111111
SLOT = "piv:slot=9c"
PUK, NEW = "12345678", "87654321"


async def ask(site: YubiKeySite, action: str, *pins: str, final_try: bool = False, by_operator: bool = True) -> Answer:
    settings = site.settings(pin_file=None, by_operator=True) if by_operator else site.settings()

    def work() -> Answer:
        with reach(settings, offline=True) as host:
            return host.ask(action, [Secret(bytearray(pin.encode())) for pin in pins], final_try=final_try)

    return await asyncio.to_thread(work)


async def test_an_operator_unlocks_a_yubikey_and_it_knows_its_tries(site: YubiKeySite):
    site.generate("9c", "ECCP256", pin_policy="ALWAYS")
    async with site.token(ready=False, pin_file=None, by_operator=True) as token:
        await until_state(token, TokenState.LOCKED)
        status = (await ask(site, "status")).status
        assert status is not None
        assert (status.tries, status.least_bytes, status.most_bytes) == ("3 tries are left", 6, 8)
        for impossible in ("12345", "123456789"):
            answer = await ask(site, "unlock", impossible)
            assert answer.result == "forbidden"
            assert "6 to 8" in answer.message
        answer = await ask(site, "unlock", "000000")
        assert answer.result == "refused"
        assert "2 tries are left" in answer.message
        assert (await ask(site, "unlock", "000000")).result == "forbidden"
        assert site.rig.look(SERIAL)["tries"] == 2
        assert (await ask(site, "unlock", PIN)).result == "done"
        await until_state(token, TokenState.READY)
        # PIN policy ALWAYS: the host keeps the PIN for each signature, and a changed one too.
        assert isinstance((await site.sign(token, SLOT, P256, site.operations(1)))[0], Signed)
        assert (await ask(site, "change-pin", PIN, NEW)).result == "done"
        assert isinstance((await site.sign(token, SLOT, P256, site.operations(1)))[0], Signed)
        # Pulled out, it is gone, and waits for an operator again when it is back.
        site.rig.eject(SERIAL)
        await until_state(token, TokenState.UNAVAILABLE)
        site.rig.insert(SERIAL)
        await until_state(token, TokenState.LOCKED)
        assert (await ask(site, "unlock", NEW)).result == "done"
        await until_state(token, TokenState.READY)
    assert [act.result for act in site.acts] == ["refused", "unlocked", "changed", "unlocked"]
    assert site.rig.look(SERIAL)["tries"] == 3


async def test_a_locked_host_sees_that_its_yubikey_was_pulled_out(site: YubiKeySite):
    async with site.token(ready=False, pin_file=None, by_operator=True) as token:
        await until_state(token, TokenState.LOCKED)
        site.rig.eject(SERIAL)
        await until_state(token, TokenState.UNAVAILABLE)
        site.rig.insert(SERIAL)
        await until_state(token, TokenState.LOCKED)


async def test_the_last_tries_of_pin_and_puk_are_taken_by_name_only(site: YubiKeySite):
    async with site.token(ready=False, pin_file=None, by_operator=True) as token:
        await until_state(token, TokenState.LOCKED)
        for wrong in ("000001", "000002"):
            assert (await ask(site, "unlock", wrong)).result == "refused"
        answer = await ask(site, "unlock", PIN)
        assert answer.result == "forbidden"
        assert "--final-try" in answer.message
        assert (await ask(site, "unlock", "000003", final_try=True)).result == "refused"
        answer = await ask(site, "unlock", PIN, final_try=True)
        assert answer.result == "forbidden"
        assert "unblock" in answer.message
        for wrong in ("00000001", "00000002"):
            answer = await ask(site, "unblock", wrong, NEW)
            assert answer.result == "refused", answer
        assert (await ask(site, "unblock", "00000002", NEW)).result == "forbidden"
        answer = await ask(site, "unblock", PUK, NEW)
        assert answer.result == "forbidden"
        assert "one try of its PUK" in answer.message
        assert (await ask(site, "unblock", PUK, NEW, final_try=True)).result == "done"
        assert (await ask(site, "unlock", NEW)).result == "done"
        await until_state(token, TokenState.READY)


async def test_pin_and_puk_work_without_a_daemon_and_the_file_follows(site: YubiKeySite):
    site.generate("9c", "ECCP256")
    assert (await ask(site, "change-pin", NEW, by_operator=False)).result == "done"
    assert site.pin_file.read_text() == NEW + "\n"
    site.rig.set(SERIAL, tries=0)
    assert (await ask(site, "unblock", PUK, PIN, by_operator=False)).result == "done"
    assert site.pin_file.read_text() == PIN + "\n"
    async with site.token() as token:
        assert isinstance((await site.sign(token, SLOT, P256, site.operations(1)))[0], Signed)


async def test_the_command_asks_for_the_puk_and_tells_the_tries(site: YubiKeySite, tmp_path: Path):
    config = tmp_path / "greatseald.toml"
    environment = ", ".join(f'{name} = "{value}"' for name, value in site.settings().environment.items())
    config.write_text(
        f'[[tokens]]\nname = "yk"\ntype = "yubikey-piv"\nserial = "{SERIAL}"\nunlock = "operator"\n'
        f'state_dir = "{site.state_dir}"\nenvironment = {{ {environment} }}\n'
    )

    def token(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "greatseald", "token", *arguments, "--config", str(config)]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=60, check=False, env=os.environ
        )

    refused = await asyncio.to_thread(token, "unblock", "yk", "--stdin", stdin=f"00000000\n{NEW}\n")
    assert refused.returncode == 3
    assert "2 tries are left" in refused.stderr
    done = await asyncio.to_thread(token, "unblock", "yk", "--stdin", stdin=f"{PUK}\n{NEW}\n")
    assert done.returncode == 0, done.stderr
    wrong = await asyncio.to_thread(token, "change-pin", "yk", "--stdin", stdin=f"{PIN}\n{PIN}1\n")
    assert wrong.returncode == 3
    assert "2 tries are left" in wrong.stderr


async def test_asking_how_it_stands_does_not_disturb_signatures(site: YubiKeySite):
    """The device does one thing at a time; an operator's question waits for its turn."""
    site.generate("9c", "ECCP256")
    site.rig.switch(SERIAL, sign_seconds=0.01)
    async with site.token() as token:
        signing = asyncio.create_task(site.sign(token, SLOT, P256, site.operations(60)))
        for _ in range(10):
            status = (await ask(site, "status", by_operator=False)).status
            assert status is not None
            assert (status.state, status.tries) == ("ready", "3 tries are left")
        assert (await ask(site, "change-pin", NEW, by_operator=False)).result == "done"
        assert all(isinstance(result, Signed) for result in await signing)
