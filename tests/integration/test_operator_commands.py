"""What an operator sees and asks of a running daemon: reload, state in the metrics, reflection."""

from __future__ import annotations

import json
import re
import time
import urllib.request

import grpc
import pytest
from cryptography import x509
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deployment import Deployment
from front_site import TIMEOUT, Ca, connected, pipeline, read_address, reason_of, wait_for

pytestmark = pytest.mark.softhsm


@pytest.fixture
def daemon(tmp_path):
    deployment = Deployment.create(tmp_path)
    deployment.edit(r"^listen = .*$", r"\g<0>\nreflection = true")
    with deployment.running():
        yield deployment


def metrics(deployment: Deployment) -> dict[str, float]:
    address = read_address(deployment.directory / "run" / "metrics_address")
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        text = response.read().decode()
    return {
        name: float(value) for name, value in re.findall(r"^(greatseald_\S+(?:\{.*\})?) (\S+)$", text, re.MULTILINE)
    }


def expiry(deployment: Deployment) -> float:
    return metrics(deployment)['greatseald_certificate_expiry_timestamp_seconds{kind="server",name="server"}']


def test_the_state_is_in_the_metrics_and_a_rotated_certificate_is_seen_at_the_reload(daemon):
    assert daemon.client("audit", "checkpoint").returncode == 0  # released, so that the anchor has it
    seen = metrics(daemon)
    assert seen['greatseald_key_ready{key="release"}'] == 1
    assert seen['greatseald_key_halted{key="release"}'] == 0
    assert seen['greatseald_token_breaker_open{token="soft"}'] == 0
    assert seen["greatseald_waiting_items"] == 0
    assert 0 < seen["greatseald_anchor_entries"] <= seen["greatseald_log_entries"]
    assert time.time() - 600 < seen["greatseald_anchor_timestamp_seconds"] <= time.time() + 1
    assert seen["greatseald_log_volume_free_bytes"] > seen["greatseald_log_reserve_bytes"] > 0
    assert seen["greatseald_log_reserve_reached"] == 0
    pki = daemon.directory / "pki"
    for name, file in (("server", "server.pem"), ("client_ca", "ca.pem")):
        cert = x509.load_pem_x509_certificate((pki / file).read_bytes())
        (value,) = {v for k, v in seen.items() if k.startswith("greatseald_certificate") and f'kind="{name}"' in k}
        assert value == cert.not_valid_after_utc.timestamp()

    cert, key = Ca.of(daemon).issue(x509.DNSName("localhost"), days=3, server=True)
    for file, data in (("server.key", key), ("server.pem", cert)):
        (pki / file).write_bytes(data)
    done = daemon.daemon("reload", "--json")
    assert done.returncode == 0, done.stderr
    assert "the certificates were read again" in json.loads(done.stdout)["notes"]
    assert expiry(daemon) == x509.load_pem_x509_certificate(cert).not_valid_after_utc.timestamp()


def test_reload_says_what_took_effect_what_waits_and_what_is_wrong(daemon):
    daemon.edit(r"^operation_timeout = 30", "operation_timeout = 31")
    done = daemon.daemon("reload")
    assert done.returncode == 0, done.stderr
    assert "soft.operation_timeout has changed and waits for a restart" in done.stderr
    daemon.append('[[deny]]\ncomment = "denies nobody"')
    done = daemon.daemon("reload")
    assert done.returncode == 2
    assert "denies nobody" in done.stderr
    assert daemon.client("whoami").returncode == 0  # the old settings stay in force


def reflect(channel: grpc.Channel, **request: str):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(**request)
    return next(iter(stub.ServerReflectionInfo(iter([asked]), timeout=TIMEOUT)))


def test_reflection_needs_its_action_and_is_recorded_when_it_is_refused(daemon):
    with connected(daemon, pipeline(daemon)) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            reflect(channel, list_services="")
        assert reason_of(caught.value)[1] == "ACCESS_DENIED"
        daemon.edit(r'"readTokens"\]', '"readTokens", "reflect"]')
        daemon.reload()
        names = [each.name for each in reflect(channel, list_services="").list_services_response.service]
        assert names == [f"greatseal.v1.{name}Service" for name in ("Audit", "Identity", "Key", "Signing", "Token")]
        for name in names:
            assert reflect(channel, file_containing_symbol=name).file_descriptor_response.file_descriptor_proto
        v1 = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        many = (reflection_pb2.ServerReflectionRequest(list_services="") for _ in range(300))
        with pytest.raises(grpc.RpcError) as caught:
            list(v1(many, timeout=TIMEOUT))
        assert reason_of(caught.value)[1] == "REQUEST_TOO_LARGE"
    listed = daemon.client("--json", "audit", "list").stdout
    assert '"act": "reflect"' in listed


def test_reflection_is_off_unless_it_is_switched_on(daemon):
    assert daemon.stop() == 0
    daemon.edit("^reflection = true$", "reflection = false")
    daemon.start()
    with connected(daemon, pipeline(daemon)) as channel, pytest.raises(grpc.RpcError) as caught:
        reflect(channel, list_services="")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_without_a_certificate_reflection_answers_nothing(daemon):
    with connected(daemon, None) as channel, pytest.raises(grpc.RpcError) as caught:
        reflect(channel, list_services="")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    wait_for(lambda: daemon.client("whoami").returncode == 0)
