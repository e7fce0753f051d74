"""Modules that deviate from the specification in the ways that vendors' modules do: keys work all the same, or it is said why not."""

from __future__ import annotations

import asyncio
import ctypes
import sys
from pathlib import Path

import pkcs11_shim as ckr
import pytest

from greatseal.algorithms import Algorithm
from greatseald.adapters.tokens.ckr import CKR
from greatseald.domain.errors import TokenUnavailable
from greatseald.ports.tokens import NotSigned, Signed, TokenInfo, TokenKey
from token_site import P256, TokenSite, in_the_token, refused, store_certificate

pytestmark = [pytest.mark.softhsm, pytest.mark.shim]

CKM_RSA_PKCS_PSS, CKM_EDDSA = 0xD, 0x1057
CKM_SHA384 = 0x260
CKA_MODULUS, CKA_PUBLIC_KEY_INFO = 0x120, 0x129
CKA_KEY_TYPE, CKA_ALWAYS_AUTHENTICATE, CKA_EC_PARAMS, CKA_EC_POINT = 0x100, 0x202, 0x180, 0x181
CKO_PRIVATE_KEY = 3
DESTROY_PUBLIC_KEYS = "for key in list(session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY})): key.destroy()\n"
CKK_EC = 3
KEYS = (("p256", "ec-p256"), ("p384", "ec-p384"), ("p521", "ec-p521"), ("ed25519", "ed25519"), ("rsa", "rsa-2048"))
OF_RSA = {algorithm for algorithm in Algorithm if algorithm.family == "rsa"}
PSS_SHA384 = Algorithm.RSA_PSS_SHA384


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TokenSite:
    return TokenSite.create(tmp_path_factory.mktemp("oddities"), KEYS)


@pytest.fixture
def site(made: TokenSite, tmp_path: Path) -> TokenSite:
    """The token of all these tests behind a shim of the test's own."""
    made.shim = ckr.Shim(tmp_path / "shim")
    return made


def shim_of(site: TokenSite) -> ckr.Shim:
    assert site.shim is not None
    return site.shim


def look_up(site: TokenSite, label: str, **changes: object) -> tuple[TokenInfo, TokenKey]:
    async def run() -> tuple[TokenInfo, TokenKey]:
        async with site.token(**changes) as token:
            assert token.info is not None
            return token.info, await token.find_key(f"pkcs11:object={label}")

    return asyncio.run(run())


def sign_with(site: TokenSite, label: str, algorithm: Algorithm, **changes: object) -> None:
    """Find the key, sign with it, verify with the public key that it was made with."""

    async def run() -> None:
        async with site.token(**changes) as token:
            found = await token.find_key(f"pkcs11:object={label}")
            assert found.spki == site.spki[label]
            assert algorithm in found.algorithms
            operations = (
                [site.message_operation(b"a message")]
                if algorithm.is_pure
                else site.operations(3, algorithm.digest_size)
            )
            site.verify(label, algorithm, operations, await site.sign(token, label, algorithm, operations))

    asyncio.run(run())


# -- mechanism lists ----------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [CKR.FUNCTION_NOT_SUPPORTED, CKR.FUNCTION_FAILED])
def test_a_token_that_gives_no_list_of_mechanisms_comes_up_and_signs(site: TokenSite, answer: CKR):
    shim_of(site).rule("C_GetMechanismList", "rv", answer)
    info, key = look_up(site, "rsa")
    assert info.advertised == ()
    assert set(key.algorithms) == OF_RSA
    sign_with(site, "rsa", PSS_SHA384)


@pytest.mark.parametrize("answer", [CKR.MECHANISM_PARAM_INVALID, ckr.CKR_FUNCTION_FAILED, ckr.CKR_DEVICE_ERROR])
def test_rsa_pss_that_is_refused_for_one_hash_costs_that_one_only(site: TokenSite, answer: int):
    """Modules refuse with what they have, device errors among it; a token that still answers is not taken for gone."""
    shim_of(site).rule("C_SignInit", "rv", answer, mech=CKM_RSA_PKCS_PSS, hash=CKM_SHA384)

    async def run() -> None:
        async with site.token() as token:
            key = await token.find_key("pkcs11:object=rsa")
            assert set(key.algorithms) == OF_RSA - {PSS_SHA384}
            (result,) = refused(await site.sign(token, "rsa", PSS_SHA384, site.operations(1, 48)))
            assert not result.unknown
            assert "rsa-pss-sha384" in result.detail
            assert "it can: rsa-pkcs1-sha256" in result.detail
            operations = site.operations(2, 64)
            results = await site.sign(token, "rsa", Algorithm.RSA_PSS_SHA512, operations)
            site.verify("rsa", Algorithm.RSA_PSS_SHA512, operations, results)

    asyncio.run(run())
    assert len(shim_of(site).logins()) == 1


