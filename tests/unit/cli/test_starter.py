"""The files that init writes parse, say what was meant, and cannot be broken out of."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greatseald.cli import starter

NASTY = 'a "quoted" \\ path/with = [tables] # and ümläuts 🔏'


def config(**changes: str) -> dict:
    values = {
        "this_file": "/seal/greatseald.toml",
        "listen": "127.0.0.1:8443",
        "metrics_listen": "",
        "store_url": "sqlite:///seal/data/log.db",
        "origin": "greatseal.local/log",
        "token_label": "greatseal",
        "module": "/usr/lib/softhsm/libsofthsm2.so",
        "softhsm_conf": "/seal/softhsm2.conf",
        "pipeline": "spiffe://greatseal.local/pipeline",
    }
    return tomllib.loads(starter.config_text(**values | changes))


def test_only_the_release_key_is_closed_to_blind_digests():
    rules = config()["allow"]
    blind = [rule for rule in rules if "signBlind" in rule["actions"]]
    assert [rule["keys"] for rule in blind] == [["scratch"]]
    assert all(rule["client"] == "spiffe://greatseal.local/pipeline" for rule in rules)


def test_the_pipeline_may_sign_statements_read_keys_and_audit():
    (release,) = [rule for rule in config()["allow"] if rule["keys"] == ["release"]]
    assert release["actions"] == ["sign", "readKeys", "readAudit", "readTokens"]
    assert release["payload_types"] == ["application/vnd.in-toto+json"]


def test_a_nasty_path_stays_a_path():
    parsed = config(module=NASTY, softhsm_conf=NASTY)
    assert parsed["tokens"][0]["module"] == NASTY
    assert parsed["tokens"][0]["environment"] == {"SOFTHSM2_CONF": NASTY}


@given(st.text())
def test_a_quoted_text_is_read_back_or_refused(text):
    try:
        quoted = starter.quoted(text)
    except ValueError:
        assert any(ord(char) < 0x20 or ord(char) == 0x7F or 0xD800 <= ord(char) <= 0xDFFF for char in text)
        return
    assert tomllib.loads(f"value = {quoted}") == {"value": text}


@pytest.mark.parametrize("text", ["a\nb", "a\x00b", "a\x7fb", "\udc80"])
def test_a_path_with_control_characters_is_refused(text):
    with pytest.raises(ValueError, match="control character"):
        config(module=text)


def test_an_allow_table_leaves_out_what_is_empty():
    assert tomllib.loads(starter.allow_table("spiffe://a/b", ["readAudit"])) == {
        "allow": [{"client": "spiffe://a/b", "actions": ["readAudit"]}]
    }


def test_a_profile_names_files_beside_it():
    text = starter.profile_text(
        this_file="/seal/client.toml", listen="127.0.0.1:1", client_cert="pki/a.pem", client_key="pki/a.key"
    )
    assert tomllib.loads(text) == {
        "address": "127.0.0.1:1",
        "address_file": "run/address",
        "server_name": "localhost",
        "ca_cert": "pki/ca.pem",
        "client_cert": "pki/a.pem",
        "client_key": "pki/a.key",
        "log_key": "log/log.vkey",
    }


@pytest.mark.parametrize("listen", ["0.0.0.0:8443", "[::]:8443"])
def test_a_profile_names_an_address_that_can_be_called(listen):
    text = starter.profile_text(this_file="/c.toml", listen=listen, client_cert="a.pem", client_key="a.key")
    assert tomllib.loads(text)["address"] == "localhost:8443"
