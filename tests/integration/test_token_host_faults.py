"""A vendor's module that hangs, crashes, loses its device or refuses the PIN: what callers and the token get then."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pkcs11_shim as ckr
import pytest

from greatseald.adapters.tokens.ckr import CKR, verdict
from greatseald.adapters.tokens.latch import FILE_NAME as LATCH
from greatseald.adapters.tokens.provision import find_softhsm
from greatseald.adapters.tokens.supervisor import SupervisedToken
from greatseald.domain.errors import TokenLocked, TokenUnavailable
from greatseald.ports.tokens import NotSigned, Signed, SignResult, TokenState
from token_site import P256, TokenSite, refused, until_state

pytestmark = [pytest.mark.softhsm, pytest.mark.shim]

RELEASE = "pkcs11:object=release"


@pytest.fixture
def site(tmp_path: Path) -> TokenSite:
    return TokenSite.create(tmp_path, shim=True)


def shim_of(site: TokenSite) -> ckr.Shim:
    assert site.shim is not None
    return site.shim


def check_against_the_token(site: TokenSite, results: list[SignResult], operations) -> None:
    """Released ⊆ what the token signed ⊆ the ledger; what is certainly not signed the token did not sign."""
    made = {call.digest for call in shim_of(site).signatures()}
    noted = {record.digest for record in site.ledger()}
    assert made <= noted
    for operation, result in zip(operations, results, strict=True):
        if isinstance(result, Signed):
            assert operation.tbs in made
        elif not result.unknown:
            assert operation.tbs not in made


@pytest.mark.parametrize("action", ["segv", "abort", "exit"])
def test_a_crash_in_the_module_costs_what_was_handed_over_and_a_fresh_host_goes_on(site: TokenSite, action: str):
    async def run() -> None:
        async with site.token() as token:
            warm = site.operations(40)
            site.verify("release", P256, warm, await site.sign(token, "release", P256, warm))
            shim_of(site).rule("C_Sign", action, after=20, times=1)
            operations = site.operations(600)
            results = await site.sign(token, "release", P256, operations)
            assert any(isinstance(result, NotSigned) and result.unknown for result in results)
            check_against_the_token(site, results, operations)
            await until_state(token, TokenState.READY)
            after = site.operations(40)
            site.verify("release", P256, after, await site.sign(token, "release", P256, after))

    asyncio.run(run())
    if action != "exit":
        assert any("SIGSEGV" in detail or "SIGABRT" in detail for _, detail in site.states)


def test_a_module_that_crashes_on_every_signature_costs_one_unknown_a_try_and_comes_back(site: TokenSite):
    async def run() -> None:
        rule = shim_of(site).rule("C_Sign", "segv")
        async with site.token() as token:
            unknown = 0
            for _ in range(3):
                results = await site.sign(token, "release", P256, site.operations(50))
                unknown += sum(1 for result in refused(results) if result.unknown)
                if token.state is TokenState.UNAVAILABLE:
                    break
                await until_state(token, TokenState.READY, TokenState.UNAVAILABLE)
            # The first try had a small window of them, every other one a single operation.
            assert unknown <= 4 * 2 + 4
            await until_state(token, TokenState.UNAVAILABLE)
            with pytest.raises(TokenUnavailable):
                token.sign(RELEASE, P256, site.operations(1))
            shim_of(site).lift(rule)
            await until_state(token, TokenState.READY)
            operations = site.operations(60)
            site.verify("release", P256, operations, await site.sign(token, "release", P256, operations))

    asyncio.run(run())


@pytest.mark.parametrize("function", ["C_Sign", "C_SignInit"])
def test_a_hang_is_ended_by_the_operation_timeout_and_never_stalls_another_token(tmp_path: Path, function: str):
    hanging = TokenSite.create(tmp_path / "hanging", shim=True)
    other = TokenSite.create(tmp_path / "other")

    async def run() -> None:
        async with hanging.token(operation_timeout=1.0) as slow, other.token() as fast:
            shim_of(hanging).rule(function, "hang", times=1)
            operations = hanging.operations(30)
            work = asyncio.create_task(hanging.sign(slow, "release", P256, operations))
            rounds = 0
            while not work.done():
                batch = other.operations(64)
                other.verify("release", P256, batch, await other.sign(fast, "release", P256, batch))
                rounds += 1
            results = await work
            assert rounds > 1
            assert any(isinstance(result, NotSigned) and result.unknown for result in results)
            check_against_the_token(hanging, results, operations)
            await until_state(slow, TokenState.READY)
            after = hanging.operations(10)
            hanging.verify("release", P256, after, await hanging.sign(slow, "release", P256, after))

    asyncio.run(run())
    assert any(
        "operation_timeout of 1 s" in detail or "did not return within operation_timeout, 1 s" in detail
        for _, detail in hanging.states
    )


async def signs_again(site: TokenSite, token: SupervisedToken) -> None:
    """Ask until it signs; a host that is on its way out says so, and never leaves anything unknown."""
    while True:
        await until_state(token, TokenState.READY)
        operations = site.operations(4)
        results = await site.sign(token, "release", P256, operations)
        if all(isinstance(result, Signed) for result in results):
            site.verify("release", P256, operations, results)
            return
        assert not any(isinstance(result, NotSigned) and (result.unknown or not result.retry) for result in results)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("function", ["C_Initialize", "C_Login", "C_OpenSession", "C_FindObjectsInit"])
def test_an_error_on_the_way_up_is_said_and_tried_again(site: TokenSite, function: str):
    async def run() -> None:
        rule = shim_of(site).rule(function, "rv", ckr.CKR_TOKEN_NOT_PRESENT)
        async with site.token(ready=False) as token:
            if function == "C_FindObjectsInit":
                with pytest.raises(TokenUnavailable, match="CKR_TOKEN_NOT_PRESENT"):
                    await token.find_key(RELEASE)
            else:
                await until_state(token, TokenState.UNAVAILABLE)
                assert "CKR_TOKEN_NOT_PRESENT" in token.detail
                assert function in token.detail
            shim_of(site).lift(rule)
            await signs_again(site, token)

    asyncio.run(run())


@pytest.mark.parametrize("value", [*sorted(set(CKR) - {CKR.OK, CKR.BUFFER_TOO_SMALL}), 0x80000BAD])
def test_every_return_value_of_c_sign_means_what_the_table_says(faulty: TokenSite, value: int):
    async def run() -> None:
        site = faulty
        async with site.token(sessions=1) as token:
            shim_of(site).lift_all()
            warm = site.operations(2)
            site.verify("release", P256, warm, await site.sign(token, "release", P256, warm))
            rule = shim_of(site).rule("C_Sign", "rv", value, times=1)
            operations = site.operations(1)
            (result,) = await site.sign(token, "release", P256, operations)
            row = verdict(value, "C_Sign")
            if row.again or value == CKR.USER_NOT_LOGGED_IN:
                # The second try succeeds, unless it went on to a login that this key does not want.
                assert isinstance(result, Signed) or (isinstance(result, NotSigned) and not result.unknown)
            else:
                assert isinstance(result, NotSigned)
                assert (result.ckr, result.unknown, result.retry, result.locked) == (
                    value,
                    row.unknown,
                    row.retry,
                    row.locked,
                )
                assert shim_of(site).hits(rule) == 1, "an operation that may have signed was asked for twice"
            shim_of(site).lift_all()
            await until_state(token, TokenState.READY)
            after = site.operations(2)
            site.verify("release", P256, after, await site.sign(token, "release", P256, after))

    asyncio.run(run())


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> TokenSite:
    return TokenSite.create(tmp_path_factory.mktemp("faulty"), shim=True)


def test_a_session_that_was_lost_is_replaced_and_the_signature_made(site: TokenSite):
    async def run() -> None:
        async with site.token() as token:
            shim_of(site).rule("C_SignInit", "rv", ckr.CKR_SESSION_HANDLE_INVALID, after=3, times=1)
            operations = site.operations(40)
            site.verify("release", P256, operations, await site.sign(token, "release", P256, operations))
            assert len(shim_of(site).logins()) == 1

    asyncio.run(run())


def test_a_token_that_was_unplugged_is_back_by_itself_with_one_login(site: TokenSite):
    async def run() -> None:
        shim = shim_of(site)
        async with site.token() as token:
            shim.unplug()
            results = await site.sign(token, "release", P256, site.operations(20))
            assert all(not result.locked for result in refused(results))
            await until_state(token, TokenState.UNAVAILABLE)
            before = len(shim.logins())
            shim.lift_all()
            await until_state(token, TokenState.READY)
            assert len(shim.logins()) == before + 1
            operations = site.operations(20)
            site.verify("release", P256, operations, await site.sign(token, "release", P256, operations))

    asyncio.run(run())


def test_a_signature_that_came_too_late_is_unknown_and_stands_in_the_ledger(site: TokenSite):
    async def run() -> None:
        async with site.token() as token:
            shim_of(site).rule("C_Sign", "late", ckr.CKR_FUNCTION_FAILED, times=1)
            operations = site.operations(1)
            (result,) = refused(await site.sign(token, "release", P256, operations))
            assert result.unknown
            assert result.sequence == 1
            assert [record.digest for record in site.ledger()] == [operations[0].tbs]

    asyncio.run(run())


def test_fewer_sessions_than_asked_for_are_used_and_said(tmp_path: Path):
    site = TokenSite.create(tmp_path)
    site.shim = ckr.Shim(tmp_path / "shim", max_sessions=3)

    async def run() -> None:
        async with site.token(sessions=8) as token:
            operations = site.operations(100)
            site.verify("release", P256, operations, await site.sign(token, "release", P256, operations))

    asyncio.run(run())
    assert any("3 of 8 sessions" in detail for _, detail in site.states)


def test_a_module_that_wants_a_parameter_string_gets_it_and_says_when_it_does_not(tmp_path: Path):
    site = TokenSite.create(tmp_path)
    site.shim = ckr.Shim(tmp_path / "shim", init_args="configdir='/x'")

    async def run() -> None:
        async with site.token(init_args="configdir='/x'") as token:
            operations = site.operations(2)
            site.verify("release", P256, operations, await site.sign(token, "release", P256, operations))
        async with site.token(ready=False) as token:
            await until_state(token, TokenState.UNAVAILABLE)
            assert "init_args" in token.detail

    asyncio.run(run())


# -- the PIN ----------------------------------------------------------------------------------------


def test_a_wrong_pin_is_tried_once_whatever_restarts_and_the_operator_is_told_what_to_do(site: TokenSite):
    right = (site.directory / "pin").read_bytes()
    (site.directory / "pin").write_bytes(b"wrong-pin\n")
    latch = site.directory / "state" / LATCH

    async def run() -> None:
        for _ in range(3):
            async with site.token(ready=False) as token:
                await until_state(token, TokenState.LOCKED)
                assert "CKR_PIN_INCORRECT" in token.detail
                assert str(latch) in token.detail
                assert "wrong-pin" not in token.detail
                with pytest.raises(TokenLocked):
                    token.sign(RELEASE, P256, site.operations(1))
                with pytest.raises(TokenLocked):
                    await token.find_key(RELEASE)
        assert len(shim_of(site).logins()) == 1
        async with site.token(ready=False) as token:
            await until_state(token, TokenState.LOCKED)
            (site.directory / "pin").write_bytes(right)
            latch.unlink()
            await until_state(token, TokenState.READY)
        assert len(shim_of(site).logins()) == 2

    asyncio.run(run())


def test_a_host_that_dies_in_the_login_is_not_followed_by_a_storm_of_logins(site: TokenSite):
    shim_of(site).rule("C_Login", "segv")

    async def run() -> None:
        async with site.token(ready=False, lockout="") as token:
            await until_state(token, TokenState.LOCKED)
            assert "without an answer" in token.detail

    asyncio.run(run())
    assert len(shim_of(site).logins()) + shim_of(site).hits(ckr.Rule(1, "")) <= 3
    latch = site.directory / "state" / LATCH
    assert latch.exists()


def test_the_last_try_of_a_pin_is_never_taken(site: TokenSite):
    right = (site.directory / "pin").read_bytes()
    latch = site.directory / "state" / LATCH
    shim_of(site).rule("C_Login", "lockout", 3)

    async def run() -> None:
        async with site.token(ready=False, lockout="") as token:
            for attempt in itertools.count():
                await until_state(token, TokenState.LOCKED)
                if "one PIN try is left" in token.detail:
                    break
                assert attempt < 3
                latch.unlink()
                await until_state(
                    token, TokenState.STARTING, TokenState.READY, TokenState.UNAVAILABLE, TokenState.LOCKED
                )
                await asyncio.sleep(0.2)

    (site.directory / "pin").write_bytes(b"wrong-pin\n")
    for _ in range(2):  # two wrong tries, each with the operator's permission
        asyncio.run(one_refusal(site))
        latch.unlink()
    assert shim_of(site).wrong_pins() == 2
    (site.directory / "pin").write_bytes(right)
    asyncio.run(run())
    assert shim_of(site).wrong_pins() == 2
    assert len(shim_of(site).logins()) == 2


async def one_refusal(site: TokenSite) -> None:
    async with site.token(ready=False, lockout="") as token:
        await until_state(token, TokenState.LOCKED)
        assert "CKR_PIN_INCORRECT" in token.detail


MAKE_ALWAYS_AUTHENTICATE = """
import sys
import pkcs11
from pkcs11 import Attribute, KeyType
token = pkcs11.lib(sys.argv[1]).get_token(token_label="greatseal")
with token.open(rw=True, user_pin=sys.stdin.read()) as session:
    parameters = session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: bytes.fromhex("06082a8648ce3d030107")}, local=True)
    parameters.generate_keypair(id=b"9c", label="nine-c", store=True,
                                private_template={Attribute.ALWAYS_AUTHENTICATE: True, Attribute.DERIVE: False})
