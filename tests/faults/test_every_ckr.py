"""Every PKCS#11 return value in every function that is used ends as the design's table says.

`GREATSEAL_EVERY_CKR=1` takes the whole list of PKCS#11 3.1 for the functions around a signature and for
C_Login too; for C_SignInit and C_Sign it is always taken. The
expectations stand here, by the specification's numbers, and are not read from the table under test.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

import pytest

from fault_processes import token_hosts
from fault_site import FaultSite, RefusedError
from fault_steady import Steady, judge

pytestmark = [pytest.mark.shim, pytest.mark.softhsm]
WHOLE = os.environ.get("GREATSEAL_EVERY_CKR") == "1"

# The session was lost, so the operation is asked for again at once, and the caller sees nothing of it.
AGAIN = {0x060, 0x082, 0x091, 0x0B0, 0x0B3}
# The request itself was refused: nothing was signed, and the same request is refused again.
REFUSED = {0x007, 0x01B, 0x020, 0x021, 0x054, 0x062, 0x063, 0x068, 0x070, 0x071, 0x130, 0x140, 0x150, 0x203}
# The token wants an operator.
LOCKED = {0x0A0, 0x0A1, 0x0A2, 0x0A3, 0x0A4, 0x102}
# Certainly not signed, and a fresh host or another try cures it.
NOT_SIGNED = {0x190, 0x200}
USER_NOT_LOGGED_IN = 0x101  # also how a key that wants a login for each signature answers: tests/integration
# Of C_Sign the host asks again with a larger buffer.
BUFFER_TOO_SMALL = 0x150
# All others, and a vendor's: after C_Sign nobody knows.
SPECIFIED = {
    *range(0x001, 0x004), *range(0x005, 0x00B), *range(0x010, 0x014), 0x01B, 0x020, 0x021, *range(0x030, 0x033),
    *range(0x040, 0x043), 0x050, 0x051, 0x054, 0x060, *range(0x062, 0x069), 0x069, 0x06A, 0x070, 0x071, 0x082, 0x090,
    0x091, *range(0x0A0, 0x0A5), 0x0B0, 0x0B1, *range(0x0B3, 0x0B9), 0x0C0, 0x0C1, 0x0D0, 0x0D1, *range(0x0E0, 0x0E3),
    *range(0x0F0, 0x0F3), *range(0x100, 0x106), 0x110, *range(0x112, 0x116), 0x120, 0x121, 0x130, 0x140, 0x150, 0x160,
    0x170, 0x180, 0x190, 0x191, 0x1A0, 0x1A1, 0x1B0, 0x1B1, *range(0x1B5, 0x1BA), *range(0x200, 0x204),
}  # fmt: skip
VENDOR = 0x80000001
EVERY = sorted(SPECIFIED | {VENDOR})
SHORT = [0x0B3, 0x091, 0x068, 0x203, 0x190, 0x200, 0x006, 0x032, 0x005, 0x112, 0x1B6, 0x201, VENDOR]
STARTS = [0x005, 0x032, 0x054, VENDOR]
APART = LOCKED | {USER_NOT_LOGGED_IN}


def _results(site: FaultSite) -> dict[str, list[str]]:
    """The log's word for how each request ended, by its digest."""
    results: dict[str, list[str]] = {}
    for outcome in judge(site).outcomes.values():
        results.setdefault(outcome["tbs"], []).append(outcome["res"])
    return results


def _expected(function: str, value: int) -> str:
    if value in AGAIN or (function, value) == ("C_Sign", BUFFER_TOO_SMALL):
        return "signed"
    return "failed" if function != "C_Sign" or value in REFUSED | NOT_SIGNED else "unknown"


@pytest.mark.parametrize("function", ["C_SignInit", "C_Sign"])
def test_each_value_ends_one_signature_as_the_table_says(function: str, two_tokens: FaultSite) -> None:
    """The intent is closed, the token comes back by itself, its host logs in once, the other token goes on."""
    site = two_tokens
    site.deployment.start()
    asked: list[tuple[int, bytes, str]] = []
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
        wire.sign_until_it_works("steady")
        with Steady(site) as steady:
            for value in (value for value in EVERY if value not in APART):
                digest = os.urandom(32)
                rule = site.soft.rule(function, "rv", value, times=1)
                try:
                    wire.sign("scratch", digest)
                except RefusedError as refused:
                    told = refused.reason
                else:
                    told = ""
                assert site.soft.hits(rule) >= 1
                site.soft.lift(rule)
                wire.sign_until_it_works("scratch", seconds=60)
                asked.append((value, digest, told))
            steady.progress()
        assert steady.refused == []
    results, wrong = _results(site), []
    for value, digest, told in asked:
        found, expected = results[digest.hex()], _expected(function, value)
        if found != [expected] or (expected == "unknown") != (told == "OUTCOME_UNKNOWN"):
            wrong.append(f"0x{value:x}: {found} ({told}), expected {expected}")
    assert not wrong, wrong
    assert set(Counter(call.pid for call in site.soft.logins()).values()) == {1}, "one login for each host"


