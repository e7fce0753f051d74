"""Which token a request is given to: primary first, never one that failed it, never a version that may not sign."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from greatseal.algorithms import Algorithm
from greatseald.app.job import Job
from greatseald.app.keys import KeyRing, SigningKey
from greatseald.app.placement import Placement
from greatseald.app.versions import Holding, SigningVersion
from greatseald.domain.lifecycle import VersionState
from greatseald.ports.tokens import BreakerState, TokenLoad, TokenState

P256, P384 = Algorithm.ECDSA_P256_SHA256, Algorithm.ECDSA_P384_SHA384
NOW = 1_800_000_000.0


def holding(name: str, algorithms: tuple[Algorithm, ...] = (P256,)) -> Holding:
    token: Any = SimpleNamespace(
        name=name,
        state=TokenState.READY,
        load=TokenLoad(0, 0, 0.01, 1, 0.0, BreakerState.CLOSED, 0.0),
    )
    return Holding(token, "pkcs11:object=release", algorithms, found=True)


def job(version: SigningVersion, *, pinned: int | None = None, algorithm: Algorithm = P256) -> Job:
    request: Any = SimpleNamespace(version=version, pinned=pinned, algorithm=algorithm)
    return Job(request)


@pytest.fixture
def key() -> SigningKey:
    """A key with two versions; the primary one is held by two tokens."""
    first = SigningVersion("release", 1, (P256,), [holding("a"), holding("b")])
    second = SigningVersion("release", 2, (P256,), [holding("c")])
    return SigningKey("release", primary=1, versions={1: first, 2: second})


@pytest.fixture
def placement(key: SigningKey) -> Placement:
    return Placement(KeyRing({"release": key}))


def tokens_for(placement: Placement, each: Job) -> list[str]:
    return [way.holding.token.name for way in placement.ways(each, NOW)]


def test_the_primary_versions_tokens_come_first_and_alone(key: SigningKey, placement: Placement):
    assert tokens_for(placement, job(key.versions[1])) == ["a", "b"]


def test_another_version_steps_in_where_the_primary_has_no_token(key: SigningKey, placement: Placement):
    key.versions[1].holdings[0].token.state = TokenState.LOCKED
    key.versions[1].holdings[1].token.state = TokenState.DRAINED
    assert tokens_for(placement, job(key.versions[1])) == ["c"]


def test_a_token_that_failed_a_request_is_not_asked_again(key: SigningKey, placement: Placement):
    failed = job(key.versions[1])
    failed.tried = [key.versions[1].holdings[0]]
    assert tokens_for(placement, failed) == ["b"]


def test_a_named_version_is_the_only_one(key: SigningKey, placement: Placement):
    assert tokens_for(placement, job(key.versions[2], pinned=2)) == ["c"]


@pytest.mark.parametrize("pinned", [None, 1])
@pytest.mark.parametrize("ailment", ["halted", "disabled", "certificate"])
def test_a_version_that_may_not_sign_is_never_given_more(
    key: SigningKey, placement: Placement, pinned: int | None, ailment: str
):
    """One of its tokens returned a wrong signature, say: what another request waits for goes to no other of its tokens."""
    version = key.versions[1]
    if ailment == "halted":
        version.halted = "its token returned a signature that does not verify"
    elif ailment == "disabled":
        version.state = VersionState.DISABLED
    else:
        version.certificate_error = "it is of another key"
    assert tokens_for(placement, job(version, pinned=pinned)) == ([] if pinned else ["c"])


def test_a_token_that_lacks_the_algorithm_is_not_asked(key: SigningKey, placement: Placement):
    key.versions[1].offered = (P256, P384)
    key.versions[1].holdings[1].algorithms = (P256, P384)
    assert tokens_for(placement, job(key.versions[1], algorithm=P384)) == ["b"]