@pytest.mark.parametrize("answer", [ckr.CKR_SESSION_HANDLE_INVALID, ckr.CKR_FUNCTION_FAILED, ckr.CKR_DEVICE_MEMORY])
def test_a_failure_that_passes_does_not_count_as_a_refusal(site: TokenSite, answer: int):
    shim_of(site).rule("C_SignInit", "rv", answer, times=1)
    _, key = look_up(site, "p256")
    assert key.algorithms == (P256,)


def test_a_key_that_is_refused_for_everything_says_by_what(site: TokenSite):
    shim_of(site).rule("C_SignInit", "rv", CKR.MECHANISM_INVALID, mech=CKM_EDDSA)
    with pytest.raises(TokenUnavailable, match=r"does not sign with any supported algorithm.*CKR_MECHANISM_INVALID"):
        look_up(site, "ed25519")


def test_a_refusal_that_comes_with_the_signature_only_is_certain_and_costs_nothing_else(site: TokenSite):
    """What C_SignInit accepted, C_Sign may still refuse."""

    async def run() -> None:
        async with site.token() as token:
            await token.find_key("pkcs11:object=rsa")
            operations = site.operations(3, 48)
            shim_of(site).rule("C_Sign", "rv", CKR.MECHANISM_PARAM_INVALID, digest=operations[1].tbs)
            first, second, third = await site.sign(token, "rsa", PSS_SHA384, operations)
            assert isinstance(first, Signed)
            assert isinstance(third, Signed)
            assert isinstance(second, NotSigned)
            assert (second.ckr, second.unknown, second.retry) == (CKR.MECHANISM_PARAM_INVALID, False, False)

    asyncio.run(run())


def test_an_algorithm_that_is_refused_once_is_asked_for_again_the_next_time(site: TokenSite):
    """The key was probed and had it: one answer is no reason to do without it until the host ends."""
    shim = shim_of(site)

    async def run() -> None:
        async with site.token() as token:
            await token.find_key("pkcs11:object=p256")
            shim.rule("C_SignInit", "rv", CKR.MECHANISM_INVALID, times=1)
            (result,) = refused(await site.sign(token, "p256", P256, site.operations(1)))
            assert (result.ckr, result.unknown, result.retry) == (CKR.MECHANISM_INVALID, False, False)
            asked = site.operations(2)
            site.verify("p256", P256, asked, await site.sign(token, "p256", P256, asked))

    asyncio.run(run())
    assert len(shim.logins()) == 1


# -- one session --------------------------------------------------------------------------------------


@pytest.fixture
def one_session(made: TokenSite, tmp_path: Path) -> TokenSite:
    made.shim = ckr.Shim(tmp_path / "shim", max_sessions=1)
    return made


def test_a_token_that_is_out_of_memory_for_sessions_works_with_those_that_it_has(site: TokenSite):
    shim_of(site).rule("C_OpenSession", "rv", ckr.CKR_DEVICE_MEMORY, after=1)
    sign_with(site, "p256", P256, sessions=8)
    assert any("1 of 8 sessions" in detail for _, detail in site.states)


def test_a_token_with_one_session_refuses_what_it_cannot_do_when_it_is_asked(one_session: TokenSite):
    shim = shim_of(one_session)
    shim.rule("C_SignInit", "rv", CKR.MECHANISM_PARAM_INVALID, mech=CKM_RSA_PKCS_PSS, hash=CKM_SHA384)

    async def run() -> None:
        async with one_session.token(sessions=1) as token:
            (result,) = refused(await one_session.sign(token, "rsa", PSS_SHA384, one_session.operations(1, 48)))
            assert (result.ckr, result.unknown) == (CKR.MECHANISM_PARAM_INVALID, False)

    asyncio.run(run())


