"""What travels on the wire becomes exactly what the core takes, and page tokens cannot be made to lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greatseal.algorithms import Algorithm
from greatseal.v1 import signing_pb2, types_pb2
from greatseald.app.admission import DigestRequest, StatementRequest
from greatseald.app.sign import Logged, Released
from greatseald.domain.errors import ArgumentInvalid, EntryNotFound
from greatseald.rpc import conversion
from greatseald.rpc.health import parse_service


@pytest.mark.parametrize("algorithm", Algorithm)
def test_every_algorithm_travels_both_ways(algorithm):
    number = conversion.algorithm_to_wire(algorithm)
    assert types_pb2.Algorithm.Name(number) == algorithm.name
    message = signing_pb2.SignDigestRequest(key="keys/x", digest=types_pb2.Digest(sha384=b"d"), algorithm=number)
    assert conversion.digest_request(message).algorithm is algorithm


def test_the_kind_of_a_digest_travels_and_a_missing_one_stays_missing():
    full = signing_pb2.SignDigestRequest(
        key="keys/x",
        request_id="id",
        digest=types_pb2.Digest(sha512=b"5"),
        claimed_subject="s",
        claimed_payload_type="p",
    )
    assert conversion.digest_request(full) == DigestRequest("keys/x", "id", "sha512", b"5", None, "s", "p")
    assert conversion.digest_request(signing_pb2.SignDigestRequest()) == DigestRequest("", "", "", b"")


def test_an_algorithm_of_the_future_is_refused_by_number():
    with pytest.raises(ArgumentInvalid, match="algorithm 99") as caught:
        conversion.statement_request(signing_pb2.SignStatementRequest(algorithm=99))
    assert caught.value.metadata == {"field": "algorithm"}


def test_batch_items_are_what_they_say_and_an_empty_one_is_refused():
    statement = signing_pb2.SignStatementRequest(key="k", request_id="r", payload_type="t", payload=b"p")
    assert conversion.batch_item(signing_pb2.BatchItem(statement=statement)) == StatementRequest("k", "r", "t", b"p")
    with pytest.raises(ArgumentInvalid):
        conversion.batch_item(signing_pb2.BatchItem())


def test_a_signature_travels_with_both_entries():
    released = Released(
        "keys/x/versions/1",
        Algorithm.RSA_PSS_SHA256,
        b"sig",
        b"dig",
        Logged(3, b"intent", b"p" * 32),
        Logged(4, b"outcome", b"q" * 64),
        True,
    )
    message = conversion.signature(released, "note")
    assert message == signing_pb2.Signature(
        key_version="keys/x/versions/1",
        algorithm="RSA_PSS_SHA256",
        signature=b"sig",
        digest=b"dig",
        replayed=True,
        receipt=types_pb2.Receipt(
            intent_index=3,
            intent_entry=b"intent",
            intent_proof=b"p" * 32,
            outcome_index=4,
            outcome_entry=b"outcome",
            outcome_proof=b"q" * 64,
            checkpoint="note",
        ),
    )


def test_names_of_entries_belong_to_this_log():
    assert conversion.parse_entry_name("logs/log/entries/0", "log") == 0
    assert conversion.parse_entry_name("logs/-/entries/17", "log") == 17
    with pytest.raises(EntryNotFound):
        conversion.parse_entry_name("logs/other/entries/1", "log")
    for text in ("", "entries/1", "logs/log/entries/01", "logs/log/entries/-1", "logs/log/entries/" + "9" * 30):
        with pytest.raises(ArgumentInvalid):
            conversion.parse_entry_name(text, "log")


def test_page_sizes_follow_aip_158():
    assert conversion.page_size(0, 50, 1000) == 50
    assert conversion.page_size(5000, 50, 1000) == 1000
    with pytest.raises(ArgumentInvalid):
        conversion.page_size(-1, 50, 1000)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=63))
def test_a_page_token_gives_back_its_position_to_the_list_that_made_it(position):
    token = conversion.write_page_token("keys", position)
    assert conversion.read_page_token("keys", token) == position
    with pytest.raises(ArgumentInvalid):
        conversion.read_page_token("up", token)


@given(st.text(max_size=700))
def test_any_other_page_token_is_refused_or_plain(token):
    try:
        position = conversion.read_page_token("up", token)
    except ArgumentInvalid:
        return
    assert conversion.write_page_token("up", position).rstrip("=") == token.rstrip("=")


@given(st.binary(max_size=200))
def test_the_health_request_is_read_as_protobuf_would_or_refused(data):
    from google.protobuf.message import DecodeError

    try:
        name = parse_service(data)
    except DecodeError:
        return
    assert data == (b"" if not data else b"\x0a" + bytes([len(name.encode())]) + name.encode())
