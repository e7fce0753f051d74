"""A token host over SoftHSM: it signs what intents permit, finds keys as references mean them, and says what is wrong."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from greatseal.algorithms import Algorithm
from greatseald.adapters.tokens.provision import ProvisioningFailed, add_keys, find_softhsm, provision_softhsm
from greatseald.domain.errors import TokenUnavailable
from greatseald.ports.tokens import Operation, Signed, TokenState
from token_site import P256, TokenSite, end_process, in_the_token, is_alive, refused, store_certificate, until_state

pytestmark = pytest.mark.softhsm

KEYS = (
    ("release", "ec-p256"),
    ("p384", "ec-p384"),
    ("p521", "ec-p521"),
    ("rsa2048", "rsa-2048"),
    ("rsa3072", "rsa-3072"),
    ("edwards", "ed25519"),
)
RELEASE = "pkcs11:object=release"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> TokenSite:
    """A token for tests that leave it as it was."""
    return TokenSite.create(tmp_path_factory.mktemp("token"), KEYS)


@pytest.fixture
def site(tmp_path: Path) -> TokenSite:
    return TokenSite.create(tmp_path)


@pytest.mark.parametrize(
    ("label", "algorithm"),
    [
        ("release", P256),
        ("p384", Algorithm.ECDSA_P384_SHA384),
        ("p521", Algorithm.ECDSA_P521_SHA512),
        ("edwards", Algorithm.ED25519),
        *(("rsa2048", algorithm) for algorithm in Algorithm if algorithm.family == "rsa"),
        ("rsa3072", Algorithm.RSA_PSS_SHA256),
        ("rsa3072", Algorithm.RSA_PKCS1_SHA256),
    ],
)
def test_every_algorithm_gives_signatures_that_others_verify(shared: TokenSite, label: str, algorithm: Algorithm):
    async def run() -> None:
        async with shared.token() as token:
            key = await token.find_key(f"pkcs11:object={label}")
            assert key.spki == shared.spki[label]
            assert algorithm in key.algorithms
            operations = shared.operations(12, algorithm.digest_size)
            if algorithm.is_pure:
                operations = [shared.message_operation(os.urandom(size)) for size in (1, 100, 5_000, 3_000_000)]
            shared.verify(label, algorithm, operations, await shared.sign(token, label, algorithm, operations))

    asyncio.run(run())


def test_the_token_says_what_it_is(shared: TokenSite):
    async def run() -> None:
        async with shared.token() as token:
            assert token.info is not None
            assert token.info.label == "greatseal"
            assert token.info.serial
            assert token.detail == ""

    asyncio.run(run())


def test_every_signature_stands_in_the_ledger_under_its_sequence(site: TokenSite):
    async def run() -> None:
        async with site.token() as token:
            operations = site.operations(300)
            results = await site.sign(token, "release", P256, operations)
            site.verify("release", P256, operations, results)
            records = {record.sequence: record for record in site.ledger()}
            assert len(records) == 300
            for operation, result in zip(operations, results, strict=True):
                record = records[result.sequence]
                assert (record.intent_index, record.leaf_hash, record.digest) == operation[:3]

    asyncio.run(run())


def test_an_intent_permits_one_signature_even_across_hosts(site: TokenSite):
    async def run() -> None:
        operations = site.operations(3)
        async with site.token() as token:
            assert all(isinstance(r, Signed) for r in await site.sign(token, "release", P256, operations))
            again = refused(await site.sign(token, "release", P256, operations))
            assert all("signed before" in result.detail and not result.unknown for result in again)
            pair = site.operations(1) * 2
            first, second = await site.sign(token, "release", P256, pair)
            assert isinstance(first, Signed)
            assert not isinstance(second, Signed)
        async with site.token() as token:
            refused(await site.sign(token, "release", P256, operations))
        assert len(site.ledger()) == 4

    asyncio.run(run())


@pytest.mark.parametrize("leaf_hash", [b"", b"x" * 31, b"x" * 33])
def test_nothing_is_signed_without_an_intents_leaf_hash(shared: TokenSite, leaf_hash: bytes):
    async def run() -> None:
        async with shared.token() as token:
            before = len(shared.ledger())
            good = shared.operations(1)[0]
            results = await shared.sign(token, "release", P256, [Operation(1 << 40, leaf_hash, b"d" * 32), good])
            assert "leaf hash" in refused(results[:1])[0].detail
            assert isinstance(results[1], Signed)  # one refusal never discards the others
            assert len(shared.ledger()) == before + 1

    asyncio.run(run())


@pytest.mark.parametrize("size", [0, 20, 31, 33, 48, 64])
def test_a_digest_of_another_length_is_not_signed(shared: TokenSite, size: int):
    async def run() -> None:
        async with shared.token() as token:
            results = await shared.sign(token, "release", P256, shared.operations(1, size))
            (result,) = refused(results)
            assert "32 bytes" in result.detail
            assert not result.unknown
            assert not result.retry

    asyncio.run(run())


def test_a_message_that_is_not_its_digests_is_not_signed(shared: TokenSite):
    async def run() -> None:
        async with shared.token() as token:
            good = shared.message_operation(b"what the intent says")
            for bad in (good._replace(message=b"something else"), good._replace(message=b"")):
                (result,) = refused(await shared.sign(token, "edwards", Algorithm.ED25519, [bad]))
                assert not result.unknown
                assert "message itself" in result.detail
            shared.verify(
                "edwards", Algorithm.ED25519, [good], await shared.sign(token, "edwards", Algorithm.ED25519, [good])
            )

    asyncio.run(run())


def test_the_largest_messages_pass_and_never_pile_up_in_the_host(shared: TokenSite):
    """Three of 16 MiB among small ones: each is signed, though not all fit a frame, or the host's window, together."""

    async def run() -> None:
        async with shared.token() as token:
            sizes = [100, 16 * 1024 * 1024, 100, 16 * 1024 * 1024, 700_000, 700_000, 16 * 1024 * 1024]
            operations = [shared.message_operation(os.urandom(size)) for size in sizes]
            results = await shared.sign(token, "edwards", Algorithm.ED25519, operations)
            shared.verify("edwards", Algorithm.ED25519, operations, results)

    asyncio.run(run())


