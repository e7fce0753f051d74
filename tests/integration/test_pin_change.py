"""Changing and unblocking a token's PIN: no try is wasted, and no token is left whose PIN nobody knows."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pkcs11_shim as ckr
import pytest

from greatseald.adapters.tokens.operator_client import HostUnreachable, OperatedHost, WrongUser, reach
from greatseald.adapters.tokens.operator_protocol import Answer
from greatseald.adapters.tokens.secret import Secret
from greatseald.domain.tokens import TokenSettings
from greatseald.ports.tokens import TokenState
from token_site import P256, TokenSite, until_state

pytestmark = [pytest.mark.shim, pytest.mark.softhsm]

SO_PIN = "security-officer"
NEW = "another-pin"


@pytest.fixture
def site(tmp_path: Path) -> TokenSite:
    return TokenSite.create(tmp_path, shim=True)


def pin_of(site: TokenSite) -> str:
    return (site.directory / "pin").read_text().strip()


def ask(settings: TokenSettings, action: str, *pins: str, final_try: bool = False, offline: bool = False) -> Answer:
    with reach(settings, offline=offline) as host:
        assert host.temporary == offline
        return host.ask(action, [Secret(bytearray(pin.encode())) for pin in pins], final_try=final_try)


def softhsm_util(site: TokenSite, *arguments: str) -> str:
    environment = os.environ | {"SOFTHSM2_CONF": str(site.directory / "softhsm2.conf")}
    done = subprocess.run(["softhsm2-util", *arguments], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def with_known_officer(site: TokenSite) -> TokenSite:
    """The token made anew by the vendor's tool: `provision` throws the security officer's PIN away."""
    for token in (site.directory / "tokens").iterdir():
        subprocess.run(["rm", "-r", str(token)], check=True)
    softhsm_util(site, "--init-token", "--free", "--label", "greatseal", "--so-pin", SO_PIN, "--pin", pin_of(site))
    return site


def calls(site: TokenSite) -> list[tuple[str, int]]:
    assert site.shim is not None
    return site.shim.pin_calls()


# -- while no host runs --------------------------------------------------------------------------


def test_a_pin_in_a_file_is_changed_there_and_in_the_token(site: TokenSite):
    old = pin_of(site)
    answer = ask(site.settings(), "change-pin", NEW, offline=True)
    assert answer.result == "done", answer
    assert pin_of(site) == NEW != old
    assert (site.directory / "pin").stat().st_mode & 0o777 == 0o600
    assert not (site.directory / "pin.new").exists()
    assert calls(site) == [("C_SetPIN", ckr.CKR_OK)]

    async def run() -> None:
        async with site.token() as token:
            operations = site.operations(3)
            site.verify("release", P256, operations, await site.sign(token, "release", P256, operations))

    asyncio.run(run())


@pytest.mark.parametrize("new", ["123", "x" * 256])
def test_a_new_pin_that_the_token_cannot_have_is_refused_before_anything_is_tried(site: TokenSite, new: str):
    old = pin_of(site)
    answer = ask(site.settings(), "change-pin", new, offline=True)
    assert answer.result == "forbidden"
    assert "have 4 to 255" in answer.message
    assert pin_of(site) == old
    assert calls(site) == []


def test_a_wrong_pin_in_the_file_costs_one_try_and_changes_nothing(site: TokenSite):
    (site.directory / "pin").write_text("not-the-pin\n")
    answer = ask(site.settings(), "change-pin", NEW, offline=True)
    assert answer.result == "refused"
    assert pin_of(site) == "not-the-pin"
    assert not (site.directory / "pin.new").exists()
    assert (site.directory / "state" / "pin-attempt.latch").exists()
    assert calls(site) == [("C_SetPIN", ckr.CKR_PIN_INCORRECT)]


def test_a_token_that_does_not_like_the_new_pin_keeps_the_old_one(site: TokenSite):
    assert site.shim is not None
    old = pin_of(site)
    site.shim.rule("C_SetPIN", "rv", 0xA1)  # CKR_PIN_INVALID
    answer = ask(site.settings(), "change-pin", NEW, offline=True)
    assert answer.result == "forbidden"
    assert "CKR_PIN_INVALID" in answer.message
    assert pin_of(site) == old
    assert not (site.directory / "pin.new").exists()
    assert not (site.directory / "state" / "pin-attempt.latch").exists()


def test_where_it_is_not_known_which_pin_the_token_has_both_are_kept(site: TokenSite):
    """The token takes the new PIN and answers an error: the old file alone would lock everybody out."""
    assert site.shim is not None
    old = pin_of(site)
    rule = site.shim.rule("C_SetPIN", "late", ckr.CKR_DEVICE_ERROR)
    answer = ask(site.settings(), "change-pin", NEW, offline=True)
    assert answer.result == "failed"
    assert str(site.directory / "pin.new") in answer.message
    assert pin_of(site) == old
    assert (site.directory / "pin.new").read_text().strip() == NEW
    assert (site.directory / "pin.new").stat().st_mode & 0o777 == 0o600
    # Nothing overwrites them, until somebody has looked.
    site.shim.lift(rule)
    answer = ask(site.settings(), "change-pin", "a-third-pin", offline=True)
    assert answer.result == "failed"
    assert "cut off" in answer.message
    assert (site.directory / "pin.new").read_text().strip() == NEW


def test_a_host_that_dies_in_the_change_leaves_both_pins(site: TokenSite):
    assert site.shim is not None
    site.shim.rule("C_SetPIN", "segv")
    with pytest.raises(HostUnreachable, match="gave no answer"):
        ask(site.settings(), "change-pin", NEW, offline=True)
    assert (site.directory / "pin.new").read_text().strip() == NEW
    assert (site.directory / "state" / "pin-attempt.latch").exists()


def test_a_pin_file_that_cannot_be_written_beside_stops_it_before_the_token(site: TokenSite):
    old = pin_of(site)
    (site.directory / ".pin.new.new").mkdir()  # where the new one would be written first
    answer = ask(site.settings(), "change-pin", NEW, offline=True)
    assert answer.result == "failed"
    assert "the old one stays" in answer.message
    assert pin_of(site) == old
    assert calls(site) == []


def test_the_security_officer_sets_a_new_pin(site: TokenSite):
    with_known_officer(site)
    settings = site.settings()
    (settings.state_dir / "pin-attempt.latch").write_text('{"attempted_at":"2026-01-01","verdict":"refused"}')
    assert ask(settings, "unblock", "not-the-officer", NEW, offline=True).result == "refused"
    assert pin_of(site) != NEW
    assert not (site.directory / "pin.new").exists()
    answer = ask(settings, "unblock", SO_PIN, NEW, offline=True)
    assert answer.result == "done", answer
    assert pin_of(site) == NEW
    assert not (settings.state_dir / "pin-attempt.latch").exists()
    assert calls(site) == [
        ("C_Login", ckr.CKR_PIN_INCORRECT),
        ("C_Login", ckr.CKR_OK),
        ("C_InitPIN", ckr.CKR_OK),
    ]


def test_the_officers_last_try_is_taken_by_name_only(site: TokenSite):
    assert site.shim is not None
    with_known_officer(site)
    site.shim.rule("C_GetTokenInfo", "flags", 0x200000)  # CKF_SO_PIN_FINAL_TRY
    answer = ask(site.settings(), "unblock", SO_PIN, NEW, offline=True)
    assert answer.result == "forbidden"
    assert "one try of its security officer's PIN is left" in answer.message
    assert calls(site) == []
    assert ask(site.settings(), "unblock", SO_PIN, NEW, offline=True, final_try=True).result == "done"


def test_what_was_done_without_a_daemon_is_told_to_the_next_one(site: TokenSite):
    ask(site.settings(), "change-pin", NEW, offline=True)

    async def run() -> None:
        async with site.token():
            assert [(act.action, act.result) for act in site.acts] == [("change-pin", "changed")]

    asyncio.run(run())


@pytest.mark.root
def test_somebody_else_than_the_hosts_user_starts_no_host(site: TokenSite):
    if os.geteuid() != 0:
        pytest.skip("needs root to give the directory away")
    os.chown(site.directory / "state", 65534, -1)
    with pytest.raises(WrongUser, match="user id 65534"):
        ask(site.settings(), "change-pin", NEW, offline=True)


# -- while a host runs ---------------------------------------------------------------------------


def test_a_pin_is_changed_while_the_token_signs(site: TokenSite):
    async def run() -> None:
        async with site.token() as token:
            signing = asyncio.create_task(site.sign(token, "release", P256, operations := site.operations(2000)))
            answer = await asyncio.to_thread(ask, site.settings(), "change-pin", NEW)
            assert answer.result == "done", answer
            site.verify("release", P256, operations, await signing)
            assert pin_of(site) == NEW
            while not site.acts:
                await asyncio.sleep(0.01)
        async with site.token() as token:
            operations = site.operations(3)
            site.verify("release", P256, operations, await site.sign(token, "release", P256, operations))

    asyncio.run(run())
    assert [value for _, value in calls(site)] == [ckr.CKR_OK] * 3


def test_a_token_that_is_logged_in_is_not_unblocked(site: TokenSite):
    async def run() -> None:
        async with site.token():
            answer = await asyncio.to_thread(ask, site.settings(), "unblock", SO_PIN, NEW)
            assert answer.result == "usage"
            assert "change-pin" in answer.message

    asyncio.run(run())
    assert calls(site) == [("C_Login", ckr.CKR_OK)]


def test_a_token_whose_pin_in_the_file_was_refused_comes_up_after_unblocking(site: TokenSite):
    """The file's PIN is wrong: the officer sets one, and the host finds it in the file."""
    assert site.shim is not None
    with_known_officer(site)
    site.shim.rule("C_Login", "lockout", 2)
    (site.directory / "pin").write_text("not-the-pin\n")
    settings = site.settings(lockout="")

    async def run() -> None:
        async with site.token(ready=False, lockout="") as token:
            await until_state(token, TokenState.LOCKED)  # after its one login, which was refused
            answer = await asyncio.to_thread(ask, settings, "unblock", SO_PIN, NEW)
            assert answer.result == "done", answer
            await until_state(token, TokenState.READY)

    asyncio.run(run())
    assert pin_of(site) == NEW
    assert [(act.action, act.result) for act in site.acts] == [("unblock", "unblocked")]
    assert calls(site) == [
        ("C_Login", ckr.CKR_PIN_INCORRECT),
        ("C_Login", ckr.CKR_OK),
        ("C_InitPIN", ckr.CKR_OK),
        ("C_Login", ckr.CKR_OK),
    ]


