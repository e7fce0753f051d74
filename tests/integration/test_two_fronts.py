"""Two daemons over one PostgreSQL log: one history, every receipt good, and each front tells all of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import greatseal
from deployment import Deployment
from front_site import logged
from greatseal.cosignature import WitnessKey, require_quorum
from greatseal.note import VerifierKey
from outside_site import WitnessProcess, witnessed
from postgres_server import PostgresServer


@pytest.fixture
def fronts(new_deployment: Callable[..., Deployment]) -> Iterator[list[Deployment]]:
    """Two installations with tokens of their own, and one log: its keys, its origin, its database."""
    with PostgresServer.start() as server:
        url = server.empty_database("log")
        pair = [new_deployment(name="first"), new_deployment(name="second")]
        for deployment in pair:
            deployment.edit(r"^url = .*", f'url = "{url}"')
            if deployment is not pair[0]:
                shutil.rmtree(deployment.directory / "log")
                shutil.copytree(pair[0].directory / "log", deployment.directory / "log")
            deployment.start()
        yield pair
        for deployment in pair:
            deployment.close()


def sign_many(front: Deployment, start: int, count: int, batch: int) -> list[greatseal.Signature]:
    """Have digests signed in batches, one after the other; the client checks every receipt."""
    signed: list[greatseal.Signature] = []
    with greatseal.Client.from_profile(front.profile) as client:
        for first in range(start, start + count, batch):
            requests = [
                greatseal.DigestRequest("keys/scratch", hashlib.sha256(b"%d" % number).digest())
                for number in range(first, first + batch)
            ]
            for answer in client.sign_batch(requests):
                assert isinstance(answer, greatseal.Signature), answer
                signed.append(answer)
    return signed


def test_two_fronts_write_one_history(fronts: list[Deployment]) -> None:
    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(sign_many, fronts[number % 2], 1000 * number, 60, 5) for number in range(4)]
        signed = [signature for each in work for signature in each.result()]
    key = VerifierKey.parse(fronts[0].log_vkey.read_text().strip())
    places = set()
    for signature in signed:
        signature.receipt.verify(key)
        places.add(signature.receipt.outcome.index)
    assert len(places) == len(signed) == 240
    for front in fronts:
        verified = front.client("audit", "verify")
        assert verified.returncode == 0, verified.stderr


def test_a_front_that_died_comes_back_to_what_the_other_wrote(fronts: list[Deployment]) -> None:
    first, second = fronts
    sign_many(first, 0, 20, 5)
    first.kill()
    sign_many(second, 100, 20, 5)
    first.start()
    sign_many(first, 200, 20, 5)
    verified = second.client("--json", "audit", "verify")
    assert verified.returncode == 0, verified.stderr
    found = json.loads(verified.stdout)
    assert found["open_intents"] == []
    assert found["counts"]["outcome signed"] == 60, "a front tells what the other wrote, not only what it knows itself"


def test_what_one_front_signed_the_other_gives_again(fronts: list[Deployment]) -> None:
    first, second = fronts
    second.stop()
    # The same token for both, as a network HSM would be.
    (second.directory / "tokens/soft/pin").write_bytes((first.directory / "tokens/soft/pin").read_bytes())
    shared = first.directory / "tokens/soft/softhsm2.conf"
    second.edit(r"^environment = .*$", f'environment = {{ SOFTHSM2_CONF = "{shared}" }}')
    second.start()
    request_id, digest = greatseal.new_request_id(), hashlib.sha256(b"once").digest()
    with greatseal.Client.from_profile(first.profile) as one, greatseal.Client.from_profile(second.profile) as other:
        made = one.sign_digest("keys/scratch", digest, request_id=request_id)
        again = other.sign_digest("keys/scratch", digest, request_id=request_id)
        assert (again.signature, again.replayed) == (made.signature, True)
        with pytest.raises(greatseal.RequestIdReused):
            other.sign_digest("keys/scratch", hashlib.sha256(b"twice").digest(), request_id=request_id)


def test_a_signature_by_a_key_that_was_replaced_is_not_given_again(fronts: list[Deployment]) -> None:
    first, second = fronts
    request_id, digest = greatseal.new_request_id(), hashlib.sha256(b"once").digest()
    with greatseal.Client.from_profile(first.profile) as one, greatseal.Client.from_profile(second.profile) as other:
        one.sign_digest("keys/scratch", digest, request_id=request_id)
        with pytest.raises(greatseal.RequestIdReused, match="another key"):
            other.sign_digest("keys/scratch", digest, request_id=request_id)


@pytest.mark.softhsm
def test_both_fronts_have_the_one_log_cosigned_and_a_database_that_went_back_is_refused(
    new_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    """The witness knows one log: each front is told of what the other had cosigned, and takes it for no disagreement."""
    with PostgresServer.start() as server:
        url = server.empty_database("log")
        pair = [new_deployment(name="first"), new_deployment(name="second")]
        shutil.rmtree(pair[1].directory / "log")
        shutil.copytree(pair[0].directory / "log", pair[1].directory / "log")
        witness = WitnessProcess(tmp_path / "w1").start(pair[0].log_vkey)
        key = WitnessKey.parse(witness.vkey)
        for front in pair:
            front.edit(r"^url = .*", f'url = "{url}"')
            front.append(witness.table(timeout=10))
            witnessed(front, "scratch", 1)
            front.start()
        with (
            greatseal.Client.from_profile(pair[0].profile) as one,
            greatseal.Client.from_profile(pair[1].profile) as other,
        ):
            for number in range(4):
                for client in (one, other):
                    digest = hashlib.sha256(f"{number}".encode()).digest()
                    signature = client.sign_digest("keys/scratch", digest, timeout=60)
                    assert require_quorum(signature.receipt.checkpoint, [key], 1)
        for front in pair:
            assert not logged(front, "anchor_disagrees")
            front.stop()
        # The database is lost, and the fronts' own anchors with it.
        front = pair[0]
        front.edit(r"^url = \"postgres.*", f'url = "{server.empty_database("again")}"')
        for path in (front.directory / "anchor").iterdir():
            path.unlink()
        front.start(wait=False)
        assert front.wait_exit() == 6
        assert f"witness {key.name} has cosigned" in front.stderr
        witness.stop()
        for each in pair:
            each.close()