def test_an_algorithm_that_the_key_does_not_do_is_refused_naming_what_it_does(shared: TokenSite):
    async def run() -> None:
        async with shared.token() as token:
            (result,) = refused(await shared.sign(token, "rsa2048", P256, shared.operations(1)))
            assert "rsa-pss-sha256" in result.detail

    asyncio.run(run())


def test_a_missing_key_lists_what_is_there(shared: TokenSite):
    async def run() -> None:
        async with shared.token() as token:
            with pytest.raises(TokenUnavailable, match="'release'"):
                await token.find_key("pkcs11:object=relaese")
            (result,) = refused(await shared.sign(token, "relaese", P256, shared.operations(1)))
            assert "'release'" in result.detail
            with pytest.raises(TokenUnavailable, match="another token"):
                await token.find_key("pkcs11:token=other;object=release")
            with pytest.raises(TokenUnavailable, match="type=private"):
                await token.find_key("pkcs11:object=release;type=cert")

    asyncio.run(run())


def test_an_ambiguous_key_lists_the_candidates_and_an_id_decides(site: TokenSite):
    twin = add_keys(site.directory, find_softhsm(), "greatseal", [("twin", "ec-p256")])
    rename_to_release(site, "twin")

    async def run() -> None:
        async with site.token() as token:
            with pytest.raises(TokenUnavailable, match=rf"2 private keys.*{b'twin'.hex()}"):
                await token.find_key(RELEASE)
            (result,) = refused(await site.sign(token, "release", P256, site.operations(1)))
            assert "2 private keys" in result.detail
            assert not result.unknown
            assert (await token.find_key("pkcs11:object=release;id=twin")).spki == twin["twin"]
            assert (await token.find_key("pkcs11:object=release;id=release")).spki == site.spki["release"]

    asyncio.run(run())


GENERATE_EC = """
parameters = session.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: bytes.fromhex(sys.argv[2])}, local=True)
parameters.generate_keypair(id=b"x", label="other", store=True)
"""


@pytest.mark.parametrize(
    ("body", "argument", "why"),
    [
        (GENERATE_EC, "06052b8104000a", "06052b8104000a: P-256, P-384 and P-521 are supported"),  # secp256k1
        (
            'session.generate_keypair(KeyType.RSA, 1024, id=b"x", label="other", store=True)\n',
            "",
            "1024 bits: 2048 to 4096",
        ),
    ],
)
def test_a_key_that_is_not_supported_is_refused_saying_what_it_is(site: TokenSite, body: str, argument: str, why: str):
    in_the_token(site, body, argument)

    async def run() -> None:
        async with site.token() as token:
            with pytest.raises(TokenUnavailable, match=why):
                await token.find_key("pkcs11:object=other")

    asyncio.run(run())


