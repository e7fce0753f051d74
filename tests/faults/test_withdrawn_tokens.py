"""An operator takes tokens out of service: denied by default, in the log before it holds, across restarts, seen everywhere."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.x509 import UniformResourceIdentifier

from deployment import greatseal
from fault_site import FaultSite, RefusedError, refusal
from front_site import TIMEOUT, Ca, connected, identity_of, wait_for
from greatseal.ids import new_request_id
from greatseal.v1 import token_pb2, token_pb2_grpc

pytestmark = [pytest.mark.shim, pytest.mark.softhsm]

ACTIONS = "readTokens,drainToken,quarantineToken,resumeToken"


@pytest.fixture
def running(two_tokens: FaultSite) -> FaultSite:
    two_tokens.deployment.add_client("operator", "--actions", ACTIONS)
    two_tokens.deployment.start()
    return two_tokens


def operator(site: FaultSite, *arguments: str) -> subprocess.CompletedProcess[str]:
    return greatseal("--profile", site.directory / "operator-client.toml", "tokens", *arguments)


def shown(site: FaultSite, *arguments: str) -> dict[str, Any]:
    done = operator(site, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    token: dict[str, Any] = json.loads(done.stdout)
    return token


def state(site: FaultSite, name: str) -> str:
    found: str = shown(site, "show", name)["state"]
    return found


def entries(site: FaultSite) -> list[dict[str, Any]]:
    with site.wire() as wire:
        read = [json.loads(entry) for entry in wire.entries()]
    return [entry["info"] for entry in read if entry["t"] == "admin" and entry["what"] == "token"]


def health(channel: grpc.Channel, service: str) -> int:
    name = service.encode()
    answer: bytes = channel.unary_unary("/grpc.health.v1.Health/Check")(
        b"\x0a" + bytes([len(name)]) + name, timeout=TIMEOUT
    )
    return answer[1]


def test_a_quarantine_holds_across_restarts_until_the_operator_resumes_the_token(running: FaultSite):
    site, deployment = running, running.deployment
    taken = shown(site, "quarantine", "soft", "--reason", "INC-42")
    assert taken["state"] == "QUARANTINED"
    with site.wire() as wire:
        with pytest.raises(RefusedError, match="an operator has quarantined it: INC-42") as caught:
            wire.sign("scratch")
        assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "TOKEN_UNAVAILABLE")
        wire.sign("steady")
    deployment.kill()
    deployment.start()
    assert state(site, "soft") == "QUARANTINED"
    (line,) = site.metric(r'^greatseald_token_state\{state="quarantined",token="soft"\}')
    assert line.endswith(" 1.0")
    drained = operator(site, "drain", "soft")
    assert (drained.returncode, "resume it first" in drained.stderr) == (2, True), drained.stderr
    assert shown(site, "resume", "soft", "--reason", "firmware 1.2")["name"] == "tokens/soft"
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
    deployment.stop()
    deployment.start()
    assert state(site, "soft") == "READY"

    told = [entry for entry in entries(site) if entry["token"] == "soft"]
    asked = [entry for entry in told if "asked" in entry]
    assert [(entry["asked"], entry["why"]) for entry in asked] == [
        ("quarantineToken", "INC-42"),
        ("resumeToken", "firmware 1.2"),
    ]
    assert asked[0]["client"] == "spiffe://greatseal.local/operator"
    first = told.index(asked[0])
    reached = [entry["state"] for entry in told if "state" in entry]
    assert told[first + 1]["state"] == "quarantined"
    assert reached == ["ready", "quarantined", "quarantined", "ready", "ready"]


def test_a_drained_token_shows_as_such_and_its_health_is_not_serving(running: FaultSite):
    site = running
    identity = identity_of(site.deployment, "operator")
    with connected(site.deployment, identity) as channel:
        assert health(channel, "greatseal.v1.tokens/soft") == 1
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\x0a\x18greatseal.v1.tokens/soft", timeout=60)
        assert next(watch) == b"\x08\x01"
        shown(site, "drain", "soft")
        assert next(watch) == b"\x08\x02"
        watch.cancel()
        wait_for(lambda: state(site, "soft") == "DRAINED")
        assert health(channel, "greatseal.v1.tokens/soft") == 2
        assert health(channel, "greatseal.v1.tokens/other") == 1
        assert health(channel, "") == 1  # the daemon serves: the other token's keys sign
    listed = operator(site, "list")
    assert "no reason was given" in listed.stderr
    assert "DRAINED" in listed.stdout


def test_who_may_not_read_tokens_does_not_learn_from_their_health_that_they_exist(running: FaultSite):
    probe = Ca.of(running.deployment).issue(UniformResourceIdentifier("spiffe://greatseal.local/probe"))
    with connected(running.deployment, probe) as channel:
        answers = []
        for name in ("soft", "none"):
            with pytest.raises(grpc.RpcError) as caught:
                health(channel, f"greatseal.v1.tokens/{name}")
            answers.append((caught.value.code(), (caught.value.details() or "").replace(name, "X")))
        assert answers[0] == answers[1]
        assert answers[0][0] is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("verb", ["drain", "quarantine", "resume"])
def test_each_verb_is_denied_by_default_and_the_refusal_is_in_the_log(running: FaultSite, verb: str):
    done = running.deployment.client("tokens", verb, "soft")
    assert done.returncode == 3
    assert f"{verb}Token" in done.stderr
    assert state(running, "soft") == "READY"
    unknown = running.deployment.client("tokens", verb, "nobody")
    assert unknown.returncode == 3  # who may not do it does not learn what exists
    with running.wire() as wire:
        denied = [entry for entry in map(json.loads, wire.entries()) if entry["t"] == "denied"]
    assert [entry["act"] for entry in denied] == [f"{verb}Token"] * 2


def test_the_same_request_again_changes_nothing_and_its_id_is_good_for_no_other(running: FaultSite):
    site, request_id = running, new_request_id()
    with connected(site.deployment, identity_of(site.deployment, "operator")) as channel:
        stub = token_pb2_grpc.TokenServiceStub(channel)
        request = token_pb2.QuarantineTokenRequest(name="tokens/soft", request_id=request_id, reason="once")
        for _ in range(3):
            assert stub.QuarantineToken(request, timeout=TIMEOUT).state == token_pb2.QUARANTINED
        resume = token_pb2.ResumeTokenRequest(name="tokens/soft", request_id=request_id)
        bad = token_pb2.ResumeTokenRequest(name="tokens/soft", request_id="once more")
        none = token_pb2.ResumeTokenRequest(name="tokens/none", request_id=new_request_id())
        lines = token_pb2.DrainTokenRequest(name="tokens/other", request_id=new_request_id(), reason="two\nlines")
        for call, wrong, reason in (
            (stub.ResumeToken, resume, "REQUEST_ID_REUSED"),
            (stub.ResumeToken, bad, "ARGUMENT_INVALID"),
            (stub.ResumeToken, none, "TOKEN_NOT_FOUND"),
            (stub.DrainToken, lines, "ARGUMENT_INVALID"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(wrong, timeout=TIMEOUT)
            assert refusal(caught.value).reason == reason
    assert [entry["asked"] for entry in entries(site) if "asked" in entry] == ["quarantineToken"]


def test_a_memory_of_withdrawals_that_cannot_be_read_stops_the_start(running: FaultSite):
    deployment = running.deployment
    shown(running, "quarantine", "soft")
    assert deployment.stop() == 0
    remembered: list[Path] = list((deployment.directory / "anchor").glob("*.withdrawn"))
    assert len(remembered) == 1
    assert remembered[0].stat().st_mode & 0o777 == 0o600
    remembered[0].write_text('{"tokens":{"soft":{"state":"away","why":""}}}')
    deployment.start(wait=False)
    assert deployment.wait_exit() == 5
    assert str(remembered[0]) in deployment.stderr
