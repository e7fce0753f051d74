"""The signing path in one process over a real SoftHSM token and a real store: ids, batches, refusals."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from deployment import Deployment
from greatseal.algorithms import Algorithm
from greatseal.signatures import PublicKey, verify_digest
from greatseald.adapters.metrics import PrometheusMetrics
from greatseald.app.admission import DigestRequest, StatementRequest
from greatseald.app.audit import AuditLog
from greatseald.app.sign import Batch, Released
from greatseald.bootstrap import compose
from greatseald.bootstrap.tokens import TokenWatch
from greatseald.config import load
from greatseald.domain.errors import GreatsealError
from greatseald.domain.identity import Caller

PIPELINE = Caller(
    "spiffe://greatseal.local/pipeline", "aa" * 32, "0a", "CN=ca", "bb" * 32, datetime(2030, 1, 1, tzinfo=UTC)
)
STRANGER = replace(PIPELINE, id="spiffe://greatseal.local/stranger")
FLOODER = replace(PIPELINE, id="spiffe://greatseal.local/flooder")
PEER = "127.0.0.1:5"
IN_TOTO = "application/vnd.in-toto+json"


@dataclass
class Site:
    """The parts that a test talks to."""

    core: compose.Core
    log: AuditLog
    directory: Path
    watch: TokenWatch
    begun: int

    async def sign(self, *items: DigestRequest | StatementRequest, caller: Caller = PIPELINE) -> Batch:
        return await self.core.signing.sign(caller, PEER, items)

    def public_key(self, name: str) -> PublicKey:
        return load_pem_public_key((self.directory / f"keys/{name}.pem").read_bytes())  # type: ignore[return-value]

    async def kinds(self) -> list[str]:
        """The kinds of the entries since the site was opened."""
        return [json.loads(data)["t"] for data in await self.log.entries(self.begun, self.log.size)]


@asynccontextmanager
async def opened(deployment: Deployment) -> AsyncIterator[Site]:
    settings = load(deployment.config, {})
    broken: list[BaseException] = []
    metrics = PrometheusMetrics("test")
    opened_log = compose.open_log(settings, metrics, broken.append)
    watch = TokenWatch(settings, metrics, broken.append)
    core = compose.build_core(settings, opened_log.log, metrics, dict(watch.tokens))
    tasks: set[asyncio.Task[Any]] = set()

    def spawn(work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    opened_log.log.start()
    try:
        await watch.start(core.keys, opened_log.log, spawn)
        yield Site(core, opened_log.log, deployment.directory, watch, opened_log.log.size)
        await core.signing.drain()
        assert not broken
    finally:
        await watch.stop()
        if tasks:
            await asyncio.wait(tasks)
        opened_log.log.stop()
        core.verifiers.shutdown()
        opened_log.close()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """One installation for the tests that leave its configuration alone, one after the other."""
    return Deployment.create(tmp_path_factory.mktemp("signing"))


def at(deployment: Deployment, work: Callable[[Site], Awaitable[None]]) -> None:
    async def go() -> None:
        async with opened(deployment) as site:
            await work(site)

    asyncio.run(go())


def blind(number: int = 0, request_id: str = "", **changes: Any) -> DigestRequest:
    digest = hashlib.sha256(number.to_bytes(8, "big")).digest()
    return replace(DigestRequest("keys/scratch", request_id or str(uuid.uuid4()), "sha256", digest), **changes)


def statement(payload: bytes | None = None, **changes: Any) -> StatementRequest:
    if payload is None:
        payload = json.dumps(
            {
                "_type": "https://in-toto.io/Statement/v1",
                "subject": [{"name": "model", "digest": {"sha256": "ab" * 32}}],
                "predicateType": "https://example.org/checked/v1",
                "predicate": {"checked": True},
            }
        ).encode()
    return replace(StatementRequest("keys/release", str(uuid.uuid4()), IN_TOTO, payload), **changes)


def reason(result: Released | GreatsealError) -> str:
    assert isinstance(result, GreatsealError), result
    return result.reason


def released(result: Released | GreatsealError) -> Released:
    assert isinstance(result, Released), result
    return result


def test_a_batch_is_answered_in_order_and_every_signature_verifies(installed: Deployment) -> None:
    async def work(site: Site) -> None:
        items = [blind(number) for number in range(100)]
        batch = await site.sign(*items)
        key = site.public_key("scratch")
        for item, result in zip(items, batch.results, strict=True):
            signature = released(result)
            assert signature.digest == item.digest
            verify_digest(key, Algorithm.ECDSA_P256_SHA256, item.digest, signature.signature)
        assert batch.checkpoint.startswith("greatseal.local/log\n")

    at(installed, work)


def test_one_refusal_never_discards_the_others(installed: Deployment) -> None:
    async def work(site: Site) -> None:
        batch = await site.sign(
            blind(1), blind(2, digest=b"short"), statement(), blind(3, key="keys/nothing"), statement(b"{}"), blind(4)
        )
        assert [isinstance(result, Released) for result in batch.results] == [True, False, True, False, False, True]
        assert reason(batch.results[1]) == "DIGEST_INVALID"
        assert reason(batch.results[3]) == "ACCESS_DENIED"
        assert reason(batch.results[4]) == "STATEMENT_INVALID"
        assert (await site.kinds()).count("denied") == 3

    at(installed, work)


def test_a_retried_id_gets_the_signature_already_made(installed: Deployment) -> None:
    async def work(site: Site) -> None:
        item = blind(7)
        first = released((await site.sign(item)).results[0])
        size = site.log.size
        again = released((await site.sign(item)).results[0])
        assert (again.signature, again.outcome.index, again.replayed) == (first.signature, first.outcome.index, True)
        assert site.log.size == size, "a replay adds nothing to the log"

    at(installed, work)


def test_a_replay_survives_a_restart_and_comes_with_new_ids_in_one_batch(deployment: Deployment) -> None:
    item = blind(8)
    made: list[bytes] = []

    async def first(site: Site) -> None:
        made.append(released((await site.sign(item)).results[0]).signature)

    async def second(site: Site) -> None:
        batch = await site.sign(blind(9), item, blind(10))
        results = [released(result) for result in batch.results]
        assert [result.replayed for result in results] == [False, True, False]
        assert results[1].signature == made[0]
        assert all(result.intent.proof and result.outcome.proof for result in results)

    at(deployment, first)
    at(deployment, second)


def test_another_request_under_a_used_id_is_refused_and_logged(installed: Deployment) -> None:
    async def work(site: Site) -> None:
        item = blind(11)
        await site.sign(item)
        other = await site.sign(blind(12, item.request_id))
        assert reason(other.results[0]) == "REQUEST_ID_REUSED"
        assert (await site.kinds())[-1] == "denied"

    at(installed, work)


def test_ids_of_two_callers_do_not_meet(deployment: Deployment) -> None:
    deployment.append(
        '[[allow]]\nclient = "spiffe://greatseal.local/stranger"\nactions = ["signBlind"]\nkeys = ["scratch"]'
    )

    async def work(site: Site) -> None:
        item = blind(13)
        released((await site.sign(item)).results[0])
        theirs = released((await site.sign(replace(item, digest=b"z" * 32), caller=STRANGER)).results[0])
        assert not theirs.replayed

    at(deployment, work)


def test_the_same_id_twice_at_once_is_signed_once(installed: Deployment) -> None:
    async def work(site: Site) -> None:
        item = blind(14)
        batches = await asyncio.gather(*(site.sign(item, blind(15 + number)) for number in range(4)))
        signatures = {released(batch.results[0]).signature for batch in batches}
        assert len(signatures) == 1
        kinds = await site.kinds()
        assert kinds.count("intent") == kinds.count("outcome") == 5

    at(installed, work)


def test_an_id_twice_within_one_batch(installed: Deployment) -> None:
    async def work(site: Site) -> None:
        item = blind(20)
        batch = await site.sign(item, item, blind(21, item.request_id))
        first, second = released(batch.results[0]), released(batch.results[1])
        assert first.signature == second.signature
        assert reason(batch.results[2]) == "REQUEST_ID_REUSED"

    at(installed, work)


def test_a_caller_who_goes_away_does_not_cancel_the_outcome(installed: Deployment) -> None:
    async def work(site: Site) -> None:
        item = blind(22)
        call = asyncio.create_task(site.sign(item))
        while "intent" not in await site.kinds():
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait(list(site.core.signing._tasks))
        kept = released((await site.sign(item)).results[0])
        assert kept.replayed

    at(installed, work)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (blind(key="release"), "ARGUMENT_INVALID"),
        (blind(request_id="17"), "ARGUMENT_INVALID"),
        (blind(digest=b"x" * 31), "DIGEST_INVALID"),
        (blind(digest=b"x" * 64), "DIGEST_INVALID"),
        (blind(hash_name="sha384", digest=b"x" * 48), "DIGEST_INVALID"),
        (blind(hash_name=""), "DIGEST_INVALID"),
        (blind(key="keys/release"), "ACCESS_DENIED"),
        (blind(algorithm=Algorithm.RSA_PSS_SHA256), "ALGORITHM_NOT_OFFERED"),
        (blind(key="keys/scratch/versions/2"), "KEY_NOT_FOUND"),
        (blind(claimed_subject="x" * 257), "ARGUMENT_INVALID"),
        (statement(payload_type="text/plain"), "PAYLOAD_TYPE_UNKNOWN"),
        (statement(b""), "STATEMENT_INVALID"),
        (statement(b"\xff"), "STATEMENT_INVALID"),
        (statement(b"[" * 100_000), "STATEMENT_INVALID"),
    ],
)
def test_bad_input_is_refused_by_name_logged_and_begins_nothing(
    installed: Deployment, item: DigestRequest | StatementRequest, expected: str
) -> None:
    async def work(site: Site) -> None:
        result = (await site.sign(item)).results[0]
        assert reason(result) == expected
        last = json.loads(site.log.entry(site.log.size - 1))
        assert (last["t"], last["reason"], last["cli"]["id"]) == ("denied", expected, PIPELINE.id)
        assert "intent" not in await site.kinds()

    at(installed, work)


def test_a_key_that_exists_and_one_that_does_not_look_the_same_to_a_stranger(installed: Deployment) -> None:
    async def work(site: Site) -> None:
        batch = await site.sign(blind(), blind(key="keys/nothing"), caller=STRANGER)
        assert [reason(result) for result in batch.results] == ["ACCESS_DENIED", "ACCESS_DENIED"]

    at(installed, work)


def test_a_flood_of_denials_is_counted_not_written(installed: Deployment) -> None:
    async def work(site: Site) -> None:
        before = site.log.size
        await site.sign(*(blind(number) for number in range(500)), caller=FLOODER)
        assert 1 <= site.log.size - before <= 40
        await site.core.access.summarise()
        denials = [json.loads(site.log.entry(index)) for index in range(before, site.log.size)]
        assert sum(1 + denial.get("more", 0) for denial in denials) == 500

    at(installed, work)


def test_an_absent_token_opens_no_intent_and_says_so(deployment: Deployment) -> None:
    deployment.edit(r'^uri = "pkcs11:token=greatseal"', 'uri = "pkcs11:token=elsewhere"')

    async def work(site: Site) -> None:
        result = (await site.sign(blind())).results[0]
        assert reason(result) == "TOKEN_UNAVAILABLE"
        assert "pkcs11:token=elsewhere" in str(result)
        assert "intent" not in await site.kinds()

    at(deployment, work)


def test_what_was_signed_is_replayed_while_the_token_is_away(installed: Deployment) -> None:
    async def work(site: Site) -> None:
        item = blind(30)
        first = released((await site.sign(item)).results[0])
        await site.watch.tokens["soft"].stop()
        again = released((await site.sign(item)).results[0])
        assert again.signature == first.signature
        assert reason((await site.sign(blind(31))).results[0]) == "TOKEN_UNAVAILABLE"

    at(installed, work)


def test_a_drained_front_takes_nothing_new(installed: Deployment) -> None:
    async def work(site: Site) -> None:
        await site.core.signing.drain()
        with pytest.raises(GreatsealError, match="stopping"):
            await site.sign(blind())

    at(installed, work)
