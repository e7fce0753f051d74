"""Modules that answer in another way than the specification wants: keys are found and sign all the same.

SoftHSM stands behind the shim, which answers as vendors do. Each test counts that the shim was really asked.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pkcs11_shim
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from greatseal.algorithms import Algorithm
from greatseald.adapters.tokens.ckr import CKR
from greatseald.adapters.tokens.cryptoki import CKM_ECDSA, CKM_RSA_PKCS, CKM_RSA_PKCS_PSS
from greatseald.domain.errors import TokenUnavailable
from greatseald.ports.tokens import Operation, SignResult, TokenState
from token_site import P256, TokenSite, refused, until_state

pytestmark = [pytest.mark.softhsm, pytest.mark.shim]

KEYS = (("release", "ec-p256"), ("p521", "ec-p521"), ("rsa", "rsa-2048"), ("edwards", "ed25519"))
P521 = Algorithm.ECDSA_P521_SHA512
PUBLIC_KEY, PRIVATE_KEY = 2, 3
CKA_LABEL, CKA_ID, CKA_LOCAL, CKA_KEY_GEN_MECHANISM = 0x3, 0x102, 0x163, 0x166
CKA_EC_POINT, CKA_ALWAYS_AUTHENTICATE = 0x181, 0x202
VENDOR_MECHANISM = 0x80001234
CKM_SHA256 = 0x250


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TokenSite:
    return TokenSite.create(tmp_path_factory.mktemp("token"), KEYS, shim=True)


@pytest.fixture
def site(made: TokenSite) -> Iterator[TokenSite]:
    """The shared token: tests change what the shim answers, never what the token holds."""
    yield made
    shim_of(made).lift_all()


def shim_of(site: TokenSite) -> pkcs11_shim.Shim:
    assert site.shim is not None
    return site.shim


def operations(site: TokenSite, algorithm: Algorithm, count: int) -> list[Operation]:
    if algorithm.is_pure:
        return [site.message_operation(os.urandom(100)) for _ in range(count)]
    return site.operations(count, algorithm.digest_size)


def find_and_sign(site: TokenSite, label: str, algorithm: Algorithm, count: int = 4, **changes: object) -> None:
    """The key is found with the public key that the token made, and signs."""

    async def run() -> None:
        async with site.token(**changes) as token:
            key = await token.find_key(f"pkcs11:object={label}")
            assert key.spki == site.spki[label]
            assert algorithm in key.algorithms
            asked = operations(site, algorithm, count)
            site.verify(label, algorithm, asked, await site.sign(token, label, algorithm, asked))

    asyncio.run(run())


@contextmanager
def asked_for(site: TokenSite, *rules: pkcs11_shim.Rule) -> Iterator[None]:
    """Each rule has really been met in the block."""
    before = [shim_of(site).hits(rule) for rule in rules]
    yield
    assert all(shim_of(site).hits(rule) > count for rule, count in zip(rules, before, strict=True))


# -- where the public half is -------------------------------------------------------------------------


def _octets(data: bytes) -> bytes:
    return b"\x04" + (bytes((len(data),)) if len(data) < 128 else bytes((0x81, len(data)))) + data


def _bits(data: bytes) -> bytes:
    length = len(data) + 1
    return b"\x03" + (bytes((length,)) if length < 128 else bytes((0x81, length))) + b"\0" + data


EC_WRAPPINGS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "raw": lambda point, _: point,
    "coordinates alone": lambda point, _: point[1:],
    "bit string": lambda point, _: _bits(point),
    "one byte too short": lambda point, _: b"\x04" + bytes((len(point) - 1,)) + point,
    "long form of the length": lambda point, _: b"\x04\x82" + len(point).to_bytes(2, "big") + point,
    "compressed": lambda _, compressed: compressed,
    "compressed in an octet string": lambda _, compressed: _octets(compressed),
}


@pytest.mark.parametrize("label", ["release", "p521"])
@pytest.mark.parametrize("wrapping", EC_WRAPPINGS)
def test_an_ec_point_is_understood_in_every_wrapping(site: TokenSite, label: str, wrapping: str):
    public = load_der_public_key(site.spki[label])
    assert isinstance(public, ec.EllipticCurvePublicKey)
    whole, short = (
        public.public_bytes(Encoding.X962, kind)
        for kind in (PublicFormat.UncompressedPoint, PublicFormat.CompressedPoint)
    )
    given = EC_WRAPPINGS[wrapping](whole, short)
    rule = shim_of(site).rule("C_GetAttributeValue", "attr", CKA_EC_POINT, class_=PUBLIC_KEY, bytes_=given)
    with asked_for(site, rule):
        find_and_sign(site, label, P256 if label == "release" else P521)


@pytest.mark.parametrize("wrapping", ["raw", "bit string", "spki"])
def test_an_edwards_point_is_understood_in_every_wrapping(site: TokenSite, wrapping: str):
    spki = site.spki["edwards"]
    given = {"raw": spki[-32:], "bit string": _bits(spki[-32:]), "spki": spki}[wrapping]
    rule = shim_of(site).rule("C_GetAttributeValue", "attr", CKA_EC_POINT, class_=PUBLIC_KEY, bytes_=given)
    with asked_for(site, rule):
        find_and_sign(site, "edwards", Algorithm.ED25519)


@pytest.mark.parametrize("given", [b"", b"\x04", b"\x04\x41\x04" + bytes(range(64)), b"\x04\x41\x05" + bytes(64)])
def test_a_point_that_is_none_or_not_on_the_curve_is_never_taken(site: TokenSite, given: bytes):
    rule = shim_of(site).rule("C_GetAttributeValue", "attr", CKA_EC_POINT, bytes_=given)

    async def run() -> None:
        async with site.token() as token:
            with pytest.raises(TokenUnavailable, match="no public key belongs to the private key"):
                await token.find_key("pkcs11:object=release")

    with asked_for(site, rule):
        asyncio.run(run())


# -- attributes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, b""])
@pytest.mark.parametrize("label, algorithm", [("release", P256), ("rsa", Algorithm.RSA_PSS_SHA256)])
def test_attributes_that_a_module_lacks_or_leaves_empty_are_unknown(
    site: TokenSite, label: str, algorithm: Algorithm, value: bytes | None
):
    shim, given = shim_of(site), {} if value is None else {"bytes_": value}
    asked = shim.rule("C_GetAttributeValue", "attr", CKA_ALWAYS_AUTHENTICATE, **given)
    for attribute in (CKA_LOCAL, CKA_KEY_GEN_MECHANISM):
        shim.rule("C_GetAttributeValue", "attr", attribute, **given)
    shim.rule("C_GetAttributeValue", "attr", CKA_ID, class_=PRIVATE_KEY, **given)
    with asked_for(site, asked):
        find_and_sign(site, label, algorithm)


IN_THE_TOKEN = """
import sys, pkcs11
from pkcs11 import Attribute, KeyType
token = pkcs11.lib(sys.argv[1]).get_token(token_label="greatseal")
with token.open(rw=True, user_pin=sys.stdin.read()) as session:
    for key in list(session.get_objects()):
        key[Attribute.LABEL] = "release".ljust(32)
        key[Attribute.ID] = b""