def test_without_a_public_key_object_the_certificate_gives_it_and_without_either_it_is_said(site: TokenSite):
    in_the_token(
        site, "for key in list(session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY})): key.destroy()\n"
    )

    async def run() -> None:
        async with site.token() as token:
            with pytest.raises(TokenUnavailable, match="no public key belongs to the private key"):
                await token.find_key(RELEASE)
            store_certificate(site, "release")
        async with site.token() as token:
            assert (await token.find_key(RELEASE)).spki == site.spki["release"]
            operations = site.operations(3)
            site.verify("release", P256, operations, await site.sign(token, "release", P256, operations))

    asyncio.run(run())


def rename_to_release(site: TokenSite, label: str) -> None:
    """Give an object another label with the tool an operator would use."""
    body = (
        "for key in list(session.get_objects({Attribute.LABEL: sys.argv[2]})):\n    key[Attribute.LABEL] = 'release'\n"
    )
    in_the_token(site, body, label)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"module": Path("/nowhere/vendor.so")}, "/nowhere/vendor.so does not exist"),
        ({"module": Path("/etc/passwd")}, "/etc/passwd"),
        ({"uri": "pkcs11:token=other"}, "present: token='greatseal'"),
        ({"uri": "pkcs11:token=greatseal;serial=0000"}, "serial="),
        ({"pin_file": Path("/nowhere/pin")}, "/nowhere/pin"),
        ({"pin_file": None}, "set pin_file"),
        ({"environment": {"SOFTHSM2_CONF": "/nowhere/softhsm2.conf"}}, "libsofthsm2"),
    ],
)
def test_what_is_missing_is_named(shared: TokenSite, changes: dict[str, object], why: str):
    async def run() -> None:
        async with shared.token(ready=False, **changes) as token:
            await until_state(token, TokenState.UNAVAILABLE)
            assert why in token.detail
            with pytest.raises(TokenUnavailable, match="soft"):
                token.sign(RELEASE, P256, shared.operations(1))
            with pytest.raises(TokenUnavailable):
                await token.find_key(RELEASE)

    asyncio.run(run())


def test_a_module_that_is_a_library_of_another_kind_is_refused(shared: TokenSite):
    libc = Path(
        next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libc.so" in line)
    )

    async def run() -> None:
        async with shared.token(ready=False, module=libc) as token:
            await until_state(token, TokenState.UNAVAILABLE)
            assert "no PKCS#11 module" in token.detail

    asyncio.run(run())


def test_the_token_comes_up_by_itself_once_what_was_missing_is_there(site: TokenSite):
    pin = site.directory / "pin"
    away = pin.rename(site.directory / "pin-elsewhere")

    async def run() -> None:
        async with site.token(ready=False) as token:
            await until_state(token, TokenState.UNAVAILABLE)
            away.rename(pin)
            await until_state(token, TokenState.READY)
            operations = site.operations(4)
            site.verify("release", P256, operations, await site.sign(token, "release", P256, operations))

    asyncio.run(run())


def test_many_callers_over_many_sessions_get_their_own_signatures(shared: TokenSite):
    async def run() -> None:
        async with shared.token(sessions=4) as token:

            async def caller(label: str, algorithm: Algorithm, count: int) -> None:
                for _ in range(6):
                    operations = shared.operations(count, algorithm.digest_size)
                    shared.verify(label, algorithm, operations, await shared.sign(token, label, algorithm, operations))

            single = [caller("release", P256, 1) for _ in range(24)]
            await asyncio.gather(
                *single, caller("release", P256, 256), caller("release", P256, 70),
                caller("p384", Algorithm.ECDSA_P384_SHA384, 20), caller("rsa2048", Algorithm.RSA_PSS_SHA256, 5),
            )  # fmt: skip

    asyncio.run(run())


