"""A YubiKey behind its token host: every algorithm, PIN policies, touches, several devices at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from yubikey_site import P256, YubiKeySite, until
from yubikeys import YubiKeyRig

from greatseal.algorithms import Algorithm
from greatseald.domain.errors import TokenUnavailable
from greatseald.ports.tokens import NotSigned, Signed, TokenState

pytestmark = pytest.mark.yubikey


@pytest.mark.parametrize(
    ("slot", "kind", "algorithms"),
    [
        ("9a", "ECCP256", ["ecdsa-p256-sha256"]),
        ("9c", "ECCP384", ["ecdsa-p384-sha384"]),
        ("9d", "RSA2048", [each.value for each in Algorithm if each.family == "rsa"]),
        ("82", "RSA3072", ["rsa-pkcs1-sha256", "rsa-pss-sha512"]),
        ("95", "RSA4096", ["rsa-pss-sha256", "rsa-pkcs1-sha384"]),
        ("9e", "ED25519", ["ed25519"]),
    ],
)
async def test_every_algorithm_gives_signatures_that_others_verify(
    site: YubiKeySite, slot: str, kind: str, algorithms: list[str]
):
    spki = site.generate(slot, kind)
    uri = f"piv:slot={slot}"
    async with site.token() as token:
        found = await token.find_key(uri)
        assert found.spki == spki
        assert {Algorithm(name) for name in algorithms} <= set(found.algorithms)
        for name in algorithms:
            algorithm = Algorithm(name)
            operations = site.operations(2, algorithm.digest_size)
            if algorithm.is_pure:
                operations = [site.message(b""), site.message(b"m" * 3000)]
            results = await site.sign(token, uri, algorithm, operations)
            assert all(isinstance(result, Signed) for result in results), results


async def test_a_message_that_no_yubikey_takes_is_refused_with_its_size(site: YubiKeySite):
    site.generate("9a", "ED25519")
    async with site.token() as token:
        (result,) = await site.sign(token, "piv:slot=9a", Algorithm.ED25519, [site.message(b"m" * 3001)])
    assert isinstance(result, NotSigned)
    assert "at most 3000 bytes" in result.detail
    assert not result.unknown


@pytest.mark.parametrize(
    ("pin_policy", "version"),
    [("NEVER", (5, 7, 1)), ("ONCE", (5, 7, 1)), ("ALWAYS", (5, 7, 1)), ("ALWAYS", (5, 2, 7))],
)
async def test_the_pin_is_verified_as_often_as_the_key_wants_it(
    rig: YubiKeyRig, tmp_path: Path, pin_policy: str, version
):
    serial = 11111111 if version == (5, 7, 1) else 33333333
    site = YubiKeySite(rig, serial, tmp_path)
    site.generate("9c", "ECCP256", pin_policy)
    async with site.token() as token:
        results = await site.sign(token, "piv:slot=9c", P256, site.operations(5))
        assert all(isinstance(result, Signed) for result in results), results
        assert rig.look(serial)["verifications"] == (6 if pin_policy == "ALWAYS" else 1)
        assert rig.look(serial)["signatures"] == 5
        assert token.info is not None
        assert (token.info.serial, token.info.firmware) == (str(serial), ".".join(map(str, version)))
    assert not (site.state_dir / "pin-attempt.latch").exists()


async def test_a_key_without_a_pin_policy_signs_without_any_pin(site: YubiKeySite):
    site.generate("9e", "ECCP256", "NEVER")
    site.generate("9c", "ECCP256", "ONCE")
    async with site.token(pin_file=None) as token:
        (result,) = await site.sign(token, "piv:slot=9e", P256, site.operations(1))
        assert isinstance(result, Signed)
        assert "wants a PIN" in (await site.refused(token)).detail
    assert site.rig.look(11111111)["verifications"] == 0


async def test_several_yubikeys_are_told_apart_by_their_serial_numbers(rig: YubiKeyRig, tmp_path: Path):
    sites = [YubiKeySite(rig, serial, tmp_path) for serial in (11111111, 22222222, 33333333)]
    for site in sites:
        site.generate("9a", "ECCP256")
    async with sites[0].token() as one, sites[1].token() as two, sites[2].token() as three:
        signed = await asyncio.gather(
            *(site.sign(token, "piv:slot=9a", P256, site.operations(20)) for site, token in zip(sites, (one, two, three), strict=True))
        )  # fmt: skip
    assert all(isinstance(result, Signed) for results in signed for result in results)
    assert [rig.look(site.serial)["signatures"] for site in sites] == [20, 20, 20]


async def test_a_missing_yubikey_is_named_with_those_that_are_there(rig: YubiKeyRig, tmp_path: Path):
    site = YubiKeySite(rig, 44444444, tmp_path)
    async with site.token(ready=False) as token:
        assert await token.settled(30) is TokenState.UNAVAILABLE
        assert "no YubiKey with serial number 44444444 is there; present: 11111111" in token.detail


async def test_an_empty_slot_is_named_with_those_that_have_keys(site: YubiKeySite):
    site.generate("9a", "ECCP256")
    async with site.token() as token:
        for uri, why in (
            ("piv:slot=9c", "slot 9c holds no key; slots with keys: 9a"),
            ("piv:slot=f9", "attests the others"),
            ("pkcs11:id=%02", "write piv:slot=9a"),
        ):
            with pytest.raises(TokenUnavailable, match=why):
                await token.find_key(uri)


# -- touches --------------------------------------------------------------------------------------


async def test_a_touch_is_asked_for_and_waited_for(site: YubiKeySite):
    site.generate("9c", "ECCP256", touch_policy="ALWAYS")
    site.rig.switch(11111111, touch=False, touch_wait=20.0)
    async with site.token(operation_timeout=1.0) as token:
        task = asyncio.create_task(site.sign(token, "piv:slot=9c", P256, site.operations(1)))
        await until(lambda: "touch YubiKey 11111111" in token.awaited)
        await asyncio.sleep(1.5)  # longer than operation_timeout: a person is slower than a device
        assert token.state is TokenState.READY
        site.rig.switch(11111111, touch=True)
        assert isinstance((await task)[0], Signed)
        await until(lambda: not token.awaited)
    assert [bool(what) for what in site.touches] == [True, False]


@pytest.mark.parametrize("pin_policy", ["NEVER", "ONCE", "ALWAYS"])
async def test_a_missing_touch_is_told_apart_from_a_missing_pin(site: YubiKeySite, pin_policy: str):
    site.generate("9c", "ECCP256", pin_policy, "ALWAYS")
    site.rig.switch(11111111, touch=False, touch_wait=0.4)
    async with site.token(touch_timeout=1.0) as token:
        result = await site.refused(token)
        assert "nobody touched the YubiKey" in result.detail
        assert (result.unknown, result.retry, result.locked) == (False, True, False)
        assert token.state is TokenState.READY
        site.rig.switch(11111111, touch=True)
        assert isinstance((await site.sign(token, "piv:slot=9c", P256, site.operations(1)))[0], Signed)
    assert site.rig.look(11111111)["tries"] == 3


async def test_a_cached_touch_serves_a_batch(site: YubiKeySite):
    site.generate("9c", "ECCP256", touch_policy="CACHED")
    async with site.token() as token:
        results = await site.sign(token, "piv:slot=9c", P256, site.operations(10))
        site.rig.switch(11111111, touch=False)
        results += await site.sign(token, "piv:slot=9c", P256, site.operations(10))
    assert all(isinstance(result, Signed) for result in results)
