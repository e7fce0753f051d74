"""Bytes that are no request, sent to a real daemon: each call gets one answer of the documented form, and it goes on."""

from __future__ import annotations

import os
import random
from pathlib import Path

import grpc
import pytest

from deployment import Deployment
from front_site import TIMEOUT, connected, logged, pipeline, reason_of, sign, who_am_i

pytestmark = [pytest.mark.softhsm]

CORPUS = Path(__file__).resolve().parent / "corpus" / "requests"
METHODS = [
    "SigningService/SignDigest",
    "SigningService/SignStatement",
    "SigningService/BatchSign",
    "AuditService/GetCheckpoint",
    "AuditService/GetEntry",
    "AuditService/ListEntries",
    "AuditService/GetInclusionProof",
    "AuditService/GetConsistencyProof",
    "KeyService/GetKey",
    "KeyService/ListKeys",
    "IdentityService/WhoAmI",
]
CALLS = 3000
# What a caller may be told of a request that he made wrong. No fault of the daemon's is among them.
ANSWERS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS,
}


def test_no_bytes_make_the_daemon_fail(shared_deployment: Deployment) -> None:
    seed = int(os.environ.get("GREATSEAL_FUZZ_SEED", random.SystemRandom().randrange(1 << 31)))
    print(f"GREATSEAL_FUZZ_SEED={seed}")
    rng = random.Random(seed)
    known = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    told: dict[grpc.StatusCode, int] = {}
    with connected(shared_deployment, pipeline(shared_deployment)) as channel:
        for _ in range(CALLS):
            data, method = mutated(rng, known), rng.choice(METHODS)
            try:
                channel.unary_unary(f"/greatseal.v1.{method}")(data, timeout=TIMEOUT)
            except grpc.RpcError as error:
                code, reason = reason_of(error)
                assert code in ANSWERS, f"{method} answered {code} {reason} to {data.hex()}"
                told[code] = told.get(code, 0) + 1
        assert told[grpc.StatusCode.INVALID_ARGUMENT] > CALLS / 20, f"little was refused: {told}"
        assert who_am_i(channel).client.startswith("spiffe://")
        assert sign(channel).signature
    assert logged(shared_deployment, "internal_fault") == []


def mutated(rng: random.Random, known: list[bytes]) -> bytes:
    """A genuine request with a few bytes changed, cut out or put in, or the beginning of one and the end of another."""
    data = bytearray(rng.choice(known))
    if rng.random() < 0.2:
        other = rng.choice(known)
        data = data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]
    for _ in range(rng.randrange(6)):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place : place + rng.randrange(1, 9)]
        elif kind == 2:
            data[place:place] = rng.randbytes(rng.randrange(1, 9))
        else:
            data[place:place] = b"\xff" * 9 + b"\x01"  # the longest varint
    return bytes(data)