"""


def make_always_authenticate_key(site: TokenSite) -> None:
    environment = {**os.environ, "SOFTHSM2_CONF": str(site.directory / "softhsm2.conf")}
    command = [sys.executable, "-c", MAKE_ALWAYS_AUTHENTICATE, str(find_softhsm())]
    subprocess.run(command, input=(site.directory / "pin").read_text().strip(), text=True, env=environment, check=True)


def test_a_key_that_wants_a_login_for_each_signature_gets_one_under_the_latch(site: TokenSite):
    """As PIV slot 9c does."""
    make_always_authenticate_key(site)
    shim = shim_of(site)

    async def run() -> None:
        async with site.token() as token:
            key = await token.find_key("pkcs11:object=nine-c")
            site.spki["nine-c"] = key.spki
            before = len(shim.logins())
            operations = site.operations(6)
            site.verify("nine-c", P256, operations, await site.sign(token, "nine-c", P256, operations))
            assert len(shim.logins()) >= before + 6
            plain = site.operations(3)
            count = len(shim.logins())
            site.verify("release", P256, plain, await site.sign(token, "release", P256, plain))
            assert len(shim.logins()) == count
            assert not (site.directory / "state" / LATCH).exists()

    asyncio.run(run())


def test_such_a_key_is_learnt_by_its_answer_where_the_module_does_not_tell(site: TokenSite):
    """CKA_ALWAYS_AUTHENTICATE is missing from many modules; the first C_Sign tells, and its signature is made all the same."""
    make_always_authenticate_key(site)
    shim = shim_of(site)
    rule = shim.rule("C_GetAttributeValue", "attr", 0x202)

    async def run() -> None:
        async with site.token(sessions=1) as token:
            site.spki["nine-c"] = (await token.find_key("pkcs11:object=nine-c")).spki
            assert shim.hits(rule) > 0
            operations = site.operations(4)
            site.verify("nine-c", P256, operations, await site.sign(token, "nine-c", P256, operations))
            assert sum(call.rv == ckr.CKR_USER_NOT_LOGGED_IN for call in shim.calls() if call.function == "C_Sign") == 1

    asyncio.run(run())


def test_a_pin_that_is_refused_for_a_signature_is_not_tried_for_the_next(site: TokenSite):
    make_always_authenticate_key(site)
    shim = shim_of(site)

    async def run() -> None:
        async with site.token(sessions=1) as token:
            await token.find_key("pkcs11:object=nine-c")
            shim.rule("C_Login", "rv", ckr.CKR_PIN_INCORRECT)
            results = refused(await site.sign(token, "nine-c", P256, site.operations(8)))
            assert not any(result.unknown for result in results)
            assert any(result.locked for result in results)
            await until_state(token, TokenState.LOCKED)
            assert str(site.directory / "state" / LATCH) in token.detail

    asyncio.run(run())
    assert shim.hits(ckr.Rule(1, "")) == 1
