"""The client's conversations against a peer with a real log: retries, batches, and every lie a daemon could tell."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from client_peer import Peer, drive, refusal
from greatseal import errors
from greatseal.algorithms import Algorithm
from greatseal.calls import MAX_BATCH_BYTES, MAX_BATCH_ITEMS, Calls, Pause, split
from greatseal.messages import DigestRequest, Signature, StatementRequest
from greatseal.remembered import CheckpointFile
from greatseal.retry import Backoff
from sample_log import SampleLog, new_key

DIGEST = hashlib.sha256(b"something").digest()
STATEMENT = b'{"_type":"https://in-toto.io/Statement/v1"}'


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def calls(peer: Peer) -> Calls:
    return Calls(peer.profile, public_keys=[_pem(peer)])


def test_a_digest_is_signed_and_its_receipt_verifies(peer: Peer, calls: Calls):
    signature = drive(calls.sign(DigestRequest("release", DIGEST), None), peer)
    proven = signature.receipt.verify(peer.log.vkey, public_key=peer.key.public_key(), digest=DIGEST)
    assert proven.request_id == signature.request_id
    assert signature.key_version == "keys/release/versions/1"
    assert signature.algorithm is Algorithm.ECDSA_P256_SHA256
    assert uuid.UUID(signature.request_id).version == 7


def test_a_statement_is_verified_over_its_pae(peer: Peer, calls: Calls):
    signature = drive(calls.sign(StatementRequest("keys/release", STATEMENT), None), peer)
    assert signature.digest != hashlib.sha256(STATEMENT).digest()


def test_a_retry_repeats_the_request_id_and_gets_the_signature(peer: Peer, calls: Calls):
    peer.faults = [
        refusal("UNAVAILABLE", "OVERLOADED", retry_after=0.5),
        refusal("ABORTED", "REQUEST_IN_FLIGHT", retry_after=0.1),
        refusal("UNAVAILABLE"),
    ]
    pauses: list[Pause] = []
    signature = drive(calls.sign(DigestRequest("keys/release", DIGEST), None), peer, pauses)
    assert isinstance(signature, Signature)
    assert len(peer.calls) == 4
    assert {request.request_id for _, request in peer.calls} == {signature.request_id}
    assert [pause.error.reason for pause in pauses] == ["OVERLOADED", "REQUEST_IN_FLIGHT", ""]
    assert pauses[0].seconds >= 0.5


@pytest.mark.parametrize(
    "refused",
    [
        refusal("PERMISSION_DENIED", "ACCESS_DENIED"),
        refusal("ABORTED", "REQUEST_IN_FLIGHT"),
        refusal("INTERNAL", "SIGNING_FAILED"),
        refusal("RESOURCE_EXHAUSTED"),
        refusal("DEADLINE_EXCEEDED", "DEADLINE_PASSED"),
        refusal("FAILED_PRECONDITION", "TOKEN_LOCKED"),
        refusal("UNAVAILABLE", "DISK_RESERVE_REACHED", retry_after=3600),
    ],
)
def test_what_cannot_be_helped_is_raised_at_once(peer: Peer, calls: Calls, refused: Any):
    peer.faults = [refused]
    with pytest.raises(errors.DaemonError) as caught:
        drive(calls.sign(DigestRequest("keys/release", DIGEST), None), peer)
    assert len(peer.calls) == 1
    assert caught.value.request_id == peer.calls[0][1].request_id


def test_when_the_time_runs_out_the_error_is_the_one_that_the_tries_met(peer: Peer, calls: Calls):
    peer.faults = [refusal("UNAVAILABLE", "TOKEN_UNAVAILABLE"), refusal("DEADLINE_EXCEEDED")]
    with pytest.raises(errors.Unavailable) as caught:
        drive(calls.sign(DigestRequest("keys/release", DIGEST), None), peer)
    assert caught.value.reason == "TOKEN_UNAVAILABLE"


def test_a_given_request_id_is_used_in_its_canonical_form(peer: Peer, calls: Calls):
    given = uuid.uuid4()
    drive(calls.sign(DigestRequest("keys/release", DIGEST, request_id=given.hex.upper()), None), peer)
    assert peer.calls[0][1].request_id == str(given)


@pytest.mark.parametrize(
    ("item", "timeout"),
    [
        (DigestRequest("keys/release", b"short"), None),
        (DigestRequest("keys/release", b""), None),
        (DigestRequest("", DIGEST), None),
        (DigestRequest("keys/release", DIGEST, request_id="not-a-uuid"), None),
        (DigestRequest("keys/release", DIGEST), 0),
        (DigestRequest("keys/release", DIGEST), float("nan")),
    ],
)
def test_malformed_requests_are_refused_before_anything_is_sent(
    peer: Peer, calls: Calls, item: DigestRequest, timeout: float | None
):
    with pytest.raises(errors.UsageError):
        drive(calls.sign(item, timeout), peer)
    assert peer.calls == []


# --- a daemon that lies


def _lie_digest(answer: Any) -> None:
    answer.digest = hashlib.sha256(b"other").digest()


def _lie_signature(answer: Any) -> None:
    answer.signature = answer.signature[:-1] + bytes([answer.signature[-1] ^ 1])


def _lie_key(answer: Any) -> None:
    answer.key_version = "keys/other/versions/1"


def _lie_version(answer: Any) -> None:
    answer.key_version = "keys/release/versions/2"


def _lie_algorithm(answer: Any) -> None:
    answer.algorithm = 3


def _lie_unknown_algorithm(answer: Any) -> None:
    answer.algorithm = 99


def _lie_index(answer: Any) -> None:
    answer.receipt.outcome_index += 1


def _lie_intent(answer: Any) -> None:
    entry = json.loads(answer.receipt.intent_entry)
    entry["cli"]["id"] = "spiffe://greatseal.local/somebody-else"
    answer.receipt.intent_entry = json.dumps(entry).encode()


def _lie_proof(answer: Any) -> None:
    answer.receipt.outcome_proof = answer.receipt.outcome_proof[:-1]


def _lie_no_receipt(answer: Any) -> None:
    answer.receipt.Clear()


def _lie_forged_checkpoint(answer: Any) -> None:
    forger = SampleLog()
    forger.grow(9)
    answer.receipt.checkpoint = forger.note()


LIES = [value for name, value in sorted(globals().items()) if name.startswith("_lie_")]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_an_answer_that_does_not_prove_what_was_asked_is_never_returned(peer: Peer, calls: Calls, lie: Any):
    peer.tamper = lambda _method, answer: lie(answer)
    with pytest.raises(errors.VerificationFailed) as caught:
        drive(calls.sign(DigestRequest("keys/release", DIGEST), None), peer)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    "lie", [lie for lie in LIES if lie is not _lie_forged_checkpoint], ids=lambda lie: lie.__name__
)
def test_without_the_logs_key_only_the_checkpoints_signature_goes_unchecked(peer: Peer, lie: Any):
    calls = Calls(dataclasses.replace(peer.profile, log_key=""))
    peer.tamper = lambda _method, answer: lie(answer)
    with pytest.raises(errors.VerificationFailed):
        drive(calls.sign(DigestRequest("keys/release", DIGEST), None), peer)


def test_a_receipt_of_another_request_is_refused(peer: Peer, calls: Calls):
    first = drive(calls.sign(DigestRequest("keys/release", DIGEST), None), peer)

    def replay(_method: str, answer: Any) -> None:
        pair = peer._pairs[first.request_id]
        other = peer._signature(first.request_id, peer.log.note())
        answer.CopyFrom(other)
        assert pair is not None

    peer.tamper = replay
    with pytest.raises(errors.VerificationFailed, match="request id"):
        drive(calls.sign(DigestRequest("keys/release", DIGEST), None), peer)


def test_a_signature_by_another_key_that_the_receipt_covers_is_refused_by_the_known_key(peer: Peer):
    # The whole answer is consistent, but the signature in it is not by the key that it names.
    calls = Calls(peer.profile, public_keys=[_pem(peer)])
    honest, forger = peer.key, new_key()
    original = peer.log._sign

    def sign_with_forger(key: Any, algorithm: Any, digest: bytes, intent: Any, *rest: Any) -> Any:
        import sample_log
        from sample_log import sign_digest

        real = sample_log.sign_digest
        sample_log.sign_digest = lambda _key, algo, data: sign_digest(forger, algo, data)
        try:
            return original(honest, algorithm, digest, intent, *rest)
        finally:
            sample_log.sign_digest = real

    peer.log._sign = sign_with_forger
    with pytest.raises(errors.VerificationFailed):
        drive(calls.sign(DigestRequest("keys/release", DIGEST), None), peer)
    # Without the public key nobody can know.
    assert drive(Calls(peer.profile).sign(DigestRequest("keys/release", DIGEST), None), peer)


# --- batches


def _items(count: int) -> list[DigestRequest]:
    return [DigestRequest("keys/release", hashlib.sha256(str(n).encode()).digest()) for n in range(count)]


def test_a_batch_answers_every_item_in_order(peer: Peer, calls: Calls):
    items = [*_items(5), StatementRequest("keys/release", STATEMENT)]
    results = drive(calls.sign_batch(items, None), peer)
    assert [result.digest for result in results[:5]] == [item.digest for item in items[:5]]
    assert len({result.request_id for result in results}) == 6
    for result in results:
        result.receipt.verify(peer.log.vkey, public_key=peer.key.public_key())


def test_one_refusal_never_discards_the_others(peer: Peer, calls: Calls):
    items = [dataclasses.replace(item, request_id=str(uuid.uuid4())) for item in _items(4)]
    peer.item_faults[items[2].request_id] = [refusal("PERMISSION_DENIED", "ACCESS_DENIED")]
    results = drive(calls.sign_batch(items, None), peer)
    assert [type(result).__name__ for result in results] == ["Signature", "Signature", "Denied", "Signature"]
    assert results[2].request_id == items[2].request_id
    assert len(peer.calls) == 1


def test_only_the_items_that_failed_retryably_are_sent_again_under_the_same_ids(peer: Peer, calls: Calls):
    items = [dataclasses.replace(item, request_id=str(uuid.uuid4())) for item in _items(5)]
    peer.item_faults[items[1].request_id] = [refusal("UNAVAILABLE", "TOKEN_UNAVAILABLE"), refusal("UNAVAILABLE")]
    peer.item_faults[items[3].request_id] = [refusal("ABORTED", "REQUEST_IN_FLIGHT", retry_after=0.2)]
    peer.item_faults[items[4].request_id] = [refusal("INTERNAL", "SIGNING_FAILED")]
    pauses: list[Pause] = []
    results = drive(calls.sign_batch(items, None), peer, pauses)
    sent = [[item.digest.request_id for item in request.items] for _, request in peer.calls]
    assert sent == [
        [item.request_id for item in items],
        [items[1].request_id, items[3].request_id],
        [items[1].request_id],
    ]
    assert [type(result).__name__ for result in results] == ["Signature"] * 4 + ["DaemonFault"]
    assert pauses[0].seconds >= 0.2


def test_a_batch_that_never_arrived_is_sent_again_whole(peer: Peer, calls: Calls):
    peer.faults = [refusal("UNAVAILABLE"), refusal("UNAVAILABLE", "SHUTTING_DOWN")]
    results = drive(calls.sign_batch(_items(3), None), peer, [])
    assert all(isinstance(result, Signature) for result in results)
    assert len({tuple(item.digest.request_id for item in request.items) for _, request in peer.calls}) == 1


def test_a_refused_caller_is_told_for_every_item_and_not_asked_again(peer: Peer, calls: Calls):
    peer.faults = [refusal("PERMISSION_DENIED", "CALLER_DENYLISTED")]
    results = drive(calls.sign_batch(_items(MAX_BATCH_ITEMS + 5), None), peer)
    assert len(peer.calls) == 1
    assert len(results) == MAX_BATCH_ITEMS + 5
    assert {type(result) for result in results} == {errors.Denied}
    assert len({result.request_id for result in results}) == MAX_BATCH_ITEMS + 5


def test_two_items_with_one_id_are_refused_here(peer: Peer, calls: Calls):
    same = str(uuid.uuid4())
    with pytest.raises(errors.UsageError, match="same request id"):
        drive(calls.sign_batch([dataclasses.replace(item, request_id=same) for item in _items(2)], None), peer)


def test_a_batch_with_one_false_result_raises(peer: Peer, calls: Calls):
    def swap(_method: str, answer: Any) -> None:
        answer.results[0].signature.signature, answer.results[1].signature.signature = (
            answer.results[1].signature.signature,
            answer.results[0].signature.signature,
        )

    peer.tamper = swap
    with pytest.raises(errors.VerificationFailed):
        drive(calls.sign_batch(_items(3), None), peer)


@pytest.mark.parametrize("change", ["short", "empty"])
def test_a_batch_without_a_result_for_each_item_raises(peer: Peer, calls: Calls, change: str):
    def tamper(_method: str, answer: Any) -> None:
        if change == "short":
            del answer.results[-1]
        else:
            answer.results[0].Clear()

    peer.tamper = tamper
    with pytest.raises(errors.VerificationFailed):
        drive(calls.sign_batch(_items(3), None), peer)


def test_an_empty_batch_asks_nothing(peer: Peer, calls: Calls):
    assert drive(calls.sign_batch([], None), peer) == []
    assert peer.calls == []


def test_batches_are_split_by_items_and_by_bytes():
    assert [len(chunk) for chunk in split([10] * 2500)] == [1000, 1000, 500]
    big = MAX_BATCH_BYTES // 2
    assert [list(chunk) for chunk in split([big, big, 1, MAX_BATCH_BYTES * 3, 1])] == [[0, 1], [2], [3], [4]]
    sizes = [MAX_BATCH_BYTES, 5, 7, MAX_BATCH_BYTES - 12, 1]
    assert [position for chunk in split(sizes) for position in chunk] == list(range(5))


# --- the remembered checkpoint


@pytest.fixture
def remembering(peer: Peer, tmp_path: Path) -> tuple[Calls, Path]:
    path = tmp_path / "checkpoint"
    return Calls(dataclasses.replace(peer.profile, checkpoint_file=path)), path


def test_every_new_checkpoint_is_proven_and_remembered(peer: Peer, remembering: tuple[Calls, Path]):
    calls, path = remembering
    for _ in range(3):
        drive(calls.sign(DigestRequest("keys/release", DIGEST), None), peer)
    assert path.read_text() == peer.log.note()
    assert path.stat().st_mode & 0o777 == 0o600
    assert peer.methods().count("GetConsistencyProof") == 2


def test_a_log_that_went_back_raises_and_the_file_is_kept(peer: Peer, remembering: tuple[Calls, Path]):
    calls, path = remembering
    drive(calls.checkpoint(None), peer)
    kept = path.read_text()
    older = SampleLog(private_key=peer.log.private_key)
    older.append(peer.log.entries[:2])
    peer.log = older
    with pytest.raises(errors.LogRegressed) as caught:
        drive(calls.checkpoint(None), peer)
    assert path.read_text() == kept == caught.value.remembered
    assert caught.value.presented == older.note()


@pytest.mark.parametrize("more", [0, 4])
def test_a_forked_log_raises_and_the_file_is_kept(peer: Peer, remembering: tuple[Calls, Path], more: int):
    calls, path = remembering
    peer.log.grow(4)
    drive(calls.checkpoint(None), peer)
    kept = path.read_text()
    fork = SampleLog(private_key=peer.log.private_key)
    fork.append([*peer.log.entries[:3], b'{"another":"history"}', *peer.log.entries[4:]])
    fork.grow(more)
    peer.log = fork
    with pytest.raises(errors.LogRegressed):
        drive(calls.sign(DigestRequest("keys/release", DIGEST), None), peer)
    with pytest.raises(errors.LogRegressed):
        drive(calls.checkpoint(None), peer)
    assert path.read_text() == kept


def test_a_checkpoint_of_a_call_that_began_earlier_is_proven_and_not_remembered(
    peer: Peer, remembering: tuple[Calls, Path]
):
    calls, path = remembering
    talk = calls.checkpoint(None)
    step = next(talk)
    step = talk.send(step.function())  # nothing is remembered yet
    early = peer.answer(step.method, step.request)
    peer.log.grow(5)
    drive(calls.checkpoint(None), peer)  # another thread is faster
    kept = path.read_text()
    step = talk.send(early)
    while True:
        try:
            given = peer.answer(step.method, step.request) if hasattr(step, "method") else step.function()
            step = talk.send(given)
        except StopIteration:
            break
    assert path.read_text() == kept


def test_a_remembered_file_that_is_not_this_logs_is_not_overwritten(peer: Peer, remembering: tuple[Calls, Path]):
    calls, path = remembering
    other = SampleLog()
    other.grow(2)
    path.write_text(other.note())
    with pytest.raises(errors.VerificationFailed, match="checkpoint_file"):
        drive(calls.checkpoint(None), peer)
    assert path.read_text() == other.note()


def test_without_the_right_to_read_the_log_the_error_says_what_the_file_takes(
    peer: Peer, remembering: tuple[Calls, Path]
):
    calls, _ = remembering
    drive(calls.sign(DigestRequest("keys/release", DIGEST), None), peer)

    def deny(_request: Any) -> Any:
        raise refusal("PERMISSION_DENIED", "ACCESS_DENIED")

    peer.GetConsistencyProof = deny  # type: ignore[method-assign]
    with pytest.raises(errors.Denied) as caught:
        drive(calls.sign(DigestRequest("keys/release", DIGEST), None), peer)
    assert "readAudit" in caught.value.__notes__[0]


def test_replacing_loses_to_whoever_was_first(peer: Peer, tmp_path: Path):
    memory = CheckpointFile(tmp_path / "checkpoint", peer.log.vkey)
    before = memory.read()
    peer.log.grow(1)
    first = peer.log.note()
    assert memory.replace(before, first)
    peer.log.grow(1)
    assert not memory.replace(before, peer.log.note())
    assert (tmp_path / "checkpoint").read_text() == first


# --- reading


def test_pages_that_do_not_end_are_an_error(peer: Peer, calls: Calls):
    def same(_method: str, answer: Any) -> None:
        answer.next_page_token = "again"

    peer.tamper = same
    _, token = drive(calls.key_page("", None), peer)
    peer.ListKeys = lambda _request: type(peer.calls[0][1]) and _keys()  # type: ignore[method-assign, assignment]
    with pytest.raises(errors.VerificationFailed, match="do not end"):
        drive(calls.key_page(token, None), peer)


def _keys() -> Any:
    from greatseal.v1 import key_pb2

    return key_pb2.ListKeysResponse()


def test_another_entry_than_was_asked_for_is_an_error(peer: Peer, calls: Calls):
    peer.tamper = lambda _method, answer: setattr(answer, "index", answer.index + 1)
    with pytest.raises(errors.VerificationFailed):
        drive(calls.entry(1, None), peer)


def test_a_checkpoint_that_contradicts_its_note_is_an_error(peer: Peer, calls: Calls):
    peer.tamper = lambda _method, answer: setattr(answer, "size", answer.size + 1)
    with pytest.raises(errors.VerificationFailed):
        drive(calls.checkpoint(None), peer)


def test_the_backoff_is_what_decides(peer: Peer):
    calls = Calls(peer.profile, backoff=Backoff(initial=100, maximum=100))
    peer.faults = [refusal("UNAVAILABLE")]
    with pytest.raises(errors.Unavailable):
        drive(calls.whoami(30), peer)


def _pem(peer: Peer) -> bytes:
    return peer.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
