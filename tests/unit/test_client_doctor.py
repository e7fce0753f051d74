"""What doctor makes of what it sees."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from greatseal import errors
from greatseal.cli import findings
from greatseal.cli.examination import clock, versions
from greatseal.cli.findings import Status
from greatseal.cli.reachability import connect, identity, lifetime
from greatseal.cli.session import Session

NOON = datetime(2026, 5, 12, 12, tzinfo=UTC)


def certificate(begin: timedelta, end: timedelta, *names: x509.GeneralName) -> x509.Certificate:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ci")])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 7, now + begin, now + end)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256())


@pytest.mark.parametrize(
    ("begin", "end", "status", "said"),
    [
        (-1, 90, Status.OK, "expires in 89 days"),
        (-1, 5, Status.WARN, "expires in 4 days"),
        (-9, -1, Status.FAIL, "expired on"),
        (1, 90, Status.FAIL, "valid only from"),
    ],
)
def test_a_certificate_is_judged_by_its_days(begin: int, end: int, status: Status, said: str):
    found = lifetime("client certificate", "ci", certificate(timedelta(begin), timedelta(end)), "renew it")
    assert found.status is status
    assert said in found.text
    assert bool(found.todo) is (status is not Status.OK)


def test_the_identity_is_the_one_that_rules_match():
    days = (timedelta(-1), timedelta(9))
    spiffe = x509.UniformResourceIdentifier("spiffe://a.example/ci")
    dns, mail = x509.DNSName("ci.example"), x509.RFC822Name("ci@example.org")
    assert identity(certificate(*days, dns, spiffe)) == "spiffe://a.example/ci"
    assert identity(certificate(*days, mail, dns)) == "ci.example"
    assert identity(certificate(*days, mail)) == "ci@example.org"
    assert identity(certificate(*days)) == "CN=ci"


@pytest.mark.parametrize(
    ("seconds", "status", "said"),
    [
        (0.5, Status.OK, "agree"),
        (2.0, Status.OK, "1.0 s ahead of"),
        (31.0, Status.WARN, "30.0 s ahead of"),
        (-30.0, Status.WARN, "30.0 s behind"),
        (-4000.0, Status.FAIL, "behind"),
    ],
)
def test_clocks_are_compared_within_what_the_way_takes(seconds: float, status: Status, said: str):
    theirs = (NOON + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    found = clock(theirs, NOON, NOON + timedelta(seconds=1))
    assert found.status is status
    assert said in found.text


@pytest.mark.parametrize("said", ["", "yesterday", "2026-05-12T12:00:00"])
def test_a_daemon_that_does_not_say_its_time_is_not_judged(said: str):
    assert clock(said, NOON, NOON).status is Status.SKIP


def test_versions_that_differ_deserve_a_look():
    assert versions("0.1.0", "0.1.7").status is Status.OK
    assert versions("0.1.0", "0.2.0").status is Status.WARN


def test_the_exit_code_is_of_what_failed_first_and_a_failed_verification_goes_before_all():
    warning = findings.warn("clock", "off", "set it")
    denied = findings.failed_by("identity", errors.Denied("no"))
    away = findings.failed_by("connection", errors.Unavailable("away"))
    forked = findings.failed_by("log", errors.LogRegressed("forked"))
    assert findings.exit_code([warning]) == 0
    assert findings.exit_code([warning, away, denied]) == 5
    assert findings.exit_code([denied, away]) == 3
    assert findings.exit_code([away, forked]) == 6
    assert findings.described([warning])["status"] == "warn"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 80 + ".example", ".", "[::1"])
def test_a_name_that_cannot_be_resolved_is_said_and_nothing_raises(host: str):
    finding, opened = connect(f"{host}:7443", 1.0)
    assert opened is None
    assert finding.status is Status.FAIL
    assert finding.exit_code == 5
    assert finding.todo


def test_the_page_keeps_foreign_text_off_the_terminal_and_colours_only_when_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    page = [findings.fail("identity", "\x1b[2Jgone\nok    forged", "look \x9b31m", exit_code=3)]
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    findings.show(Session(), page)
    plain = capsys.readouterr().out
    assert not set("\x1b\x9b") & set(plain)
    assert not any(line.startswith("ok ") for line in plain.splitlines())
    monkeypatch.setenv("FORCE_COLOR", "1")
    findings.show(Session(), page)
    assert capsys.readouterr().out.startswith("\x1b[31mfail ")
    findings.show(Session(color=False), page)
    assert capsys.readouterr().out == plain


def test_a_table_has_colour_under_force_color_and_none_under_no_color(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    Session().table(["KEY", "STATE"], [["keys/" + "long" * 20, "HALTED"]])
    colored = capsys.readouterr().out
    assert "\x1b[31mHALTED" in colored
    monkeypatch.delenv("FORCE_COLOR")
    Session(color=False).table(["KEY", "STATE"], [["keys/a", "HALTED"]])
    assert capsys.readouterr().out == "KEY\tSTATE\nkeys/a\tHALTED\n"
