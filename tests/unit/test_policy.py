"""Allow and deny tables: nothing is allowed that no rule says."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from greatseald.domain.identity import Caller
from greatseald.domain.policy import ACTIONS, AllowRule, DenyRule, Rules

IN_TOTO = "application/vnd.in-toto+json"


def caller(name: str = "spiffe://example.org/ci", serial: str = "0a", spki: str = "bb" * 32) -> Caller:
    return Caller(name, "aa" * 32, serial, "CN=ca", spki, datetime(2030, 1, 1, tzinfo=UTC))


RULES = Rules(
    allow=(
        AllowRule("spiffe://example.org/ci", ("sign", "readKeys"), ("release",), (IN_TOTO,)),
        AllowRule("spiffe://example.org/ci", ("signBlind",), ("scratch",)),
        AllowRule("spiffe://example.org/auditor", ("readAudit",)),
        AllowRule("spiffe://example.org/root", ("sign", "signBlind", "readKeys"), ("*",), ("*",)),
    ),
    deny=(DenyRule(serial="ff"), DenyRule(spki_sha256="cc" * 32)),
)


def test_a_rule_allows_what_it_says_and_names_itself() -> None:
    assert RULES.decide(caller(), "sign", "release", IN_TOTO) == ("allow[0]",)
    assert RULES.decide(caller(), "signBlind", "scratch") == ("allow[1]",)


def test_another_key_action_or_payload_type_is_denied() -> None:
    assert RULES.decide(caller(), "sign", "scratch", IN_TOTO) == ()
    assert RULES.decide(caller(), "signBlind", "release") == ()
    assert RULES.decide(caller(), "sign", "release", "text/plain") == ()
    assert RULES.decide(caller(), "readAudit") == ()


def test_the_audit_log_needs_no_key() -> None:
    assert RULES.decide(caller("spiffe://example.org/auditor"), "readAudit") == ("allow[2]",)


def test_a_star_means_any_key_and_type_and_never_any_client() -> None:
    assert RULES.decide(caller("spiffe://example.org/root"), "sign", "anything", "text/plain") == ("allow[3]",)
    star = Rules(allow=(AllowRule("*", ("sign",), ("*",), ("*",)),))
    assert star.decide(caller(), "sign", "release", IN_TOTO) == ()


def test_a_rule_without_keys_allows_no_key() -> None:
    rules = Rules(allow=(AllowRule("spiffe://example.org/ci", ("sign",), (), (IN_TOTO,)),))
    assert rules.decide(caller(), "sign", "release", IN_TOTO) == ()


@given(name=st.text(), action=st.sampled_from(ACTIONS), key=st.text(), payload_type=st.text())
def test_an_unnamed_client_is_denied_everything(name: str, action: str, key: str, payload_type: str) -> None:
    if not name.startswith("spiffe://example.org/"):
        assert RULES.decide(caller(name), action, key, payload_type) == ()


def test_certificates_are_denied_by_serial_and_by_key() -> None:
    assert RULES.denied_by(caller(serial="ff")) == "deny[0]"
    assert RULES.denied_by(caller(spki="cc" * 32)) == "deny[1]"
    assert RULES.denied_by(caller()) is None


def test_an_empty_deny_rule_matches_nobody() -> None:
    assert Rules(deny=(DenyRule(),)).denied_by(caller(serial="", spki="")) is None


def test_the_digest_of_the_set_changes_with_any_rule() -> None:
    assert Rules().digest != RULES.digest
    assert Rules(allow=RULES.allow).digest != RULES.digest
    assert Rules(allow=RULES.allow, deny=RULES.deny).digest == RULES.digest
