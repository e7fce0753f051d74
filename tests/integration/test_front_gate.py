"""The gate around every method, over a real TLS server: deadlines, shedding, faults, drain."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager

import grpc
import pytest
from cryptography import x509
from google.rpc import error_details_pb2, status_pb2

from front_site import Ca, reason_of
from greatseal.v1 import identity_pb2
from greatseald.adapters import logs
from greatseald.adapters.authn.certificate import CertificateReader
from greatseald.adapters.metrics import PrometheusMetrics
from greatseald.domain.errors import KeyNotFound
from greatseald.domain.policy import Rules
from greatseald.rpc.gate import Gate, Handlers, Limits

Code = grpc.StatusCode
PATH = "/test.Service/Work"


class Nobody:
    """Stands for `app.access.Access` where no rule and no record matter."""

    rules = Rules()

    def check_denylist(self, caller):
        assert caller.id == "client.local"


class Site:
    def __init__(self, gate: Gate, call, metrics: PrometheusMetrics) -> None:
        self.gate = gate
        self.call = call
        self.metrics = metrics


@asynccontextmanager
async def served(handle, *, max_calls: int = 8, default_deadline: float = 30.0, always: bool = False):
    ca = Ca.foreign("CA")
    cert, key = ca.issue(x509.DNSName("localhost"), server=True)
    metrics = PrometheusMetrics("test")
    gate = Gate(
        read_caller=CertificateReader(time.time).caller,
        access=Nobody(),
        limits=Limits(max_calls, 1 << 20, default_deadline),
        metrics=metrics,
        call_metrics=metrics,
    )
    server = grpc.aio.server()
    methods = {PATH: gate.unary(PATH, identity_pb2.WhoAmIRequest.FromString, handle, always=always)}
    server.add_generic_rpc_handlers((Handlers(methods),))
    credentials = grpc.ssl_server_credentials([(key, cert)], ca.pem(), require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    cert, key = ca.issue(x509.DNSName("client.local"))
    channel = grpc.aio.secure_channel(
        f"localhost:{port}",
        grpc.ssl_channel_credentials(ca.pem(), key, cert),
        options=[("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)],
    )
    try:
        yield Site(gate, channel.unary_unary(PATH), metrics)
    finally:
        await channel.close()
        await server.stop(0)


async def answer(call, request):
    return identity_pb2.WhoAmIResponse(client=call.caller.id, log_origin=call.peer)


async def for_ever(call, request):
    await asyncio.Event().wait()


async def refused(awaitable) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        await awaitable
    return reason_of(caught.value)


def test_a_handler_learns_the_caller_and_a_readable_peer():
    async def scenario():
        async with served(answer) as site:
            response = identity_pb2.WhoAmIResponse.FromString(await site.call(b"", timeout=10))
            assert response.client == "client.local"
            assert response.log_origin.startswith("127.0.0.1:")
            assert site.gate.in_flight == 0

    asyncio.run(scenario())


def test_a_call_out_of_time_gets_our_reason_and_not_only_the_clients_clock():
    async def scenario():
        async with served(for_ever) as site:
            began = time.monotonic()
            assert await refused(site.call(b"", timeout=0.5)) == (Code.DEADLINE_EXCEEDED, "DEADLINE_PASSED")
            assert time.monotonic() - began < 5
            assert site.gate.in_flight == 0

    asyncio.run(scenario())


def test_a_call_without_a_deadline_gets_the_servers():
    async def scenario():
        async with served(for_ever, default_deadline=0.3) as site:
            assert await refused(site.call(b"")) == (Code.DEADLINE_EXCEEDED, "DEADLINE_PASSED")

    asyncio.run(scenario())


def test_a_caller_that_goes_away_frees_its_place():
    async def scenario():
        async with served(for_ever, max_calls=1) as site:
            call = site.call(b"", timeout=30)
            while site.gate.in_flight == 0:
                await asyncio.sleep(0.01)
            assert await refused(site.call(b"", timeout=10)) == (Code.UNAVAILABLE, "OVERLOADED")
            call.cancel()
            while site.gate.in_flight:
                await asyncio.sleep(0.01)
            with pytest.raises(asyncio.CancelledError):
                await call
            assert 'greatseald_rpc_seconds_count{code="CANCELLED",method="Work"} 1.0' in site.metrics.text().decode()

    asyncio.run(scenario())


def test_shedding_says_when_to_come_back_and_spares_what_is_always_served():
    async def scenario():
        async with served(for_ever, max_calls=1) as site:
            kept = site.call(b"", timeout=30)
            while site.gate.in_flight == 0:
                await asyncio.sleep(0.01)
            with pytest.raises(grpc.RpcError) as caught:
                await site.call(b"", timeout=10)
            status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
            retry = error_details_pb2.RetryInfo()
            assert status.details[1].Unpack(retry)
            assert retry.retry_delay.ToMilliseconds() > 0
            kept.cancel()
        async with served(answer, max_calls=0, always=True) as site:
            assert await site.call(b"", timeout=10)

    asyncio.run(scenario())


def test_a_fault_reaches_the_caller_as_a_number_and_the_log_as_a_traceback(capfd):
    async def fault(call, request):
        secret = "internal detail"
        raise RuntimeError(secret)

    async def scenario():
        async with served(fault) as site:
            with pytest.raises(grpc.RpcError) as caught:
                await site.call(b"", timeout=10)
            assert reason_of(caught.value) == (Code.INTERNAL, "INTERNAL_FAULT")
            assert "internal detail" not in str(caught.value)
            status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
            info = error_details_pb2.ErrorInfo()
            status.details[0].Unpack(info)
            return info.metadata["correlation_id"]

    logs.configure("info")
    correlation_id = asyncio.run(scenario())
    records = [json.loads(line) for line in capfd.readouterr().err.splitlines() if correlation_id in line]
    assert len(records) == 1
    assert "RuntimeError: internal detail" in records[0]["exception"]
    assert records[0]["client"] == "client.local"


def test_a_refusal_is_counted_by_its_reason():
    async def no_key(call, request):
        raise KeyNotFound("no such key")

    async def scenario():
        async with served(no_key) as site:
            assert await refused(site.call(b"", timeout=10)) == (Code.NOT_FOUND, "KEY_NOT_FOUND")
            assert await refused(site.call(b"\xff", timeout=10)) == (Code.INVALID_ARGUMENT, "ARGUMENT_INVALID")
            text = site.metrics.text().decode()
        assert 'greatseald_refusals_total{reason="KEY_NOT_FOUND"} 1.0' in text
        assert 'greatseald_refusals_total{reason="ARGUMENT_INVALID"} 1.0' in text

    asyncio.run(scenario())


def test_a_drain_finishes_what_is_under_way_and_refuses_the_rest():
    async def scenario():
        go_on = asyncio.Event()

        async def slow(call, request):
            await go_on.wait()
            return await answer(call, request)

        async with served(slow) as site:
            under_way = site.call(b"", timeout=30)
            while site.gate.in_flight == 0:
                await asyncio.sleep(0.01)
            drain = asyncio.create_task(site.gate.drain(20))
            await asyncio.sleep(0)
            assert await refused(site.call(b"", timeout=10)) == (Code.UNAVAILABLE, "SHUTTING_DOWN")
            assert not drain.done()
            go_on.set()
            assert await under_way
            assert await drain is True

    asyncio.run(scenario())