def test_a_caller_that_goes_away_disturbs_nobody(site: TokenSite):
    async def run() -> None:
        async with site.token() as token:
            gone = asyncio.create_task(site.sign(token, "release", P256, site.operations(300)))
            await asyncio.sleep(0)
            gone.cancel()
            operations = site.operations(300)
            site.verify("release", P256, operations, await site.sign(token, "release", P256, operations))
            with pytest.raises(asyncio.CancelledError):
                await gone

    asyncio.run(run())
    assert len(site.ledger()) == 600


def test_a_killed_host_leaves_unknowns_and_a_fresh_host_signs_on(site: TokenSite):
    async def run() -> None:
        async with site.token() as token:
            assert token.host_pid is not None
            first = token.host_pid
            work = asyncio.create_task(site.sign(token, "release", P256, site.operations(4000)))
            while len(site.ledger()) < 200:
                await asyncio.sleep(0.001)
            end_process(first)
            results = await work
            assert any(isinstance(result, Signed) for result in results)
            unknown = [result for result in results if not isinstance(result, Signed) and result.unknown]
            assert unknown
            assert all("may have signed" in result.detail and result.retry for result in unknown)
            # What was never handed over went to the fresh host instead.
            assert isinstance(results[-1], Signed)
            await until_state(token, TokenState.READY)
            assert token.host_pid != first
            assert not is_alive(first)

    asyncio.run(run())
    released = 4000
    assert len(site.ledger()) <= released
    assert [record.sequence for record in site.ledger()] == list(range(1, len(site.ledger()) + 1))


def test_a_killed_host_does_not_touch_another_token(tmp_path: Path):
    one, two = TokenSite.create(tmp_path / "one"), TokenSite.create(tmp_path / "two")

    async def run() -> None:
        async with one.token() as first, two.token() as second:
            assert first.host_pid is not None
            pid = second.host_pid
            end_process(first.host_pid)
            operations = two.operations(100)
            two.verify("release", P256, operations, await two.sign(second, "release", P256, operations))
            assert second.host_pid == pid
            await until_state(first, TokenState.READY)

    asyncio.run(run())


def test_stopping_finishes_what_was_asked_for_and_leaves_no_process(site: TokenSite):
    async def run() -> None:
        async with site.token() as token:
            pid = token.host_pid
            assert pid is not None
            operations = site.operations(16)
            work = asyncio.create_task(site.sign(token, "release", P256, operations))
            await asyncio.sleep(0.02)
            await token.stop()
            await token.stop()
            assert token.state is TokenState.UNAVAILABLE
            assert not is_alive(pid)
            results = await work
            assert not any(not isinstance(result, Signed) and result.unknown for result in results)

    asyncio.run(run())


def test_the_front_never_loads_the_vendors_library(shared: TokenSite):
    async def run() -> None:
        async with shared.token():
            assert "softhsm" not in Path("/proc/self/maps").read_text()

    asyncio.run(run())


def test_the_pin_is_in_no_argument_and_no_environment_and_the_host_cannot_be_dumped(shared: TokenSite):
    pin = (shared.directory / "pin").read_bytes().strip()

    async def run() -> None:
        async with shared.token() as token:
            process = Path("/proc") / str(token.host_pid)
            assert pin not in (process / "cmdline").read_bytes()
            assert pin not in (process / "environ").read_bytes()
            limits = (process / "limits").read_text()
            core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
            assert core.split()[4:6] == ["0", "0"]
            # PR_SET_DUMPABLE 0 hands the files in /proc to root.
            assert (process / "environ").stat().st_uid == 0

    asyncio.run(run())


def test_provisioned_keys_only_sign_and_a_label_is_made_once(shared: TokenSite):
    with pytest.raises(ProvisioningFailed, match="already"):
        add_keys(shared.directory, find_softhsm(), "greatseal", [("release", "ec-p256")])
    with pytest.raises(ProvisioningFailed, match="not one of"):
        add_keys(shared.directory, find_softhsm(), "greatseal", [("x", "dsa-1024")])
    assert (shared.directory / "pin").stat().st_mode & 0o777 == 0o600


def test_a_directory_with_a_token_in_it_is_not_provisioned_again(shared: TokenSite):
    pin = (shared.directory / "pin").read_bytes()
    with pytest.raises(FileExistsError):
        provision_softhsm(shared.directory, find_softhsm(), "greatseal", [("new", "ec-p256")])
    assert (shared.directory / "pin").read_bytes() == pin
