"""What a status on the wire becomes: one typed error, whatever bytes came with it."""

from __future__ import annotations

import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from client_peer import refusal
from greatseal import errors, wire
from greatseal.text import MAX_CHARS
from greatseal.v1 import types_pb2

#: Every reason with the code that protos/greatseal/v1/types.proto names for it.
TABLE = [
    ("IDENTITY_INVALID", "UNAUTHENTICATED", errors.Denied, 3),
    ("CALLER_DENYLISTED", "PERMISSION_DENIED", errors.Denied, 3),
    ("ACCESS_DENIED", "PERMISSION_DENIED", errors.Denied, 3),
    ("KEY_NOT_FOUND", "NOT_FOUND", errors.NotFound, 2),
    ("TOKEN_NOT_FOUND", "NOT_FOUND", errors.NotFound, 2),
    ("ENTRY_NOT_FOUND", "NOT_FOUND", errors.NotFound, 2),
    ("ENTRY_PRUNED", "NOT_FOUND", errors.NotFound, 2),
    ("ARGUMENT_INVALID", "INVALID_ARGUMENT", errors.InvalidRequest, 2),
    ("DIGEST_INVALID", "INVALID_ARGUMENT", errors.InvalidRequest, 2),
    ("ALGORITHM_NOT_OFFERED", "INVALID_ARGUMENT", errors.InvalidRequest, 2),
    ("PAYLOAD_TYPE_UNKNOWN", "INVALID_ARGUMENT", errors.InvalidRequest, 2),
    ("STATEMENT_INVALID", "INVALID_ARGUMENT", errors.InvalidRequest, 2),
    ("PREDICATE_TYPE_NOT_ALLOWED", "PERMISSION_DENIED", errors.Denied, 3),
    ("REQUEST_TOO_LARGE", "INVALID_ARGUMENT", errors.InvalidRequest, 2),
    ("REQUEST_ID_REUSED", "ALREADY_EXISTS", errors.RequestIdReused, 2),
    ("REQUEST_IN_FLIGHT", "ABORTED", errors.InFlight, 5),
    ("CERTIFICATE_UNUSABLE", "FAILED_PRECONDITION", errors.NotReady, 5),
    ("KEY_HALTED", "FAILED_PRECONDITION", errors.NotReady, 5),
    ("KEY_NOT_ENABLED", "FAILED_PRECONDITION", errors.NotReady, 5),
    ("TOKEN_LOCKED", "FAILED_PRECONDITION", errors.NotReady, 5),
    ("TOKEN_UNAVAILABLE", "UNAVAILABLE", errors.Unavailable, 5),
    ("SIGNING_FAILED", "INTERNAL", errors.DaemonFault, 1),
    ("OUTCOME_UNKNOWN", "UNAVAILABLE", errors.Unavailable, 5),
    ("OVERLOADED", "UNAVAILABLE", errors.Unavailable, 5),
    ("SHUTTING_DOWN", "UNAVAILABLE", errors.Unavailable, 5),
    ("LOG_UNAVAILABLE", "UNAVAILABLE", errors.Unavailable, 5),
    ("WITNESSES_MISSING", "UNAVAILABLE", errors.Unavailable, 5),
    ("ANCHOR_DISAGREES", "FAILED_PRECONDITION", errors.NotReady, 5),
    ("DISK_RESERVE_REACHED", "UNAVAILABLE", errors.Unavailable, 5),
    ("DEADLINE_PASSED", "DEADLINE_EXCEEDED", errors.DeadlineExceeded, 5),
    ("INTERNAL_FAULT", "INTERNAL", errors.DaemonFault, 1),
]


def test_the_table_has_every_reason():
    assert {reason for reason, *_ in TABLE} == set(types_pb2.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}


@pytest.mark.parametrize(("reason", "code", "kind", "exit_code"), TABLE)
def test_a_reason_becomes_its_class_and_exit_code(reason: str, code: str, kind: type, exit_code: int):
    error = wire.error_from_status(refusal(code, reason, "what happened", field="digest").status, request_id="the-id")
    assert type(error) is kind
    assert (error.reason, error.code, error.message, error.exit_code) == (reason, code, "what happened", exit_code)
    assert error.metadata == {"field": "digest"}
    assert error.request_id == "the-id"