"""


def test_a_padded_label_and_an_empty_id_still_name_the_key(tmp_path: Path):
    site = TokenSite.create(tmp_path)
    command = [sys.executable, "-c", IN_THE_TOKEN, pkcs11_shim.softhsm_module()]
    environment = {**os.environ, "SOFTHSM2_CONF": str(site.directory / "softhsm2.conf")}
    subprocess.run(command, input=(site.directory / "pin").read_text().strip(), text=True, env=environment, check=True)
    find_and_sign(site, "release", P256)


# -- what the token can do ----------------------------------------------------------------------------


def test_a_mechanism_list_is_a_hint_in_both_directions(site: TokenSite):
    """ECDSA is not listed and signs; RSA-PSS is listed and refused; a mechanism that nobody knows is listed too."""
    shim = shim_of(site)
    hidden = [shim.rule("C_GetMechanismList", "hide", kind) for kind in (CKM_ECDSA, CKM_RSA_PKCS)]
    shim.rule("C_GetMechanismList", "add", VENDOR_MECHANISM)
    refusal = shim.rule("C_SignInit", "rv", CKR.MECHANISM_INVALID, mech=CKM_RSA_PKCS_PSS)

    async def run() -> None:
        async with site.token() as token:
            key = await token.find_key("pkcs11:object=rsa")
            assert set(key.algorithms) == {kind for kind in Algorithm if kind.value.startswith("rsa-pkcs1")}

    with asked_for(site, *hidden, refusal):
        find_and_sign(site, "release", P256)
        find_and_sign(site, "rsa", Algorithm.RSA_PKCS1_SHA256)
        asyncio.run(run())


def test_pss_that_is_refused_for_one_hash_is_offered_with_the_others(site: TokenSite):
    shim = shim_of(site)
    refusal = shim.rule("C_SignInit", "rv", CKR.MECHANISM_PARAM_INVALID, mech=CKM_RSA_PKCS_PSS, hash=CKM_SHA256)

    async def run() -> None:
        async with site.token() as token:
            key = await token.find_key("pkcs11:object=rsa")
            assert Algorithm.RSA_PSS_SHA256 not in key.algorithms
            asked = site.operations(1)
            (result,) = refused(await site.sign(token, "rsa", Algorithm.RSA_PSS_SHA256, asked))
            assert not result.unknown
            assert "rsa-pss-sha384" in result.detail

    with asked_for(site, refusal):
        find_and_sign(site, "rsa", Algorithm.RSA_PSS_SHA384)
        asyncio.run(run())


# -- sessions and logins ------------------------------------------------------------------------------


@pytest.fixture
def one_session(site: TokenSite, tmp_path: Path) -> Iterator[TokenSite]:
    """The token behind a shim that opens one session and no second."""
    shim = site.shim
    site.shim = pkcs11_shim.Shim(tmp_path / "one", max_sessions=1)
    yield site
    site.shim = shim


@pytest.mark.parametrize("label, algorithm", [("release", P256), ("rsa", Algorithm.RSA_PSS_SHA512)])
def test_one_session_is_enough(one_session: TokenSite, label: str, algorithm: Algorithm):
    find_and_sign(one_session, label, algorithm, 40, sessions=4)


def test_one_session_and_an_empty_mechanism_list_leave_it_to_the_first_signature(one_session: TokenSite):
    shim = shim_of(one_session)
    for kind in (CKM_ECDSA, CKM_RSA_PKCS, CKM_RSA_PKCS_PSS):
        shim.rule("C_GetMechanismList", "hide", kind)
    shim.rule("C_SignInit", "rv", CKR.MECHANISM_INVALID, mech=CKM_RSA_PKCS_PSS)

    async def run() -> None:
        async with one_session.token() as token:
            asked = one_session.operations(3)
            results = await one_session.sign(token, "rsa", Algorithm.RSA_PSS_SHA256, asked)
            assert all("it can: rsa-pkcs1-sha256" in result.detail for result in refused(results))
            assert not any(result.unknown for result in refused(results))
            again = one_session.operations(3)  # the session, and with it the login, has survived the refusals
            results = await one_session.sign(token, "rsa", Algorithm.RSA_PKCS1_SHA256, again)
            one_session.verify("rsa", Algorithm.RSA_PKCS1_SHA256, again, results)

    asyncio.run(run())
    assert len(shim.logins()) == 1


@pytest.mark.parametrize("value", [CKR.CANT_LOCK, CKR.NEED_TO_CREATE_THREADS])
def test_a_module_that_refuses_locking_is_used_by_one_thread(site: TokenSite, value: CKR):
    rule = shim_of(site).rule("C_Initialize", "rv", value, times=1)
    with asked_for(site, rule):
        find_and_sign(site, "release", P256, 40, sessions=4)
    assert any("1 of 4 sessions: the module cannot be used by several threads" in detail for _, detail in site.states)


def test_a_login_that_somebody_else_has_made_is_shared(site: TokenSite):
    """The module says "already logged in" though the login was not ours."""
    rule = shim_of(site).rule("C_Login", "late", CKR.USER_ALREADY_LOGGED_IN)
    with asked_for(site, rule):
        find_and_sign(site, "release", P256)
    assert not (site.directory / "state" / "pin-attempt").exists()


# -- signatures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("label, algorithm", [("release", P256), ("p521", P521), ("rsa", Algorithm.RSA_PSS_SHA256)])
def test_c_sign_that_wants_to_be_asked_for_the_length_first_signs_once(
    site: TokenSite, label: str, algorithm: Algorithm
):
    rule = shim_of(site).rule("C_Sign", "twice")
    before = len(shim_of(site).signatures())
    with asked_for(site, rule):
        find_and_sign(site, label, algorithm, 5)
    assert len(shim_of(site).signatures()) == before + 5


@pytest.mark.parametrize("label, algorithm", [("release", P256), ("p521", P521)])
def test_signatures_as_der_are_signatures(site: TokenSite, label: str, algorithm: Algorithm):
    rule = shim_of(site).rule("C_Sign", "der")
    with asked_for(site, rule):
        find_and_sign(site, label, algorithm, 30)


@pytest.mark.parametrize("label, algorithm, size, count", [("release", P256, 32, 600), ("p521", P521, 66, 40)])
def test_signatures_without_leading_zeroes_are_signatures(
    site: TokenSite, label: str, algorithm: Algorithm, size: int, count: int
):
    """Of P-521 three in four are shorter then, and of one in two nobody but the key tells where r ends."""
    shim_of(site).rule("C_Sign", "strip")
    before = len(shim_of(site).signatures())
    find_and_sign(site, label, algorithm, count)
    lengths = {len(call.signature) for call in shim_of(site).signatures()[before:]}
    assert min(lengths) < 2 * size
    assert any(length % 2 for length in lengths)


@pytest.mark.parametrize("cut", [1, 2, 20, 63])
def test_half_a_signature_is_never_released_and_may_have_been_made(site: TokenSite, cut: int):
    """It has several readings, and none of them verifies."""
    shim_of(site).rule("C_Sign", "cut", cut)

    async def run() -> list[SignResult]:
        async with site.token() as token:
            return await site.sign(token, "release", P256, site.operations(2))

    results = refused(asyncio.run(run()))
    assert all(result.unknown and "no ECDSA signature on P-256" in result.detail for result in results)


def test_a_token_that_is_not_there_is_told_with_what_is(site: TokenSite):
    shim_of(site).rule("C_GetSlotList", "empty")

    async def run() -> None:
        async with site.token(ready=False) as token:
            await until_state(token, TokenState.UNAVAILABLE)
            assert "present: none" in token.detail

    asyncio.run(run())


MAKE_A_TOKEN = """
import sys
from pathlib import Path
from greatseald.adapters.tokens.generate import open_for_generation
open_for_generation(Path(sys.argv[1]), "another", b"12345678", b"87654321")
"""


def test_a_module_without_a_free_slot_makes_no_token_and_says_so(site: TokenSite):
    rule = shim_of(site).rule("C_GetTokenInfo", "full")
    environment = os.environ | shim_of(site).environment | {"SOFTHSM2_CONF": str(site.directory / "softhsm2.conf")}
    command = [sys.executable, "-c", MAKE_A_TOKEN, shim_of(site).module]
    with asked_for(site, rule):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no slot with a token that is not initialised" in done.stderr


@pytest.mark.parametrize("value", [CKR.FUNCTION_NOT_SUPPORTED, CKR.FUNCTION_FAILED])
def test_a_module_that_lists_no_mechanisms_at_all_is_tried(site: TokenSite, value: CKR):
    rule = shim_of(site).rule("C_GetMechanismList", "rv", value)
    with asked_for(site, rule):
        find_and_sign(site, "release", P256)
