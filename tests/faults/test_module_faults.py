"""A vendor's module that crashes, hangs, lies or vanishes takes down its own host and nothing else."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pkcs11_shim
import pytest

from fault_history import Auditor, Load
from fault_processes import alive, token_hosts
from fault_site import FaultSite, RefusedError
from fault_steady import Steady, judge
from greatseald.adapters.tokens.ckr import CKR

pytestmark = [pytest.mark.shim, pytest.mark.softhsm]


@pytest.mark.parametrize("action", ["segv", "abort", "exit", "hang"])
def test_a_dying_module_ends_its_own_host_only(action: str, two_tokens: FaultSite) -> None:
    site = two_tokens
    site.deployment.start()
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
        wire.sign_until_it_works("steady")
        doomed = token_hosts(site.daemon_pid, str(site.soft.directory))
        neighbours = token_hosts(site.daemon_pid, str(site.other.directory))
        assert len(doomed) == len(neighbours) == 1
        with Steady(site) as steady:
            steady.progress()
            digest = os.urandom(32)
            site.soft.rule("C_Sign", action, times=1, digest=digest)
            with ThreadPoolExecutor(1) as pool:
                doing = pool.submit(wire.sign, "scratch", digest)
                steady.progress()  # while the module hangs, or its host is being replaced
                with pytest.raises(RefusedError) as caught:
                    doing.result(30)
            assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "OUTCOME_UNKNOWN"), caught.value
            steady.progress()
            wire.sign_until_it_works("scratch")  # a fresh host is back
            steady.progress()
        assert steady.refused == []
        assert not alive(doomed[0]), "the host of the broken module still runs"
        assert token_hosts(site.daemon_pid, str(site.other.directory)) == neighbours
    auditor = judge(site)
    unknown = [outcome["tbs"] for outcome in auditor.outcomes.values() if outcome["res"] == "unknown"]
    assert unknown == [digest.hex()], "exactly what was handed over is unknown"
    assert len(site.soft.logins()) == 2, "one login for each host"


def test_a_crash_in_a_batch_leaves_no_item_without_outcome(two_tokens: FaultSite) -> None:
    """Items that were signed before the crash are released; the rest is unknown or refused, each closed once."""
    site = two_tokens
    site.deployment.start()
    digests = [os.urandom(32) for _ in range(200)]
    site.soft.rule("C_Sign", "segv", times=1, after=100)
    with site.wire() as wire:
        wire.sign_until_it_works("steady")
        results = wire.batch("scratch", digests)
        refused = [result for result in results if isinstance(result, RefusedError)]
        assert refused
        assert {result.reason for result in refused} <= {"OUTCOME_UNKNOWN", "TOKEN_UNAVAILABLE"}
        wire.sign_until_it_works("scratch")
    auditor = judge(site)
    signed = sum(outcome["res"] == "signed" for outcome in auditor.outcomes.values())
    assert signed >= len(results) - len(refused)


def test_a_wrong_signature_is_never_released_and_halts_its_key(two_tokens: FaultSite) -> None:
    site = two_tokens
    site.deployment.start()
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
        digest = os.urandom(32)
        site.soft.rule("C_Sign", "flip", times=1, digest=digest)
        with pytest.raises(RefusedError) as caught:
            wire.sign("scratch", digest)
        assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "KEY_HALTED"), caught.value
        with pytest.raises(RefusedError) as caught:
            wire.sign("scratch")
        assert caught.value.reason == "KEY_HALTED"
        assert wire.key("scratch").state == 3, "GetKey says HALTED"
        assert wire.sign("steady").signature  # the other key goes on
    auditor = judge(site)
    wrong = [outcome for outcome in auditor.outcomes.values() if outcome["tbs"] == digest.hex()]
    assert [(outcome["res"], outcome.get("sig", "")) for outcome in wrong] == [("failed", "")]
    listed = site.deployment.client("--json", "audit", "list")
    assert '"what": "key"' in listed.stdout.replace('":"', '": "'), "the halt stands in the log"


def test_a_wrong_signature_in_a_batch_spoils_only_itself_and_what_follows(site: FaultSite) -> None:
    site.deployment.start()
    digests = [os.urandom(32) for _ in range(64)]
    site.soft.rule("C_Sign", "flip", times=1, digest=digests[40])
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
        results = wire.batch("scratch", digests)
    assert isinstance(results[40], RefusedError)
    assert results[40].reason == "KEY_HALTED"
    # wire.batch has verified every signature that was released


@pytest.mark.parametrize(
    "rv",
    [
        pkcs11_shim.CKR_SESSION_HANDLE_INVALID,
        pkcs11_shim.CKR_SESSION_CLOSED,
        pkcs11_shim.CKR_DEVICE_ERROR,
        pkcs11_shim.CKR_DEVICE_MEMORY,
        pkcs11_shim.CKR_FUNCTION_FAILED,
        pkcs11_shim.CKR_GENERAL_ERROR,
        pkcs11_shim.CKR_OPERATION_ACTIVE,
        pkcs11_shim.CKR_USER_NOT_LOGGED_IN,
    ],
    ids=hex,
)
def test_an_error_of_c_sign_is_told_and_the_token_comes_back(rv: int, site: FaultSite) -> None:
    site.deployment.start()
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
        site.soft.rule("C_Sign", "rv", rv, times=1)
        wire.sign_until_it_works("scratch")
        wire.sign("scratch")
    auditor = Auditor(site)
    with site.wire() as wire:
        auditor.read(wire)
    auditor.check_all_closed()
    auditor.compare(Load(site, random.Random(0)), site.soft)
    # USER_NOT_LOGGED_IN may mean a key that wants a login each time, so one such login is tried; no PIN is refused.
    assert pkcs11_shim.CKR_PIN_INCORRECT not in {call.rv for call in site.soft.logins()}


def test_a_signature_made_but_not_delivered_is_unknown_and_never_released(site: FaultSite) -> None:
    """C_Sign signs, then reports a failure that does not exclude it: `unknown`, and a retry is a new attempt."""
    site.deployment.start()
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
        digest = os.urandom(32)
        site.soft.rule("C_Sign", "late", pkcs11_shim.CKR_FUNCTION_FAILED, digest=digest)
        with pytest.raises(RefusedError) as caught:
            wire.sign("scratch", digest, timeout=20)
        assert caught.value.reason in {"OUTCOME_UNKNOWN", "TOKEN_UNAVAILABLE"}
        auditor = Auditor(site)
        auditor.read(wire)
    results = [outcome["res"] for outcome in auditor.outcomes.values() if outcome["tbs"] == digest.hex()]
    assert "unknown" in results
    assert "signed" not in results


def test_a_token_pulled_and_put_back_is_found_again_with_one_login(new_site: Callable[..., FaultSite]) -> None:
    site = new_site(two_tokens=True, operation_timeout=2)
    site.deployment.start()
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
        site.soft.unplug()
        with pytest.raises(RefusedError) as caught:
            wire.sign("scratch")
        assert caught.value.code == "UNAVAILABLE"
        wire.sign("steady")
        time.sleep(1)  # let the supervisor meet the empty reader
        logins = len(site.soft.logins())
        with pytest.raises(RefusedError):
            wire.sign("scratch")
        assert len(site.soft.logins()) == logins, "an absent token is not logged in to"
        site.soft.lift_all()
        wire.sign_until_it_works("scratch")
        assert len(site.soft.logins()) == logins + 1
    judge(site)


def test_every_signature_is_counted_by_the_token_host_and_the_module_alike(site: FaultSite) -> None:
    site.deployment.start()
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
        results: list[Any] = wire.batch("scratch", [os.urandom(32) for _ in range(300)])
        assert not any(isinstance(result, RefusedError) for result in results)
    auditor = Auditor(site)
    with site.wire() as wire:
        auditor.read(wire)
    auditor.compare(Load(site, random.Random(0)), site.soft)
    assert len(site.soft.signatures()) == len(auditor.intents) == len(auditor.outcomes) == 301
    assert sorted(outcome["hsm"]["seq"] for outcome in auditor.outcomes.values()) == list(range(1, 302))


def test_an_algorithm_that_the_token_refuses_is_the_callers_error_and_names_what_there_is(
    two_tokens: FaultSite,
) -> None:
    site = two_tokens
    site.deployment.start()
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
        wire.sign_until_it_works("steady")
        rule = site.soft.rule("C_Sign", "rv", CKR.MECHANISM_INVALID, times=1)
        with pytest.raises(RefusedError) as refused:
            wire.sign("scratch")
        assert (refused.value.code, refused.value.reason) == ("INVALID_ARGUMENT", "ALGORITHM_NOT_OFFERED")
        assert "CKR_MECHANISM_INVALID; it offers nothing else" in refused.value.message
        assert site.soft.hits(rule) == 1
        wire.sign("scratch")
    judge(site)
