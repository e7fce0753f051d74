"""Modules that deviate from the specification in the ways that vendors' modules do: keys work all the same, or it is said why not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pkcs11_shim as ckr
import pytest

from greatseal.algorithms import Algorithm
from greatseald.domain.errors import TokenUnavailable
from greatseald.ports.tokens import NotSigned, Signed, TokenInfo, TokenKey
from token_site import P256, TokenSite, refused, store_certificate

pytestmark = [pytest.mark.softhsm, pytest.mark.shim]

CKM_RSA_PKCS, CKM_RSA_PKCS_PSS, CKM_ECDSA, CKM_EDDSA = 0x1, 0xD, 0x1041, 0x1057
CKM_SHA384 = 0x260
CKA_MODULUS, CKA_PUBLIC_KEY_INFO = 0x120, 0x129
CKA_KEY_TYPE, CKA_ALWAYS_AUTHENTICATE, CKA_EC_PARAMS, CKA_EC_POINT = 0x100, 0x202, 0x180, 0x181
CKO_PUBLIC_KEY, CKO_PRIVATE_KEY = 2, 3
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


def test_a_mechanism_that_the_token_does_not_list_is_used_where_it_works(site: TokenSite):
    shim_of(site).rule("C_GetMechanismList", "omit", CKM_ECDSA)
    info, key = look_up(site, "p256")
    assert P256 not in info.advertised
    assert Algorithm.ED25519 in info.advertised
    assert key.algorithms == (P256,)
    sign_with(site, "p256", P256)


@pytest.mark.parametrize(("action", "value"), [("empty", None), ("rv", 0x54), ("rv", ckr.CKR_FUNCTION_FAILED)])
def test_a_token_that_lists_no_mechanisms_at_all_comes_up_and_signs(site: TokenSite, action: str, value: int | None):
    shim_of(site).rule("C_GetMechanismList", action, value)
    info, key = look_up(site, "rsa")
    assert info.advertised == ()
    assert set(key.algorithms) == OF_RSA
    sign_with(site, "rsa", PSS_SHA384)


def test_a_mechanism_that_is_listed_and_refused_is_not_offered(site: TokenSite):
    shim_of(site).rule("C_SignInit", "rv", ckr.CKR_MECHANISM_INVALID, mech=CKM_RSA_PKCS_PSS)
    info, key = look_up(site, "rsa")
    assert PSS_SHA384 in info.advertised
    assert set(key.algorithms) == {algorithm for algorithm in OF_RSA if "pkcs1" in algorithm.value}


@pytest.mark.parametrize("answer", [ckr.CKR_MECHANISM_PARAM_INVALID, ckr.CKR_FUNCTION_FAILED, ckr.CKR_DEVICE_ERROR])
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
    shim_of(site).rule("C_SignInit", "rv", ckr.CKR_MECHANISM_INVALID, mech=CKM_EDDSA)
    with pytest.raises(TokenUnavailable, match=r"does not sign with any supported algorithm.*CKR_MECHANISM_INVALID"):
        look_up(site, "ed25519")


def test_a_refusal_that_comes_with_the_signature_only_is_certain_and_costs_nothing_else(site: TokenSite):
    """What C_SignInit accepted, C_Sign may still refuse."""

    async def run() -> None:
        async with site.token() as token:
            await token.find_key("pkcs11:object=rsa")
            operations = site.operations(3, 48)
            shim_of(site).rule("C_Sign", "rv", ckr.CKR_MECHANISM_PARAM_INVALID, digest=operations[1].tbs)
            first, second, third = await site.sign(token, "rsa", PSS_SHA384, operations)
            assert isinstance(first, Signed)
            assert isinstance(third, Signed)
            assert isinstance(second, NotSigned)
            assert (second.ckr, second.unknown, second.retry) == (ckr.CKR_MECHANISM_PARAM_INVALID, False, False)

    asyncio.run(run())


# -- one session --------------------------------------------------------------------------------------


@pytest.fixture
def one_session(made: TokenSite, tmp_path: Path) -> TokenSite:
    made.shim = ckr.Shim(tmp_path / "shim", max_sessions=1)
    return made


def test_a_token_with_one_session_offers_what_it_lists(one_session: TokenSite):
    shim_of(one_session).rule("C_GetMechanismList", "omit", CKM_RSA_PKCS_PSS)
    info, key = look_up(one_session, "rsa", sessions=1)
    assert info.sessions == 1
    assert set(key.algorithms) == {algorithm for algorithm in OF_RSA if "pkcs1" in algorithm.value}
    sign_with(one_session, "rsa", Algorithm.RSA_PKCS1_SHA512, sessions=1)


def test_a_token_with_one_session_and_a_list_without_the_keys_kind_signs_with_it(one_session: TokenSite):
    shim_of(one_session).rule("C_GetMechanismList", "omit", CKM_ECDSA)
    sign_with(one_session, "p384", Algorithm.ECDSA_P384_SHA384, sessions=1)


def test_a_token_that_is_out_of_memory_for_sessions_works_with_those_that_it_has(site: TokenSite):
    shim_of(site).rule("C_OpenSession", "rv", ckr.CKR_DEVICE_MEMORY, after=1)
    sign_with(site, "p256", P256, sessions=8)
    assert any("1 of 8 sessions" in detail for _, detail in site.states)


def test_a_token_with_one_session_refuses_what_it_cannot_do_when_it_is_asked(one_session: TokenSite):
    shim = shim_of(one_session)
    shim.rule("C_SignInit", "rv", ckr.CKR_MECHANISM_PARAM_INVALID, mech=CKM_RSA_PKCS_PSS, hash=CKM_SHA384)

    async def run() -> None:
        async with one_session.token(sessions=1) as token:
            (result,) = refused(await one_session.sign(token, "rsa", PSS_SHA384, one_session.operations(1, 48)))
            assert (result.ckr, result.unknown) == (ckr.CKR_MECHANISM_PARAM_INVALID, False)

    asyncio.run(run())


# -- objects and attributes ---------------------------------------------------------------------------

EACH_CURVE = [
    ("p256", P256),
    ("p384", Algorithm.ECDSA_P384_SHA384),
    ("p521", Algorithm.ECDSA_P521_SHA512),
    ("ed25519", Algorithm.ED25519),
]


@pytest.mark.parametrize(("label", "algorithm"), EACH_CURVE)
@pytest.mark.parametrize("action", ["bare", "badlen"])
def test_points_that_are_bare_or_of_a_wrong_length_are_read(
    site: TokenSite, label: str, algorithm: Algorithm, action: str
):
    rule = shim_of(site).rule("C_GetAttributeValue", action, attr=CKA_EC_POINT)
    sign_with(site, label, algorithm)
    assert shim_of(site).hits(rule) > 0


@pytest.mark.parametrize(("label", "algorithm"), EACH_CURVE)
def test_curve_and_point_may_be_missing_from_the_private_key(site: TokenSite, label: str, algorithm: Algorithm):
    for attribute in (CKA_EC_PARAMS, CKA_EC_POINT, CKA_ALWAYS_AUTHENTICATE):
        shim_of(site).rule("C_GetAttributeValue", "hide", attr=attribute, class_=CKO_PRIVATE_KEY)
    sign_with(site, label, algorithm)


def test_an_ed25519_key_is_known_by_its_curve_where_the_module_calls_it_an_ec_key(tmp_path: Path):
    """CKK_EC_EDWARDS is younger than the keys; the public half comes from a certificate here."""
    site = TokenSite.create(tmp_path, [("ed25519", "ed25519")], shim=True)
    store_certificate(site, "ed25519")
    shim_of(site).rule("C_GetAttributeValue", "number", CKK_EC, attr=CKA_KEY_TYPE, class_=CKO_PRIVATE_KEY)
    shim_of(site).rule("C_FindObjectsInit", "empty", class_=CKO_PUBLIC_KEY)
    sign_with(site, "ed25519", Algorithm.ED25519)


@pytest.mark.parametrize(
    ("label", "algorithm"), [("ec-p384", Algorithm.ECDSA_P384_SHA384), ("ed25519", Algorithm.ED25519)]
)
def test_curve_and_point_come_from_the_certificate_where_nothing_else_tells_them(
    tmp_path: Path, label: str, algorithm: Algorithm
):
    site = TokenSite.create(tmp_path, [(label, label)], shim=True)
    store_certificate(site, label)
    shim_of(site).rule("C_GetAttributeValue", "hide", attr=CKA_EC_PARAMS)
    shim_of(site).rule("C_FindObjectsInit", "empty", class_=CKO_PUBLIC_KEY)
    sign_with(site, label, algorithm)


@pytest.mark.parametrize(("label", "algorithm"), [*EACH_CURVE, ("rsa", Algorithm.RSA_PKCS1_SHA256)])
def test_a_public_key_that_is_stored_with_the_private_one_is_enough(site: TokenSite, label: str, algorithm: Algorithm):
    """CKA_PUBLIC_KEY_INFO (PKCS#11 2.40), with no public object beside it."""
    shim = shim_of(site)
    shim.control_path.with_name("control.value").write_bytes(site.spki[label])
    shim.rule("C_FindObjectsInit", "empty", class_=CKO_PUBLIC_KEY)
    shim.rule("C_GetAttributeValue", "hide", attr=CKA_MODULUS)
    shim.rule("C_GetAttributeValue", "stored", attr=CKA_PUBLIC_KEY_INFO, class_=CKO_PRIVATE_KEY)
    sign_with(site, label, algorithm)


@pytest.mark.parametrize("stored", [b"", b"0" * 91, bytes.fromhex("300506032b65700000"), b"\xff" * 4096])
def test_what_is_stored_and_is_no_public_key_is_passed_over(site: TokenSite, stored: bytes):
    shim_of(site).control_path.with_name("control.value").write_bytes(stored)
    shim_of(site).rule("C_GetAttributeValue", "stored", attr=CKA_PUBLIC_KEY_INFO)
    sign_with(site, "p256", P256)


def test_a_certificate_with_a_key_that_nobody_can_read_is_passed_over(tmp_path: Path):
    site = TokenSite.create(tmp_path, [("release", "ec-p256")], shim=True)
    known, unknown = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d03017f")
    store_certificate(site, "release", oid=(known, unknown))
    shim_of(site).rule("C_FindObjectsInit", "empty", class_=CKO_PUBLIC_KEY)
    with pytest.raises(TokenUnavailable, match="no public key belongs to the private key"):
        look_up(site, "release")


def test_a_curve_that_nothing_tells_is_not_guessed(site: TokenSite):
    shim_of(site).rule("C_GetAttributeValue", "hide", attr=CKA_EC_PARAMS)
    with pytest.raises(TokenUnavailable, match="CKA_EC_PARAMS unknown"):
        look_up(site, "p256")


@pytest.mark.parametrize("label", [label for label, _ in KEYS if label != "rsa"])
def test_a_key_without_a_public_half_says_what_to_store(site: TokenSite, label: str):
    shim_of(site).rule("C_FindObjectsInit", "empty", class_=CKO_PUBLIC_KEY)
    with pytest.raises(TokenUnavailable, match="no public key belongs to the private key"):
        look_up(site, label)


def test_an_rsa_key_needs_no_public_object(site: TokenSite):
    shim_of(site).rule("C_FindObjectsInit", "empty", class_=CKO_PUBLIC_KEY)
    sign_with(site, "rsa", Algorithm.RSA_PSS_SHA256)


def test_a_key_whose_type_is_not_told_is_refused(site: TokenSite):
    shim_of(site).rule("C_GetAttributeValue", "hide", attr=CKA_KEY_TYPE)
    with pytest.raises(TokenUnavailable, match="EC, Ed25519 and RSA keys are supported"):
        look_up(site, "p256")
