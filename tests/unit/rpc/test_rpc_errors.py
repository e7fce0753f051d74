"""Every domain error has one status, one reason and exactly one ErrorInfo."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2

from greatseal.v1 import types_pb2
from greatseald.domain import errors
from greatseald.domain.errors import GreatsealError
from greatseald.rpc.errors import STATUS_CODES, code_of, status_of, trailers_of


def leaves(parent: type[GreatsealError]) -> list[type[GreatsealError]]:
    found = []
    for child in parent.__subclasses__():
        found += [child] if "reason" in vars(child) else leaves(child)
    return found


LEAVES = leaves(GreatsealError)


def test_every_error_stands_in_the_table_and_every_reason_in_the_api():
    assert set(STATUS_CODES) == set(LEAVES)
    reasons = {error.reason for error in LEAVES}
    assert len(reasons) == len(LEAVES)
    assert reasons == set(types_pb2.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}


@pytest.mark.parametrize("error", LEAVES, ids=lambda error: error.reason)
def test_each_error_carries_one_error_info_and_retry_info_only_where_a_retry_may_help(error):
    status = status_of(error("what happened", key="keys/x"))
    infos = [detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1
    info = error_details_pb2.ErrorInfo()
    infos[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (error.reason, "greatseal", {"key": "keys/x"})
    retries = [detail for detail in status.details if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)]
    assert len(retries) == (error.default_retry_after is not None)
    assert len(status.details) == 1 + len(retries)
    assert status.message == "what happened"


@pytest.mark.parametrize("error", LEAVES, ids=lambda error: error.reason)
def test_the_api_documents_the_code_that_is_sent(error):
    """The comments in types.proto name the code of each reason; they are the contract."""
    from pathlib import Path

    text = (Path(__file__).parents[3] / "protos/greatseal/v1/types.proto").read_text()
    comment = text.split(f"  {error.reason} = ")[0].rsplit("//", 1)[1]
    assert f"({code_of(error('x')).name})" in comment


def test_the_codes_that_clients_retry_are_the_ones_that_say_when():
    for error in LEAVES:
        code = code_of(error("x"))
        if error.default_retry_after is not None:
            assert code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED}
        elif code is grpc.StatusCode.UNAVAILABLE:
            pytest.fail(f"{error.reason} is UNAVAILABLE and does not say when to come back")


def test_a_retry_delay_is_sent_to_the_millisecond():
    retry = error_details_pb2.RetryInfo()
    status_of(errors.Overloaded("x", retry_after=1.25)).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1250


def test_an_error_of_any_size_fits_the_trailers():
    error = errors.ArgumentInvalid("é" * 10_000, **{f"key{number}": "v" * 10_000 for number in range(100)})
    ((name, value),) = trailers_of(status_of(error))
    assert name == "grpc-status-details-bin"
    assert len(value) < 5000


def test_codes_are_those_of_google_rpc():
    assert status_of(errors.KeyNotFound("x")).code == code_pb2.NOT_FOUND
    assert status_of(errors.DeadlinePassed("x")).code == code_pb2.DEADLINE_EXCEEDED
