"""Draining, quarantining and resuming a token, on its supervisor: what was accepted ends, nothing new begins."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from greatseald.domain.errors import TokenUnavailable
from greatseald.ports.tokens import BreakerState, NotSigned, Signed, TokenState
from token_site import P256, TokenSite, is_alive, refused, until_state

pytestmark = [pytest.mark.softhsm, pytest.mark.shim]

RELEASE = "pkcs11:object=release"


@pytest.fixture
def site(tmp_path: Path) -> TokenSite:
    return TokenSite.create(tmp_path, shim=True)


def slow(site: TokenSite, milliseconds: int = 20) -> None:
    assert site.shim is not None
    site.shim.rule("C_Sign", "delay", milliseconds)


def test_a_drained_token_finishes_what_it_accepted_lets_go_of_the_device_and_comes_back(site: TokenSite):
    slow(site)

    async def run() -> None:
        async with site.token() as token:
            warm = site.operations(8)
            await site.sign(token, "release", P256, warm)
            host = token.host_pid
            operations = site.operations(40)
            work = asyncio.create_task(site.sign(token, "release", P256, operations))
            await asyncio.sleep(0)
            token.withdraw(TokenState.DRAINED, "maintenance")
            assert token.state is TokenState.DRAINING
            with pytest.raises(TokenUnavailable, match="maintenance"):
                token.sign(RELEASE, P256, site.operations(1))
            site.verify("release", P256, operations, await work)
            await until_state(token, TokenState.DRAINED)
            assert host is not None
            assert not is_alive(host)
            assert token.host_pid is None
            await token.restore()
            await until_state(token, TokenState.READY)
            after = site.operations(8)
            site.verify("release", P256, after, await site.sign(token, "release", P256, after))

    asyncio.run(run())


def test_a_quarantined_token_finishes_only_what_its_host_has(site: TokenSite):
    slow(site)

    async def run() -> None:
        async with site.token() as token:
            await site.sign(token, "release", P256, site.operations(8))
            operations = site.operations(200)
            work = asyncio.create_task(site.sign(token, "release", P256, operations))
            while not token.load.in_flight:
                await asyncio.sleep(0)
            token.withdraw(TokenState.QUARANTINED, "odd signatures")
            assert token.state is TokenState.QUARANTINED
            results = await work
            left = [result for result in results if isinstance(result, NotSigned)]
            assert 0 < len(left) < 200
            assert not any(result.unknown for result in left)
            assert all(result.retry for result in left)
            assert site.shim is not None
            made = {call.digest for call in site.shim.signatures()}
            for operation, result in zip(operations, results, strict=True):
                assert (operation.tbs in made) == isinstance(result, Signed)
            await until_state(token, TokenState.QUARANTINED)
            await token.restore()
            await until_state(token, TokenState.READY)
            assert token.load.breaker is BreakerState.HALF_OPEN
            after = site.operations(8)
            site.verify("release", P256, after, await site.sign(token, "release", P256, after))
            assert token.load.breaker is BreakerState.CLOSED

    asyncio.run(run())


def test_resuming_a_token_that_still_drains_keeps_its_host(site: TokenSite):
    slow(site)

    async def run() -> None:
        async with site.token() as token:
            host = token.host_pid
            work = asyncio.create_task(site.sign(token, "release", P256, site.operations(40)))
            await asyncio.sleep(0)
            token.withdraw(TokenState.DRAINED, "by mistake")
            await asyncio.sleep(0)
            await token.restore()
            assert (token.state, token.host_pid) == (TokenState.READY, host)
            after = site.operations(8)
            site.verify("release", P256, after, await site.sign(token, "release", P256, after))
            await work

    asyncio.run(run())


def test_a_host_that_dies_while_it_drains_leaves_nobody_waiting(site: TokenSite):
    assert site.shim is not None
    site.shim.rule("C_Sign", "segv", after=12, times=1)
    slow(site)

    async def run() -> None:
        async with site.token() as token:
            await site.sign(token, "release", P256, site.operations(4))
            work = asyncio.create_task(site.sign(token, "release", P256, site.operations(100)))
            await asyncio.sleep(0)
            token.withdraw(TokenState.DRAINED, "maintenance")
            results = await work
            assert any(isinstance(result, NotSigned) and result.unknown for result in results)
            assert any(isinstance(result, NotSigned) and not result.unknown and result.retry for result in results)
            await until_state(token, TokenState.DRAINED)
            assert token.host_pid is None

    asyncio.run(run())


def test_a_token_that_cannot_be_reached_is_drained_and_not_tried_again(site: TokenSite):
    assert site.shim is not None
    rule = site.shim.rule("C_Initialize", "rv", 0xE0)

    async def run() -> None:
        async with site.token(ready=False) as token:
            await until_state(token, TokenState.UNAVAILABLE)
            token.withdraw(TokenState.DRAINED, "unplugged")
            await until_state(token, TokenState.DRAINED)
            tries = len(site.states)
            site.shim.lift(rule)
            await asyncio.sleep(0)
            assert len(site.states) == tries
            await token.restore()
            await until_state(token, TokenState.READY)

    asyncio.run(run())


def test_one_that_is_withdrawn_before_the_start_has_no_host(site: TokenSite):
    async def run() -> None:
        from greatseald.adapters.tokens.supervisor import SupervisedToken

        token = SupervisedToken(site.settings())
        token.withdraw(TokenState.QUARANTINED, "since yesterday")
        await token.start()
        assert (token.state, token.host_pid) == (TokenState.QUARANTINED, None)
        with pytest.raises(TokenUnavailable, match="since yesterday"):
            await token.find_key(RELEASE)
        await token.stop()

    asyncio.run(run())


def test_what_waits_for_a_token_that_hangs_is_given_back_where_others_can_do_it(site: TokenSite):
    async def run() -> None:
        async with site.token(operation_timeout=2.5) as token:
            assert site.shim is not None
            site.shim.rule("C_Sign", "hang", after=8, times=2)
            slow(site, 60)
            await site.sign(token, "release", P256, site.operations(8))
            movable: list[NotSigned] = []

            async def ask(movable_too: bool) -> None:
                async for chunk in token.sign(RELEASE, P256, site.operations(30), movable=movable_too):
                    if movable_too:
                        movable.extend(refused(chunk))

            first = asyncio.create_task(ask(False))
            await asyncio.sleep(0)
            await ask(True)
            assert len(movable) == 30
            assert all(result.retry and not result.unknown for result in movable)
            assert not first.done()
            assert token.state is TokenState.READY
            await first

    asyncio.run(run())