@pytest.mark.parametrize("function", ["C_OpenSession", "C_FindObjectsInit", "C_FindObjects"])
def test_no_value_before_the_signature_makes_it_unknown(function: str, two_tokens: FaultSite) -> None:
    """A session is lost and the call that is to replace it fails: not signed, or signed after all, and it comes back."""
    site = two_tokens
    site.deployment.start()
    digests: list[bytes] = []
    told: set[str] = set()
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
        wire.sign_until_it_works("steady")
        with Steady(site) as steady:
            for value in (value for value in (EVERY if WHOLE else SHORT) if value not in APART):
                digests.append(os.urandom(32))
                lost = site.soft.rule("C_SignInit", "rv", 0x0B3, times=1)
                rule = site.soft.rule(function, "rv", value, times=1)
                try:
                    wire.sign("scratch", digests[-1])
                except RefusedError as refused:
                    told.add(refused.reason)
                assert site.soft.hits(rule) >= 1
                site.soft.lift(rule)
                site.soft.lift(lost)
                wire.sign_until_it_works("scratch", seconds=60)
            steady.progress()
        assert steady.refused == []
    assert "OUTCOME_UNKNOWN" not in told
    results = _results(site)
    assert {result for digest in digests for result in results[digest.hex()]} <= {"signed", "failed"}
    assert all(len(results[digest.hex()]) == 1 for digest in digests)
    assert set(Counter(call.pid for call in site.soft.logins()).values()) == {1}, "one login for each host"


@pytest.mark.parametrize("function", ["C_GetSlotList", "C_GetTokenInfo", "C_GetAttributeValue"])
def test_a_host_whose_start_fails_once_is_back_by_itself(function: str, two_tokens: FaultSite) -> None:
    site = two_tokens
    site.deployment.start()
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
        wire.sign_until_it_works("steady")
        with Steady(site) as steady:
            for value in (value for value in (EVERY if WHOLE else STARTS) if value not in APART):
                rule = site.soft.rule(function, "rv", value, times=1)
                for pid in token_hosts(site.daemon_pid, str(site.soft.directory)):
                    os.kill(pid, signal.SIGKILL)
                wire.sign_until_it_works("scratch", seconds=60)
                assert site.soft.hits(rule) >= 1
                site.soft.lift(rule)
            steady.progress()
        assert steady.refused == []
    judge(site)
    assert set(Counter(call.pid for call in site.soft.logins()).values()) == {1}, "one login for each host"


@pytest.mark.parametrize("value", [0x006, 0x030, 0x1B6, VENDOR])
def test_a_signature_made_before_the_error_is_unknown_and_not_released(value: int, two_tokens: FaultSite) -> None:
    site = two_tokens
    site.deployment.start()
    digest = os.urandom(32)
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
        site.soft.rule("C_Sign", "late", value, times=1)
        with pytest.raises(RefusedError) as caught:
            wire.sign("scratch", digest)
        assert caught.value.reason == "OUTCOME_UNKNOWN"
        wire.sign_until_it_works("scratch", seconds=60)
        assert [call.digest for call in site.soft.signatures()].count(digest) == 1
    assert _results(site)[digest.hex()] == ["unknown"]


@pytest.mark.parametrize("value", sorted(LOCKED | {0x1B8}) if WHOLE else [0x0A3, 0x1B8])
def test_a_refused_login_is_never_repeated(value: int, new_site: Callable[..., FaultSite]) -> None:
    site = new_site(two_tokens=True)
    site.soft.rule("C_Login", "rv", value)
    for _ in range(2):
        site.deployment.start()
        with site.wire() as wire:
            wire.sign_until_it_works("steady")
            with pytest.raises(RefusedError) as caught:
                wire.sign_until_it_works("scratch")
            assert caught.value.reason == "TOKEN_LOCKED"
        assert site.deployment.stop() == 0
    assert len(site.soft.logins()) == 1