def test_an_operators_token_is_unblocked_and_then_unlocked(site: TokenSite):
    assert site.shim is not None
    with_known_officer(site)
    site.shim.rule("C_Login", "lockout", 2)
    settings = site.settings(pin_file=None, by_operator=True)

    async def run() -> None:
        async with site.token(ready=False, pin_file=None, by_operator=True) as token:
            await until_state(token, TokenState.LOCKED)
            host = OperatedHost(settings, temporary=False)

            def say(action: str, *pins: str, final_try: bool = False) -> str:
                return host.ask(action, [Secret(bytearray(p.encode())) for p in pins], final_try=final_try).result

            async def do(action: str, *pins: str, final_try: bool = False) -> str:
                return await asyncio.to_thread(say, action, *pins, final_try=final_try)

            old = pin_of(site)
            assert await do("unlock", "wrong-1") == "refused"
            assert await do("unlock", "wrong-2", final_try=True) == "refused"
            assert await do("unlock", old) == "forbidden"
            assert await do("unblock", SO_PIN, NEW) == "done"
            assert await do("unlock", old) == "refused"
            assert await do("change-pin", "wrong-3", "whatever", final_try=True) == "refused"
            assert await do("unblock", SO_PIN, NEW) == "done"
            assert await do("change-pin", NEW, old) == "done"
            assert await do("unlock", old) == "done"
            await until_state(token, TokenState.READY)
            assert await do("change-pin", old, NEW) == "done"

    asyncio.run(run())
    tried = [value for function, value in calls(site) if function != "C_InitPIN"]
    assert tried.count(ckr.CKR_PIN_INCORRECT) == 4
    assert ckr.CKR_PIN_LOCKED not in tried
