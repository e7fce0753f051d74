"""Every kind of entry becomes an event that OCSF's own schema accepts."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema
import pytest
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from greatseald.domain import entries
from greatseald.domain.ocsf import OCSF_VERSION, api_activity, is_notable

ORIGIN = "seal.example.org/log"
HEX = "ab" * 32
COMMON = {"inst": "0190c7a8-6b5e-7cc3-98c4-dc0c0c07398f", "log": ORIGIN, "ts": "2026-11-26T01:02:03.000004Z"}
CLIENT = entries.Client(cert_sha256=HEX, id="spiffe://example.org/pipeline", issuer="CN=CA", serial="0a1b")
POLICY = entries.Policy(ids=("allow[0]",), set=HEX)
HOSTILE = 'näme"\\\n<script>\u2028' + "x" * 2000


def intent(peer: str = "192.0.2.7:4242", name: str = "llama") -> bytes:
    return entries.encode(
        entries.Intent(
            att=1,
            blind=False,
            cli=CLIENT,
            key=entries.KeyVersion(name="keys/release", spki_sha256=HEX, version=1),
            mdig=HEX,
            mech="ecdsa-p256-sha256",
            peer=peer,
            pol=POLICY,
            pred="https://model_signing/signature/v1.0",
            ptype="application/vnd.in-toto+json",
            req="0190c7a8-6b5e-7cc3-98c4-dc0c0c07398f",
            subj=entries.Subject(count=1, digest=HEX, name=name),
            tbs=HEX,
            **COMMON,
        )
    )


def outcome(result: str = "signed", ckr: int = 0) -> bytes:
    return entries.encode(
        entries.Outcome(
            ckr=ckr,
            dur_us=61_000,
            hsm=entries.Hsm(fw="2.6", seq=7, serial="42"),
            intent=entries.IntentRef(index=40, leaf_hash=HEX),
            key=entries.KeyRef(spki_sha256=HEX),
            res=result,
            sig="MEUC" if result == "signed" else "",
            tbs=HEX,
            why="" if result == "signed" else "the token said no",
            **COMMON,
        )
    )


def denied(action: str = "sign", reason: str = "ACCESS_DENIED", more: int = 0) -> bytes:
    return entries.encode(
        entries.Denied(
            act=action,
            cli=CLIENT,
            key=entries.KeyVersion(name="keys/release"),
            more=more,
            peer="[2001:db8::1]:99",
            pol=POLICY,
            reason=reason,
            **COMMON,
        )
    )


def admin(what: str = "start") -> bytes:
    return entries.encode(entries.Admin(info={"version": "0.1.0"}, what=what, **COMMON))


@cache
def validator() -> Any:
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(OCSF_VERSION)).get_class_schema("api_activity")
    kind = jsonschema.validators.validator_for(schema)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


def event(entry: bytes, asked: bytes | None = None) -> dict[str, Any]:
    made = json.loads(json.dumps(api_activity(41, entry, asked, ORIGIN)))
    validator().validate(made)
    return made


def test_the_schema_does_refuse() -> None:
    made = api_activity(41, intent(), None, ORIGIN)
    for broken in ({**made, "class_uid": 6004}, {key: value for key, value in made.items() if key != "actor"}):
        with pytest.raises(jsonschema.ValidationError):
            validator().validate(broken)


@pytest.mark.parametrize("peer", ["192.0.2.7:4242", "[2001:db8::1]:4242", "unix:", "", "nonsense"])
def test_an_intent_says_who_asked_for_what_from_where(peer: str) -> None:
    made = event(intent(peer))
    assert made["actor"]["user"]["uid"] == "spiffe://example.org/pipeline"
    assert {resource["name"] for resource in made["resources"]} == {"keys/release", "llama"}
    assert made["metadata"]["uid"] == f"{ORIGIN}/41"
    assert made["raw_data"].encode() == intent(peer)
    assert ("ip" in made["src_endpoint"]) == peer.endswith("4242")


@pytest.mark.parametrize(
    ("result", "status", "notable"),
    [
        ("signed", "Success", False),
        ("failed", "Failure", True),
        ("aborted", "Failure", True),
        ("unknown", "Unknown", True),
    ],
)
def test_an_outcome_is_told_with_its_intent(result: str, status: str, notable: bool) -> None:
    entry = outcome(result, ckr=0 if result == "signed" else 5)
    made = event(entry, intent())
    assert made["status"] == status
    assert made["actor"]["user"]["uid"] == "spiffe://example.org/pipeline"
    assert made["duration"] == 61
    assert made["unmapped"]["intent_index"] == 40
    assert is_notable(json.loads(entry)) is notable


def test_an_outcome_whose_intent_is_gone_is_still_an_event() -> None:
    assert event(outcome(), None)["actor"]["app_name"] == "greatseald"


def test_denials_are_failures_and_a_stolen_certificate_is_graver() -> None:
    plain, stolen = event(denied("readAudit", more=11)), event(denied(reason="CALLER_DENYLISTED"))
    assert plain["status"] == stolen["status"] == "Failure"
    assert plain["count"] == 12
    assert plain["activity_name"] == "Read"
    assert stolen["activity_name"] == "Create"
    assert stolen["severity_id"] > plain["severity_id"] > event(intent())["severity_id"]


@pytest.mark.parametrize("what", ["start", "stop", "reload", "key", "token", "backup"])
def test_what_the_daemon_does_itself_is_an_event(what: str) -> None:
    assert event(admin(what))["api"]["operation"] == what


def test_names_that_callers_chose_stay_inside_their_strings() -> None:
    made = event(intent(name=HOSTILE))
    assert made["resources"][1]["name"] == HOSTILE
    assert b"\n" not in json.dumps(made).encode()
