"""The exact bytes of log entries: sorted, compact, bounded."""

from __future__ import annotations

import base64
import json
import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greatseald.domain import entries
from greatseald.domain.errors import RequestTooLarge

text = st.text(max_size=40)


def canonical(data: bytes) -> bytes:
    return json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def an_intent(name: str = "model", peer: str = "ipv4:127.0.0.1:5") -> entries.Intent:
    return entries.Intent(
        att=1,
        blind=False,
        cli=entries.Client(cert_sha256="ab" * 32, id="spiffe://example.org/ci", issuer="CN=ca", serial="01"),
        inst="7a6e0d1c-0000-4000-8000-000000000000",
        key=entries.KeyVersion(name="keys/release", spki_sha256="cd" * 32, version=1),
        log="example.org/log",
        mdig="ef" * 32,
        mech="ecdsa-p256-sha256",
        peer=peer,
        pol=entries.Policy(ids=("allow[0]",), set="00" * 32),
        pred="https://model_signing/signature/v1.0",
        ptype="application/vnd.in-toto+json",
        req="0190c7a8-6b5e-7cc3-98c4-dc0c0c07398f",
        subj=entries.Subject(count=1, digest="11" * 32, name=name),
        tbs="22" * 32,
        ts=entries.timestamp(1_700_000_000.25),
    )


@given(name=text, peer=text)
def test_an_intent_is_sorted_and_compact_whatever_its_texts(name: str, peer: str) -> None:
    data = entries.encode(an_intent(name, peer))
    assert data == canonical(data)
    assert json.loads(data)["subj"].get("name", "") == name


@given(why=text, signature=text, firmware=text)
def test_an_outcome_is_sorted_and_compact(why: str, signature: str, firmware: str) -> None:
    outcome = entries.Outcome(
        ckr=5,
        dur_us=17,
        hsm=entries.Hsm(fw=firmware, seq=3, serial="1f"),
        inst="i",
        intent=entries.IntentRef(index=4, leaf_hash="33" * 32),
        key=entries.KeyRef(spki_sha256="cd" * 32),
        log="l",
        res="signed",
        sig=signature,
        tbs="22" * 32,
        ts=entries.timestamp(0),
        why=why,
    )
    data = entries.encode(outcome)
    assert data == canonical(data)


@given(info=st.dictionaries(text, text | st.integers(0, 2**40), max_size=6))
def test_an_admin_entry_sorts_the_keys_it_was_given(info: dict[str, str | int]) -> None:
    data = entries.encode(entries.Admin(info=info, inst="i", log="l", ts=entries.timestamp(0), what="start"))
    assert data == canonical(data)


def test_kind_and_version_are_always_written() -> None:
    parsed = json.loads(entries.encode(an_intent()))
    assert (parsed["t"], parsed["v"]) == ("intent", 1)


def test_an_entry_above_16_kib_is_refused_and_says_so() -> None:
    with pytest.raises(RequestTooLarge, match="16384"):
        entries.encode(an_intent(name="n" * 17_000))


def test_times_are_utc_with_microseconds() -> None:
    assert entries.timestamp(1_700_000_000.25) == "2023-11-14T22:13:20.250000Z"


hexadecimal = st.binary(min_size=32, max_size=64)


@given(name=text, peer=text, tbs=hexadecimal, request_id=st.uuids(), now=st.floats(0, 4e9))
def test_a_filled_form_of_an_intent_is_what_the_encoder_writes(
    name: str, peer: str, tbs: bytes, request_id: uuid.UUID, now: float
) -> None:
    intent = an_intent(name, peer)
    ts = entries.timestamp(now)
    expected = entries.encode(msgspec.structs.replace(intent, req=str(request_id), tbs=tbs.hex(), ts=ts))
    assert entries.IntentForm(intent).fill(str(request_id), tbs, ts) == expected


@given(
    firmware=text,
    numbers=st.tuples(*[st.integers(1, 2**53)] * 3),
    leaf=hexadecimal,
    signature=st.binary(min_size=8, max_size=512),
    now=st.floats(0, 4e9),
)
def test_a_filled_form_of_an_outcome_is_what_the_encoder_writes(
    firmware: str, numbers: tuple[int, int, int], leaf: bytes, signature: bytes, now: float
) -> None:
    dur_us, seq, index = numbers
    ts = entries.timestamp(now)
    outcome = entries.Outcome(
        dur_us=dur_us,
        hsm=entries.Hsm(fw=firmware, seq=seq, serial="1f%s"),
        inst="i",
        intent=entries.IntentRef(index=index, leaf_hash=leaf.hex()),
        key=entries.KeyRef(spki_sha256="cd" * 32),
        log="l",
        res="signed",
        sig=base64.b64encode(signature).decode(),
        tbs=leaf.hex(),
        ts=ts,
    )
    assert entries.OutcomeForm(outcome).fill(dur_us, seq, index, leaf, signature, leaf, ts) == entries.encode(outcome)


def test_a_form_that_could_grow_above_the_limit_is_refused() -> None:
    with pytest.raises(RequestTooLarge):
        entries.IntentForm(an_intent(name="n" * 15_800))