def test_only_unavailable_and_aborted_with_retry_info_are_retryable():
    retryable = {reason for reason, code, *_ in TABLE if wire.error_from_status(refusal(code, reason).status).retryable}
    assert retryable == {reason for reason, code, *_ in TABLE if code == "UNAVAILABLE"}
    told = wire.error_from_status(refusal("ABORTED", "REQUEST_IN_FLIGHT", retry_after=1.5).status)
    assert told.retryable
    assert told.retry_after == 1.5


def test_control_characters_of_a_message_never_reach_the_terminal():
    status = refusal("INTERNAL", "INTERNAL_FAULT", "\x1b[2Jcleared\u202e", evil="\x1b]0;title\x07").status
    error = wire.error_from_status(status)
    assert "\x1b" not in error.message
    assert "\u202e" not in error.message
    assert "\x1b" not in error.metadata["evil"]


def test_a_long_message_is_cut():
    error = wire.error_from_status(refusal("INTERNAL", "INTERNAL_FAULT", "x" * 100_000).status)
    assert len(error.message) <= MAX_CHARS


def test_error_info_of_another_domain_is_not_believed():
    status = status_pb2.Status(code=14, message="proxy says no")
    foreign = any_pb2.Any()
    foreign.Pack(error_details_pb2.ErrorInfo(reason="ACCESS_DENIED", domain="elsewhere"))
    status.details.append(foreign)
    assert wire.error_from_status(status).reason == ""


@pytest.mark.parametrize("reason", ["", "lower", "WITH SPACE", "X" * 64, "NEW\nLINE", "1DIGIT"])
def test_a_malformed_reason_is_dropped(reason: str):
    status = status_pb2.Status(code=7)
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="greatseal"))
    status.details.append(info)
    assert wire.error_from_status(status).reason == ""


def test_a_reason_that_this_client_does_not_know_keeps_its_codes_class():
    error = wire.error_from_status(refusal("PERMISSION_DENIED", "APPROVAL_WITHDRAWN").status)
    assert isinstance(error, errors.Denied)
    assert error.reason == "APPROVAL_WITHDRAWN"


@pytest.mark.parametrize("seconds", [-5, 10**15])
def test_a_hostile_retry_delay_is_bounded(seconds: int):
    status = status_pb2.Status(code=14)
    detail = any_pb2.Any()
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.seconds = seconds
    detail.Pack(retry)
    status.details.append(detail)
    told = wire.error_from_status(status).retry_after
    assert told is not None
    assert 0 <= told <= wire.MAX_RETRY_AFTER


@given(st.binary(max_size=300), st.sampled_from(["UNAVAILABLE", "INTERNAL", "OK", "NONSENSE", ""]))
def test_any_bytes_as_details_leave_an_error_of_the_tree(details: bytes, code: str):
    error = wire.error_from_parts(code, "text", ((wire.DETAILS_KEY, details), ("other", "x")))
    assert isinstance(error, errors.DaemonError)
    assert str(error)


@given(st.binary(max_size=200))
def test_any_bytes_as_a_detail_leave_an_error_of_the_tree(value: bytes):
    status = status_pb2.Status(code=7, message="m")
    for name in ("google.rpc.ErrorInfo", "google.rpc.RetryInfo", "x"):
        status.details.append(any_pb2.Any(type_url=f"type.googleapis.com/{name}", value=value))
    assert isinstance(wire.error_from_status(status), errors.Denied)


@given(st.integers(-(2**31), 2**31 - 1))
def test_any_code_of_an_item_leaves_an_error(code: int):
    assert isinstance(wire.error_from_status(status_pb2.Status(code=code)), errors.DaemonError)


def test_a_failed_handshake_is_not_retryable_and_says_what_to_compare():
    error = wire.error_from_parts(
        "UNAVAILABLE", "Ssl handshake failed: SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED: self-signed", ()
    )
    assert isinstance(error, errors.ConnectionRefused)
    assert not error.retryable
    assert "ca_cert" in error.message


def test_every_class_of_the_tree_has_a_documented_exit_code():
    kinds = [errors.GreatsealError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
        assert kind.exit_code in {1, 2, 3, 4, 5, 6}
        if kind.__module__ == errors.__name__:
            assert kind.__name__ in (errors.__doc__ or "")
