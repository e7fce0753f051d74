"""A YubiKey that is pulled, put back, slow, locked or wrong, and a pcscd that stops: nothing is lost or signed twice."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from yubikey_site import P256, YubiKeySite, until, until_state
from yubikeys import YubiKeyRig

from greatseal.algorithms import Algorithm
from greatseald.adapters.tokens.ledger import read_ledger
from greatseald.domain.errors import TokenLocked, TokenUnavailable
from greatseald.ports.tokens import NotSigned, Signed, TokenState

pytestmark = pytest.mark.yubikey
SERIAL = 11111111
SLOT = "piv:slot=9c"


async def test_a_yubikey_that_is_pulled_and_put_back_signs_again(site: YubiKeySite):
    site.generate("9c", "ECCP256")
    async with site.token() as token:
        for _ in range(3):
            assert isinstance((await site.sign(token, SLOT, P256, site.operations(1)))[0], Signed)
            site.rig.eject(SERIAL)
            await until_state(token, TokenState.UNAVAILABLE)  # nobody had to ask for a signature
            with pytest.raises(TokenUnavailable):
                await site.sign(token, SLOT, P256, site.operations(1))
            site.rig.insert(SERIAL)
            await until_state(token, TokenState.READY)
        assert isinstance((await site.sign(token, SLOT, P256, site.operations(1)))[0], Signed)
    assert site.rig.look(SERIAL)["tries"] == 3


@pytest.mark.parametrize("moment", ["pull_before_signing", "pull_after_signing"])
async def test_pulled_in_the_middle_of_a_signature_the_outcome_is_unknown(site: YubiKeySite, moment: str):
    site.generate("9c", "ECCP256")
    async with site.token() as token:
        assert isinstance((await site.sign(token, SLOT, P256, site.operations(1)))[0], Signed)
        site.rig.switch(SERIAL, **{moment: True})
        results = await site.sign(token, SLOT, P256, site.operations(3))
        failed = [result for result in results if isinstance(result, NotSigned)]
        assert len(failed) == 3
        assert [result.unknown for result in failed] == [True, False, False]
        site.rig.switch(SERIAL, **{moment: False})
        site.rig.insert(SERIAL)
        await until_state(token, TokenState.READY)
        assert isinstance((await site.sign(token, SLOT, P256, site.operations(1)))[0], Signed)
    made = site.rig.look(SERIAL)["signatures"]
    assert made == (3 if moment == "pull_after_signing" else 2)
    assert len(list(read_ledger(site.state_dir / "ledger"))) == 5  # at least what was made


async def test_pulled_while_work_is_under_way_every_operation_is_answered_once(site: YubiKeySite):
    site.generate("9c", "ECCP256")
    site.rig.switch(SERIAL, sign_seconds=0.02)
    async with site.token() as token:
        task = asyncio.create_task(site.sign(token, SLOT, P256, site.operations(100)))
        await until(lambda: site.rig.look(SERIAL)["signatures"] > 10)
        site.rig.eject(SERIAL)
        results = await task  # `sign` insists on one result for each
        signed = sum(isinstance(result, Signed) for result in results)
        unknown = sum(isinstance(result, NotSigned) and result.unknown for result in results)
        assert 0 < signed < 100
        assert signed <= site.rig.look(SERIAL)["signatures"] <= signed + unknown


async def test_pcscd_stopped_and_started_again(site: YubiKeySite):
    site.generate("9c", "ECCP256")
    async with site.token() as token:
        assert isinstance((await site.sign(token, SLOT, P256, site.operations(1)))[0], Signed)
        await asyncio.to_thread(site.rig.stop_pcscd)
        await until_state(token, TokenState.UNAVAILABLE)
        await until(lambda: "pcscd does not run" in token.detail)
        await asyncio.to_thread(site.rig.start_pcscd)
        await until_state(token, TokenState.READY)
        assert isinstance((await site.sign(token, SLOT, P256, site.operations(1)))[0], Signed)


async def test_a_killed_host_is_replaced_though_pcscd_still_holds_its_card(site: YubiKeySite):
    site.generate("9c", "ECCP256")
    async with site.token() as token:
        for _ in range(3):
            assert token.host_pid is not None
            os.kill(token.host_pid, signal.SIGKILL)
            await until(lambda: token.state is not TokenState.READY)
            await until_state(token, TokenState.READY)
            assert isinstance((await site.sign(token, SLOT, P256, site.operations(1)))[0], Signed)


async def test_a_device_that_hangs_is_given_up_and_its_host_replaced(site: YubiKeySite):
    site.generate("9c", "ECCP256")
    async with site.token(operation_timeout=1.0) as token:
        site.rig.switch(SERIAL, hang_seconds=60.0)
        result = await site.refused(token)
        assert result.unknown
        site.rig.switch(SERIAL, hang_seconds=0.0)
        site.rig.eject(SERIAL)  # what a person does with a device that hangs
        site.rig.insert(SERIAL)
        await until_state(token, TokenState.READY)
        assert isinstance((await site.sign(token, SLOT, P256, site.operations(1)))[0], Signed)


@pytest.mark.parametrize(
    ("word", "unknown", "retry", "ready"),
    [
        (0x6F00, True, True, True),
        (0x6A80, False, False, True),
        (0x6A81, False, False, True),
        (0x6581, True, True, True),
        (0x1234, True, True, True),
        (0x6D00, False, True, False),
    ],
)
async def test_a_status_word_means_what_the_table_says(
    site: YubiKeySite, word: int, unknown: bool, retry: bool, ready: bool
):
    site.generate("9c", "ECCP256")
    async with site.token() as token:
        assert isinstance((await site.sign(token, SLOT, P256, site.operations(1)))[0], Signed)
        site.rig.switch(SERIAL, word_for={"87": word})
        result = await site.refused(token)
        assert (result.unknown, result.retry, result.locked) == (unknown, retry, False)
        assert f"{word:04X}" in result.detail
        assert (token.state is TokenState.READY) is ready
        site.rig.switch(SERIAL, word_for={})
        await until_state(token, TokenState.READY)
        assert isinstance((await site.sign(token, SLOT, P256, site.operations(1)))[0], Signed)


async def test_an_answer_without_end_is_cut_off(site: YubiKeySite):
    site.generate("9c", "ECCP256")
    async with site.token() as token:
        await token.find_key(SLOT)
        site.rig.switch(SERIAL, endless=True)
        result = await site.refused(token)
        assert result.unknown
        assert "does not end" in result.detail


async def test_an_answer_that_is_no_signature_counts_as_signed(site: YubiKeySite):
    site.generate("9c", "ECCP256")
    async with site.token() as token:
        await token.find_key(SLOT)
        site.rig.switch(SERIAL, garbage=True)
        result = await site.refused(token)
        assert result.unknown
        assert not result.retry


# -- PINs -----------------------------------------------------------------------------------------


async def test_a_wrong_pin_is_tried_once_and_never_again_by_itself(site: YubiKeySite):
    site.generate("9c", "ECCP256")
    site.pin_file.write_text("654321\n")
    async with site.token(ready=False) as token:
        assert await token.settled(30) is TokenState.LOCKED
        assert "2 tries are left" in token.detail
    async with site.token(ready=False) as token:
        assert await token.settled(30) is TokenState.LOCKED
        with pytest.raises(TokenLocked):
            await site.sign(token, SLOT, P256, site.operations(1))
        assert site.rig.look(SERIAL)["tries"] == 2
        site.pin_file.write_text("123456\n")  # the operator acts
        (site.state_dir / "pin-attempt.latch").unlink()
        await until_state(token, TokenState.READY)
    assert site.rig.look(SERIAL)["tries"] == 3
    assert b"654321" not in b"".join(path.read_bytes() for path in site.state_dir.iterdir())


@pytest.mark.parametrize(("tries", "why"), [(1, "one PIN try is left"), (0, "its PIN is locked")])
@pytest.mark.parametrize("serial", [SERIAL, 33333333])
async def test_the_last_try_is_never_taken(rig: YubiKeyRig, tmp_path: Path, serial: int, tries: int, why: str):
    site = YubiKeySite(rig, serial, tmp_path)
    rig.set(serial, tries=tries)
    async with site.token(ready=False) as token:
        assert await token.settled(30) is TokenState.LOCKED
        assert why in token.detail
    assert rig.look(serial)["tries"] == tries
    assert rig.look(serial)["verifications"] == 0


async def test_a_pin_changed_behind_the_daemon_is_tried_once_by_an_always_key(site: YubiKeySite):
    site.generate("9c", "ECCP256", "ALWAYS")
    async with site.token() as token:
        assert isinstance((await site.sign(token, SLOT, P256, site.operations(1)))[0], Signed)
        site.rig.set(SERIAL, pin=b"99999999".hex())
        results = await site.sign(token, SLOT, P256, site.operations(5))
        assert all(isinstance(result, NotSigned) and result.locked and not result.unknown for result in results)
        await until_state(token, TokenState.LOCKED)
    assert site.rig.look(SERIAL)["tries"] == 2


async def test_a_pin_that_no_yubikey_has_is_not_tried(site: YubiKeySite):
    site.pin_file.write_text("123456789\n")
    async with site.token(ready=False) as token:
        assert await token.settled(30) is TokenState.UNAVAILABLE
        assert "6 to 8" in token.detail
    assert site.rig.look(SERIAL)["verifications"] == 0
    assert not (site.state_dir / "pin-attempt.latch").exists()


async def test_killed_in_a_login_one_more_try_is_made_while_all_are_left(site: YubiKeySite):
    site.generate("9c", "ECCP256")
    site.state_dir.mkdir()
    latch = site.state_dir / "pin-attempt.latch"
    latch.write_text('{"attempted_at":"2026-01-01T00:00:00Z"}\n')
    async with site.token():
        assert not latch.exists()
    latch.write_text('{"attempted_at":"2026-01-01T00:00:00Z"}\n')
    site.rig.set(SERIAL, tries=2)
    async with site.token(ready=False) as token:
        assert await token.settled(30) is TokenState.LOCKED
    assert site.rig.look(SERIAL)["tries"] == 2


# -- what a device attests -------------------------------------------------------------------------


async def test_an_attested_key_is_accepted_stored_and_told_of(site: YubiKeySite):
    site.generate("9c", "ECCP256", "ALWAYS", "CACHED")
    async with site.token(attestation_roots=(site.rig.roots,)) as token:
        found = await token.find_key(SLOT)
        assert (
            "YubiKey 11111111 (firmware 5.7.1, USB-A keychain), PIN policy always, touch policy cached" in found.custody
        )
        assert "verified up to CN=Virtual PIV Root CA" in found.custody
        assert len(found.attestation) == 3
    stored = (site.state_dir / "attestation-9c.pem").read_text()
    assert stored.count("BEGIN CERTIFICATE") == 3
    assert found.custody in stored


@pytest.mark.parametrize("why", ["imported", "another serial number", "another root"])
async def test_a_key_whose_attestation_does_not_hold_never_signs(site: YubiKeySite, tmp_path: Path, why: str):
    site.generate("9c", "ECCP256", imported=why == "imported")
    roots = site.rig.roots
    expected = "has no attestation"
    if why == "another serial number":
        site.rig.switch(SERIAL, attested_serial=22222222)
        expected = "is of YubiKey 22222222, and this is 11111111"
    elif why == "another root":
        from cryptography.hazmat.primitives.serialization import Encoding
        from virtual_yubikey import Issuer

        roots = tmp_path / "other.pem"
        roots.write_bytes(Issuer.make().certificate.public_bytes(Encoding.PEM))
        expected = "does not lead to a configured root"
    async with site.token(attestation_roots=(roots,)) as token:
        with pytest.raises(TokenUnavailable, match=expected):
            await token.find_key(SLOT)
        assert expected in (await site.refused(token)).detail
    assert site.rig.look(SERIAL)["signatures"] == 0


async def test_without_roots_a_key_from_outside_signs_and_nothing_is_claimed(site: YubiKeySite):
    site.generate("9c", "RSA2048", imported=True)
    async with site.token() as token:
        found = await token.find_key(SLOT)
        assert (found.custody, found.attestation) == ("", ())
        (result,) = await site.sign(token, SLOT, Algorithm.RSA_PSS_SHA256, site.operations(1))
        assert isinstance(result, Signed)
