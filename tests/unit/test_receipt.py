"""A receipt proves what it claims or is refused, and the refusal says which step failed."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from greatseal.algorithms import Algorithm
from greatseal.dsse import IN_TOTO_PAYLOAD_TYPE, pae
from greatseal.note import NoteSigner
from greatseal.receipt import Logged, Receipt, VerifiedReceipt
from greatseal.signatures import spki_sha256
from greatseal.verification import ReceiptCheck, ReceiptInvalid
from sample_log import ORIGIN, SampleLog, as_json, new_key, oms_document, sign_digest

KEY = new_key()
DIGEST = hashlib.sha256(b"what is signed").digest()
STATEMENT = as_json(oms_document())
ROOT = oms_document()["subject"][0]["digest"]["sha256"]


@pytest.fixture(scope="module")
def log() -> SampleLog:
    log = SampleLog()
    log.grow(300)
    return log


def refused(check: ReceiptCheck, receipt: Receipt, log: SampleLog, **held: Any) -> str:
    """The message with which the receipt is refused, by that check."""
    with pytest.raises(ReceiptInvalid) as caught:
        receipt.verify(log.vkey, **{"public_key": KEY.public_key(), **held})
    assert caught.value.check is check, caught.value
    return caught.value.message


def test_a_true_receipt_says_who_signed_what_with_which_key(log: SampleLog):
    pair = log.sign(KEY, between=3)
    log.grow(2)
    verified = log.receipt(pair).verify(log.vkey, public_key=KEY.public_key(), digest=DIGEST)
    assert verified == VerifiedReceipt(
        log=ORIGIN,
        log_size=len(log.entries),
        intent_index=pair.intent,
        outcome_index=pair.outcome,
        request_id="0197f3f0-1111-7000-8000-000000000002",
        caller="spiffe://greatseal.local/pipeline",
        key="keys/release",
        key_version=1,
        spki_sha256=spki_sha256(KEY.public_key()),
        algorithm=Algorithm.ECDSA_P256_SHA256,
        digest=DIGEST,
        signature=verified.signature,
        blind=True,
        payload_type="",
        predicate_type="",
        subject="",
        subject_digest="",
        requested_at="2026-01-02T03:04:05.678901Z",
        signed_at="2026-01-02T03:04:05.678901Z",
        signature_verified=True,
    )


def test_a_receipt_of_ed25519_takes_the_payload_to_verify_the_signature(log: SampleLog):
    key = new_key(Algorithm.ED25519)
    receipt = log.receipt(log.sign_statement(key, STATEMENT, Algorithm.ED25519))
    verified = receipt.verify(log.vkey, public_key=key.public_key(), payload=STATEMENT)
    assert verified.signature_verified
    assert not receipt.verify(log.vkey, public_key=key.public_key()).signature_verified
    assert not receipt.verify(log.vkey, payload=STATEMENT).signature_verified
    refused(ReceiptCheck.PAYLOAD, receipt, log, public_key=key.public_key(), payload=STATEMENT + b" ")
    # A signature over the digest, or over the payload without its DSSE encoding, is none.
    for signed in (receipt.verify(log.vkey).digest, STATEMENT):
        false = {"sig": base64.b64encode(sign_digest(key, Algorithm.ED25519, signed)).decode()}
        forged = log.receipt(log.sign_statement(key, STATEMENT, Algorithm.ED25519, edit_outcome=false))
        refused(ReceiptCheck.SIGNATURE, forged, log, public_key=key.public_key(), payload=STATEMENT)


@pytest.mark.parametrize("algorithm", [algorithm for algorithm in Algorithm if not algorithm.is_pure])
def test_receipts_of_every_algorithm_verify(log: SampleLog, algorithm: Algorithm):
    key = new_key(algorithm)
    digest = hashlib.new(algorithm.hash_name, b"x").digest()
    receipt = log.receipt(log.sign(key, digest, algorithm))
    assert receipt.verify(log.vkey, public_key=key.public_key(), digest=digest).algorithm is algorithm


def test_a_statements_receipt_is_for_this_payload_and_this_model(log: SampleLog):
    receipt = log.receipt(log.sign_statement(KEY, STATEMENT))
    digest = hashlib.sha256(pae(IN_TOTO_PAYLOAD_TYPE, STATEMENT)).digest()
    verified = receipt.verify(
        log.vkey, public_key=KEY.public_key(), digest=digest, payload=STATEMENT, model_digest=ROOT
    )
    assert (verified.blind, verified.subject, verified.subject_digest) == (False, "tiny-model", ROOT)
    assert "another model" in refused(ReceiptCheck.PAYLOAD, receipt, log, model_digest="00" * 32)
    assert "another payload" in refused(ReceiptCheck.PAYLOAD, receipt, log, payload=STATEMENT + b" ")


def test_a_blind_receipt_vouches_for_no_model(log: SampleLog):
    assert "blind" in refused(ReceiptCheck.PAYLOAD, log.receipt(log.sign(KEY)), log, model_digest=ROOT)


def test_a_blind_receipt_is_for_the_payload_whose_digest_was_signed(log: SampleLog):
    digest = hashlib.sha256(pae(IN_TOTO_PAYLOAD_TYPE, STATEMENT)).digest()
    receipt = log.receipt(log.sign(KEY, digest, edit_intent={"ptype": IN_TOTO_PAYLOAD_TYPE}))
    receipt.verify(log.vkey, public_key=KEY.public_key(), payload=STATEMENT)
    assert "another payload" in refused(ReceiptCheck.PAYLOAD, receipt, log, payload=STATEMENT + b" ")


def test_a_receipt_of_another_kind_of_statement_vouches_for_no_model(log: SampleLog):
    document = oms_document() | {"predicateType": "https://example.com/other", "predicate": {}}
    receipt = log.receipt(log.sign_statement(KEY, as_json(document)))
    assert "no model" in refused(ReceiptCheck.PAYLOAD, receipt, log, model_digest=ROOT)


def test_without_a_public_key_the_result_says_that_the_signature_was_not_verified(log: SampleLog):
    receipt = log.receipt(log.sign(KEY, edit_outcome={"sig": base64.b64encode(b"no signature").decode()}))
    assert receipt.verify(log.vkey).signature_verified is False


def test_a_receipt_verifies_under_any_later_checkpoint(log: SampleLog):
    pair = log.sign(KEY)
    for more in (0, 1, 255, 30):
        log.grow(more)
        log.receipt(pair).verify(log.vkey, public_key=KEY.public_key(), digest=DIGEST)
    log.receipt(pair, pair.outcome + 1).verify(log.vkey)


class TestTheAttackerHolds:
    """A true log and its true receipts, but not the log's key."""

    def test_a_receipt_for_another_digest(self, log: SampleLog):
        receipt = log.receipt(log.sign(KEY))
        other = hashlib.sha256(b"other").digest()
        assert "another digest" in refused(ReceiptCheck.DIGEST, receipt, log, digest=other)

    def test_a_receipt_of_another_key(self, log: SampleLog):
        receipt = log.receipt(log.sign(new_key()))
        assert "another key" in refused(ReceiptCheck.KEY, receipt, log)

    def test_an_outcome_of_another_intent(self, log: SampleLog):
        one, two = log.receipt(log.sign(KEY)), log.receipt(log.sign(KEY))
        swapped = dataclasses.replace(two, intent=log.logged(one.intent.index))
        assert "not this one" in refused(ReceiptCheck.LINK, swapped, log)

    def test_intent_and_outcome_swapped(self, log: SampleLog):
        receipt = log.receipt(log.sign(KEY))
        swapped = Receipt(receipt.outcome, receipt.intent, receipt.checkpoint)
        refused(ReceiptCheck.ENTRIES, swapped, log)

    def test_the_same_entry_twice(self, log: SampleLog):
        receipt = log.receipt(log.sign(KEY))
        refused(ReceiptCheck.ENTRIES, Receipt(receipt.outcome, receipt.outcome, receipt.checkpoint), log)
        refused(ReceiptCheck.ENTRIES, Receipt(receipt.intent, receipt.intent, receipt.checkpoint), log)

    def test_an_edited_entry(self, log: SampleLog):
        receipt = log.receipt(log.sign(KEY))
        other = hashlib.sha256(b"other").hexdigest().encode()
        for part, check in (("intent", ReceiptCheck.INTENT_INCLUSION), ("outcome", ReceiptCheck.OUTCOME_INCLUSION)):
            logged: Logged = getattr(receipt, part)
            edited = dataclasses.replace(logged, entry=logged.entry.replace(DIGEST.hex().encode(), other))
            assert "not in the log" in refused(check, dataclasses.replace(receipt, **{part: edited}), log)

    def test_a_proof_of_another_index(self, log: SampleLog):
        receipt = log.receipt(log.sign(KEY))
        for part, check in (("intent", ReceiptCheck.INTENT_INCLUSION), ("outcome", ReceiptCheck.OUTCOME_INCLUSION)):
            logged: Logged = getattr(receipt, part)
            elsewhere = log.logged(3)
            for edited in (
                dataclasses.replace(logged, index=3),
                dataclasses.replace(logged, hashes=elsewhere.hashes),
                dataclasses.replace(logged, index=3, hashes=elsewhere.hashes),
                dataclasses.replace(logged, index=len(log.entries)),
                dataclasses.replace(logged, index=-1),
                dataclasses.replace(logged, hashes=logged.hashes[:-1]),
                dataclasses.replace(logged, hashes=()),
                dataclasses.replace(logged, hashes=logged.hashes * 20),
            ):
                refused(check, dataclasses.replace(receipt, **{part: edited}), log)

    def test_a_checkpoint_of_another_size(self, log: SampleLog):
        pair = log.sign(KEY)
        receipt = log.receipt(pair)
        log.grow(1)
        refused(ReceiptCheck.INTENT_INCLUSION, dataclasses.replace(receipt, checkpoint=log.note()), log)
        refused(ReceiptCheck.INTENT_INCLUSION, dataclasses.replace(receipt, checkpoint=log.note(5)), log)

    def test_a_whole_log_of_his_own_under_the_same_name(self, log: SampleLog):
        forged = SampleLog()
        receipt = forged.receipt(forged.sign(KEY))
        receipt.verify(forged.vkey)
        assert "not signed by" in refused(ReceiptCheck.CHECKPOINT, receipt, log)

    def test_a_forged_line_beside_the_true_one(self, log: SampleLog):
        receipt = log.receipt(log.sign(KEY))
        forger = NoteSigner(ORIGIN, Ed25519PrivateKey.generate())
        forged = forger.sign(receipt.checkpoint.partition("\n\n")[0].replace("\n", "\n1", 1) + "\n")
        forged += receipt.checkpoint.partition("\n\n")[2]
        refused(ReceiptCheck.CHECKPOINT, dataclasses.replace(receipt, checkpoint=forged), log)

    def test_a_cut_checkpoint(self, log: SampleLog):
        receipt = log.receipt(log.sign(KEY))
        for end in (0, 10, len(receipt.checkpoint) // 2, len(receipt.checkpoint) - 1):
            cut = dataclasses.replace(receipt, checkpoint=receipt.checkpoint[:end])
            refused(ReceiptCheck.CHECKPOINT, cut, log)

    def test_the_wrong_verifier_key(self, log: SampleLog):
        receipt = log.receipt(log.sign(KEY))
        for other in (SampleLog(), SampleLog(origin="other.example/log")):
            with pytest.raises(ReceiptInvalid) as caught:
                receipt.verify(other.vkey)
            assert caught.value.check is ReceiptCheck.CHECKPOINT


class TestAFaultyDaemonLogged:
    """Entries that are in the log, under a true checkpoint, and still prove nothing."""

    def edited(
        self, log: SampleLog, intent: dict[str, Any] | None = None, outcome: dict[str, Any] | None = None
    ) -> Receipt:
        return log.receipt(log.sign(KEY, edit_intent=intent, edit_outcome=outcome))

    @pytest.mark.parametrize("result", ["failed", "unknown", "aborted", "Signed", ""])
    def test_another_result_than_signed(self, log: SampleLog, result: str):
        refused(ReceiptCheck.RESULT, self.edited(log, outcome={"res": result}), log)

    def test_another_digest_in_the_outcome(self, log: SampleLog):
        assert "different digests" in refused(ReceiptCheck.DIGEST, self.edited(log, outcome={"tbs": "00" * 32}), log)

    @pytest.mark.parametrize("tbs", ["", "00", "00" * 48, "zz" * 32, "00" * 31 + "0"])
    def test_a_digest_that_does_not_fit_the_algorithm(self, log: SampleLog, tbs: str):
        refused(ReceiptCheck.DIGEST, self.edited(log, {"tbs": tbs}, {"tbs": tbs}), log)

    def test_another_key_in_the_outcome(self, log: SampleLog):
        receipt = self.edited(log, outcome={"key": {"spki_sha256": "00" * 32}})
        assert "different public keys" in refused(ReceiptCheck.KEY, receipt, log)

    def test_a_closed_intent_with_another_leaf_hash(self, log: SampleLog):
        index = len(log.entries)
        receipt = self.edited(log, outcome={"intent": {"index": index, "leaf_hash": "00" * 32}})
        assert "another leaf hash" in refused(ReceiptCheck.LINK, receipt, log)

    def test_a_closed_intent_with_another_index(self, log: SampleLog):
        receipt = self.edited(log, outcome={"intent": {"index": 5, "leaf_hash": "00" * 32}})
        assert "closes the intent at 5" in refused(ReceiptCheck.LINK, receipt, log)

    def test_an_outcome_before_its_intent(self, log: SampleLog):
        receipt = self.edited(log)
        log.append([receipt.intent.entry])
        late = dataclasses.replace(
            log.receipt(log.sign(KEY)),
            intent=log.logged(len(log.entries) - 3),
            outcome=log.logged(receipt.outcome.index),
        )
        assert "does not follow" in refused(ReceiptCheck.LINK, late, log)

    @pytest.mark.parametrize("part", ["intent", "outcome"])
    def test_another_log_in_an_entry(self, log: SampleLog, part: str):
        receipt = self.edited(log, **{part: {"log": "other.example/log"}})
        assert part in refused(ReceiptCheck.LOG, receipt, log)

    def test_a_signature_that_is_not_by_the_key(self, log: SampleLog):
        false = base64.b64encode(sign_digest(new_key(), Algorithm.ECDSA_P256_SHA256, DIGEST)).decode()
        refused(ReceiptCheck.SIGNATURE, self.edited(log, outcome={"sig": false}), log)

    @pytest.mark.parametrize("name", ["ecdsa-p521-sha512", "", "ECDSA-P256-SHA256"])
    def test_an_algorithm_that_is_not_known(self, log: SampleLog, name: str):
        refused(ReceiptCheck.ALGORITHM, self.edited(log, {"mech": name}), log)

    def test_an_algorithm_that_does_not_fit_the_key(self, log: SampleLog):
        assert "does not fit" in refused(ReceiptCheck.ALGORITHM, self.edited(log, {"mech": "rsa-pss-sha256"}), log)

    @pytest.mark.parametrize("field", ["v", "t", "log", "key", "tbs", "mech", "req", "cli", "ts", "blind"])
    def test_an_intent_without_a_field(self, log: SampleLog, field: str):
        assert field in refused(ReceiptCheck.ENTRIES, self.edited(log, {field: None}), log)

    @pytest.mark.parametrize("field", ["v", "t", "log", "key", "tbs", "res", "intent", "sig", "ts"])
    def test_an_outcome_without_a_field(self, log: SampleLog, field: str):
        assert field in refused(ReceiptCheck.ENTRIES, self.edited(log, outcome={field: None}), log)

    @pytest.mark.parametrize(
        "edit",
        [
            {"v": 2},
            {"v": True},
            {"v": "1"},
            {"t": "admin"},
            {"key": "keys/release"},
            {"key": {"name": "keys/release", "spki_sha256": "AB" * 32, "version": 1}},
            {"key": {"name": 5, "spki_sha256": spki_sha256(KEY.public_key()), "version": 1}},
            {"tbs": 5},
            {"blind": "true"},
            {"cli": []},
        ],
    )
    def test_an_intent_with_a_field_of_another_kind(self, log: SampleLog, edit: dict[str, Any]):
        refused(ReceiptCheck.ENTRIES, self.edited(log, edit), log)

    def test_a_signature_that_is_no_base64(self, log: SampleLog):
        refused(ReceiptCheck.ENTRIES, self.edited(log, outcome={"sig": "*"}), log)

    @pytest.mark.parametrize(
        "entry",
        [b"", b"[]", b"not json", b'{"t":"intent","t":"outcome"}', b'{"v":NaN}', b"[" * 5000, b"\xff", b"x" * 17000],
    )
    def test_an_entry_that_is_no_json_object(self, log: SampleLog, entry: bytes):
        pair = log.sign(KEY)
        log.append([entry])
        receipt = dataclasses.replace(log.receipt(pair), outcome=log.logged(len(log.entries) - 1))
        with pytest.raises(ReceiptInvalid) as caught:
            receipt.verify(log.vkey)
        assert caught.value.check in {ReceiptCheck.ENTRIES, ReceiptCheck.OUTCOME_INCLUSION}

    def test_a_payload_hash_of_something_else(self, log: SampleLog):
        digest = hashlib.sha256(pae(IN_TOTO_PAYLOAD_TYPE, STATEMENT)).digest()
        edits = {"mdig": "00" * 32, "ptype": IN_TOTO_PAYLOAD_TYPE}
        receipt = log.receipt(log.sign(KEY, digest, edit_intent=edits))
        assert "names another payload" in refused(ReceiptCheck.PAYLOAD, receipt, log, payload=STATEMENT)


class TestTheFile:
    def test_a_receipt_is_what_it_was_after_a_round_trip(self, log: SampleLog):
        receipt = log.receipt(log.sign_statement(KEY, STATEMENT))
        data = receipt.to_json()
        assert b"\n" not in data
        assert Receipt.from_json(data) == receipt
        Receipt.from_json(data).verify(log.vkey, public_key=KEY.public_key(), payload=STATEMENT)

    def test_its_form_is_the_documented_one(self, log: SampleLog):
        receipt = log.receipt(log.sign(KEY))
        document = json.loads(receipt.to_json())
        assert list(document) == ["mediaType", "intent", "outcome"]
        assert document["mediaType"] == "application/vnd.greatseal.receipt.v1+json"
        assert base64.b64decode(document["intent"]["entry"]) == receipt.intent.entry
        assert document["intent"]["proof"].startswith(f"c2sp.org/tlog-proof@v1\nindex {receipt.intent.index}\n")
        assert document["outcome"]["proof"].endswith("\n\n" + receipt.checkpoint)

    def test_two_checkpoints_are_refused(self, log: SampleLog):
        pair = log.sign(KEY)
        one = json.loads(log.receipt(pair).to_json())
        log.grow(1)
        one["outcome"] = json.loads(log.receipt(pair).to_json())["outcome"]
        with pytest.raises(ReceiptInvalid, match="different checkpoints"):
            Receipt.from_json(json.dumps(one).encode())

    def test_a_file_cut_anywhere_is_refused(self, log: SampleLog):
        data = log.receipt(log.sign(KEY)).to_json()
        for end in range(0, len(data), 41):
            with pytest.raises(ReceiptInvalid) as caught:
                Receipt.from_json(data[:end])
            assert caught.value.check is ReceiptCheck.FORMAT

    @pytest.mark.parametrize(
        "edit",
        [
            {"mediaType": "application/vnd.greatseal.receipt.v2+json"},
            {"intent": None},
            {"intent": {}},
            {"intent": {"entry": "AAAA", "proof": "x", "more": 1}},
            {"intent": {"entry": 5, "proof": "x"}},
            {"intent": {"entry": "AAA", "proof": "x"}},
            {"intent": {"entry": "AAAA", "proof": "x"}},
            {"outcome": {"entry": base64.b64encode(b"x" * 16385).decode(), "proof": "x"}},
            {"extra": 1},
        ],
    )
    def test_a_malformed_file_is_refused(self, log: SampleLog, edit: dict[str, Any]):
        document = json.loads(log.receipt(log.sign(KEY)).to_json()) | edit
        with pytest.raises(ReceiptInvalid) as caught:
            Receipt.from_json(json.dumps(document).encode())
        assert caught.value.check is ReceiptCheck.FORMAT

    def test_an_oversized_entry_is_refused(self, log: SampleLog):
        document = json.loads(log.receipt(log.sign(KEY)).to_json())
        document["outcome"]["entry"] = base64.b64encode(b"x" * 16_385).decode()
        with pytest.raises(ReceiptInvalid, match="limit of 16384 bytes"):
            Receipt.from_json(json.dumps(document).encode())

    def test_base64_with_stray_bits_is_refused(self, log: SampleLog):
        document = json.loads(log.receipt(log.sign(KEY)).to_json())
        document["outcome"]["entry"] = "QQ=="
        Receipt.from_json(json.dumps(document).encode())
        document["outcome"]["entry"] = "QR=="
        with pytest.raises(ReceiptInvalid, match="canonical base64"):
            Receipt.from_json(json.dumps(document).encode())

    def test_an_oversized_file_is_refused(self):
        with pytest.raises(ReceiptInvalid, match="over the limit"):
            Receipt.from_json(b" " * 4_000_001)

    @given(st.binary() | st.text().map(lambda text: text.encode(errors="replace")))
    def test_no_bytes_make_the_parser_raise_anything_else(self, data: bytes):
        with pytest.raises(ReceiptInvalid):
            Receipt.from_json(data)


FUZZ_LOG = SampleLog()
FUZZ_LOG.grow(20)
FUZZ_FILE = FUZZ_LOG.receipt(FUZZ_LOG.sign(KEY)).to_json()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(FUZZ_FILE) - 1), st.integers(1, 255))
def test_no_flipped_byte_of_a_file_goes_unnoticed(place: int, mask: int):
    data = bytearray(FUZZ_FILE)
    data[place] ^= mask
    with pytest.raises(ReceiptInvalid):
        Receipt.from_json(bytes(data)).verify(FUZZ_LOG.vkey, public_key=KEY.public_key(), digest=DIGEST)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["v", "t", "log", "key", "tbs", "mech", "cli", "subj", "res", "sig", "intent"]),
       st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()) | st.dictionaries(st.text(), st.text()),
       min_size=1))  # fmt: skip
def test_no_logged_values_make_the_verifier_raise_anything_else(edits: dict[str, Any]):
    log = SampleLog()
    receipt = log.receipt(
        log.sign(KEY, edit_intent={name: edits[name] for name in edits if name not in {"res", "sig"}})
    )
    try:
        receipt.verify(log.vkey, public_key=KEY.public_key(), digest=DIGEST)
    except ReceiptInvalid:
        return
    assert edits.keys() <= {"subj", "res", "sig", "intent"}