# -- objects and attributes ---------------------------------------------------------------------------

EACH_CURVE = [
    ("p256", P256),
    ("p384", Algorithm.ECDSA_P384_SHA384),
    ("p521", Algorithm.ECDSA_P521_SHA512),
    ("ed25519", Algorithm.ED25519),
]


@pytest.mark.parametrize(("label", "algorithm"), EACH_CURVE)
def test_curve_and_point_may_be_missing_from_the_private_key(site: TokenSite, label: str, algorithm: Algorithm):
    for attribute in (CKA_EC_PARAMS, CKA_EC_POINT, CKA_ALWAYS_AUTHENTICATE):
        shim_of(site).rule("C_GetAttributeValue", "attr", attribute, class_=CKO_PRIVATE_KEY)
    sign_with(site, label, algorithm)


def test_an_ed25519_key_is_known_by_its_curve_where_the_module_calls_it_an_ec_key(tmp_path: Path):
    """CKK_EC_EDWARDS is younger than the keys; the public half comes from a certificate here."""
    site = TokenSite.create(tmp_path, [("ed25519", "ed25519")], shim=True)
    store_certificate(site, "ed25519")
    ec_key = CKK_EC.to_bytes(ctypes.sizeof(ctypes.c_ulong), sys.byteorder)
    shim_of(site).rule("C_GetAttributeValue", "attr", CKA_KEY_TYPE, class_=CKO_PRIVATE_KEY, bytes_=ec_key)
    in_the_token(site, DESTROY_PUBLIC_KEYS)
    sign_with(site, "ed25519", Algorithm.ED25519)


@pytest.mark.parametrize(
    ("label", "algorithm"), [("ec-p384", Algorithm.ECDSA_P384_SHA384), ("ed25519", Algorithm.ED25519)]
)
def test_curve_and_point_come_from_the_certificate_where_nothing_else_tells_them(
    tmp_path: Path, label: str, algorithm: Algorithm
):
    site = TokenSite.create(tmp_path, [(label, label)], shim=True)
    store_certificate(site, label)
    shim_of(site).rule("C_GetAttributeValue", "attr", CKA_EC_PARAMS)
    in_the_token(site, DESTROY_PUBLIC_KEYS)
    sign_with(site, label, algorithm)


@pytest.mark.parametrize(("label", "algorithm"), [*EACH_CURVE, ("rsa", Algorithm.RSA_PKCS1_SHA256)])
def test_a_public_key_that_is_stored_with_the_private_one_is_enough(site: TokenSite, label: str, algorithm: Algorithm):
    """CKA_PUBLIC_KEY_INFO (PKCS#11 2.40), with nothing in the public object beside it."""
    shim = shim_of(site)
    shim.rule("C_GetAttributeValue", "attr", CKA_MODULUS)
    shim.rule("C_GetAttributeValue", "attr", CKA_EC_POINT)
    shim.rule("C_GetAttributeValue", "attr", CKA_PUBLIC_KEY_INFO, class_=CKO_PRIVATE_KEY, bytes_=site.spki[label])
    sign_with(site, label, algorithm)


@pytest.mark.parametrize("stored", [b"", b"0" * 91, bytes.fromhex("300506032b65700000"), b"\xff" * 400])
def test_what_is_stored_and_is_no_public_key_is_passed_over(site: TokenSite, stored: bytes):
    shim_of(site).rule("C_GetAttributeValue", "attr", CKA_PUBLIC_KEY_INFO, bytes_=stored)
    sign_with(site, "p256", P256)


def test_a_certificate_with_a_key_that_nobody_can_read_is_passed_over(tmp_path: Path):
    site = TokenSite.create(tmp_path, [("release", "ec-p256")], shim=True)
    known, unknown = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d03017f")
    store_certificate(site, "release", oid=(known, unknown))
    in_the_token(site, DESTROY_PUBLIC_KEYS)
    with pytest.raises(TokenUnavailable, match="no public key belongs to the private key"):
        look_up(site, "release")


def test_a_curve_that_nothing_tells_is_not_guessed(site: TokenSite):
    shim_of(site).rule("C_GetAttributeValue", "attr", CKA_EC_PARAMS)
    with pytest.raises(TokenUnavailable, match="CKA_EC_PARAMS unknown"):
        look_up(site, "p256")
