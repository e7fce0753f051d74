"""One key on two tokens: the work is shared, and a token that dies, hangs or is taken out costs nobody else anything.

Judged as everywhere: released ⊆ outcomes ⊆ signatures made ⊆ operations let through ⊆ intents; one id, one signature.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fault_history import Auditor, Load, host_ledger
from fault_processes import token_hosts
from fault_site import FaultSite, RefusedError
from greatseal.ids import new_request_id

pytestmark = [pytest.mark.shim, pytest.mark.softhsm]

TOKENS = ("soft", "other")


def work_of(site: FaultSite) -> dict[str, int]:
    """How many operations each host let through."""
    return {token: len(list(host_ledger(site.state_dir(token)))) for token in TOKENS}


def audit(site: FaultSite, load: Load) -> Auditor:
    auditor = Auditor(site)
    with site.wire() as wire:
        load.ask_again(wire, 40)
        auditor.read(wire)
    auditor.check_all_closed()
    auditor.compare(load, site.soft, site.other, tokens=TOKENS)
    check_one_release_a_request(auditor)
    return auditor


def check_one_release_a_request(auditor: Auditor) -> None:
    """Attempts of a request follow each other, and nothing follows one that was, or may have been, signed by us."""
    attempts: dict[str, list[tuple[int, int, str]]] = {}
    for index, intent in auditor.intents.items():
        attempts.setdefault(intent["req"], []).append((intent["att"], index, auditor.outcomes[index]["res"]))
    for request_id, each in attempts.items():
        each.sort()
        assert [number for number, _, _ in each] == list(range(1, len(each) + 1)), request_id
        assert [index for _, index, _ in each] == sorted(index for _, index, _ in each)
        assert sum(result == "signed" for _, _, result in each) <= 1, f"{request_id} was signed twice"
        assert "signed" not in [result for _, _, result in each[:-1]], f"{request_id} went on after it was signed"


def under_load(site: FaultSite, load: Load, act: Callable[[], object], seconds: float = 1.0) -> None:
    """Put load on the daemon, do something in the middle of it, and wait until every call has ended."""

    async def scene() -> None:
        until = asyncio.Event()
        callers = asyncio.create_task(load.run(until))
        await asyncio.sleep(seconds / 2)
        await asyncio.to_thread(act)
        await asyncio.sleep(seconds / 2)
        until.set()
        await callers

    asyncio.run(scene())


def pool_load(site: FaultSite, seed: int = 5) -> Load:
    return Load(site, random.Random(seed), keys=("pool",))


def host_of(site: FaultSite, token: str) -> int:
    """The process of a token's host, waited for while it is being replaced."""
    shim, deadline = {"soft": site.soft, "other": site.other}[token], time.monotonic() + 20
    while not (found := token_hosts(site.daemon_pid, str(shim.directory))):
        assert time.monotonic() < deadline, f"the host of {token} does not come back"
        time.sleep(0.01)
    return found[0]


def test_a_batch_is_shared_and_so_are_single_calls(two_tokens: FaultSite):
    site = two_tokens
    for shim in (site.soft, site.other):
        shim.rule("C_Sign", "delay", 5)
    site.deployment.start()
    with site.wire() as wire:
        wire.batch("pool", [os.urandom(32) for _ in range(20)])  # now both were measured
        before = work_of(site)
        assert all(
            not isinstance(each, RefusedError) for each in wire.batch("pool", [os.urandom(32) for _ in range(100)])
        )
        shares = {token: work_of(site)[token] - before[token] for token in TOKENS}
    assert sum(shares.values()) == 100
    assert min(shares.values()) >= 30, shares
    load = pool_load(site)
    before = work_of(site)
    under_load(site, load, lambda: None)
    assert all(work_of(site)[token] > before[token] for token in TOKENS)
    assert not load.refusals
    audit(site, load)


@pytest.mark.parametrize("verb", ["drain", "quarantine"])
def test_taking_a_token_out_under_load_is_noticed_by_no_caller(two_tokens: FaultSite, verb: str):
    site = two_tokens
    site.deployment.add_client("operator", "--actions", f"{verb}Token,resumeToken,readTokens")
    for shim in (site.soft, site.other):
        shim.rule("C_Sign", "delay", 3)
    site.deployment.start()
    profile, load = site.directory / "operator-client.toml", pool_load(site)

    def act() -> None:
        done = site.deployment.client("tokens", verb, "soft", profile=profile)
        assert done.returncode == 0, done.stderr

    under_load(site, load, act, 2.0)
    assert not load.refusals
    with site.wire() as wire:
        before = work_of(site)
        wire.batch("pool", [os.urandom(32) for _ in range(10)])
        assert work_of(site)["soft"] == before["soft"]
        with pytest.raises(RefusedError, match="an operator has"):
            wire.sign("scratch")  # of which there is one holder only
    assert site.deployment.client("tokens", "resume", "soft", profile=profile).returncode == 0
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
    audit(site, load)


def test_a_token_that_cannot_now_is_followed_by_one_that_can_as_the_next_attempt(two_tokens: FaultSite):
    site = two_tokens
    site.deployment.start()
    with site.wire() as wire:
        wire.sign("pool")
        request_id, digest = new_request_id(), os.urandom(32)
        busy = site.soft.rule("C_SignInit", "rv", 0x31)  # CKR_DEVICE_MEMORY: it certainly did not sign
        held = site.other.rule("C_SignInit", "rv", 0x31)
        with pytest.raises(RefusedError) as caught:
            wire.sign("pool", digest, request_id)
        assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "TOKEN_UNAVAILABLE")
        site.other.lift(held)
        first = wire.sign_until_it_works("pool")
        again = wire.sign("pool", digest, request_id)
        assert wire.sign("pool", digest, request_id).signature == again.signature
        assert json.loads(first.receipt.intent_entry)["att"] >= 1
        site.soft.lift(busy)
    auditor = Auditor(site)
    with site.wire() as wire:
        auditor.read(wire)
    auditor.check_all_closed()
    check_one_release_a_request(auditor)
    mine = [(index, each) for index, each in auditor.intents.items() if each["req"] == request_id]
    results = [auditor.outcomes[index]["res"] for index, _ in sorted(mine, key=lambda pair: pair[1]["att"])]
    assert results[-1] == "signed"
    assert len(results) >= 3
    assert set(results[:-1]) <= {"failed", "aborted"}


@pytest.mark.parametrize("token", TOKENS)
def test_a_killed_host_costs_what_it_had_and_nothing_is_signed_twice(two_tokens: FaultSite, token: str):
    site = two_tokens
    site.deployment.start()
    load = pool_load(site, 7)
    for _ in range(3):
        under_load(site, load, lambda: os.kill(host_of(site, token), 9), 0.8)
        with site.wire() as wire:
            wire.sign_until_it_works("pool")
    assert set(load.refusals) <= {"OUTCOME_UNKNOWN"}, load.refusals
    audit(site, load)


def test_a_token_that_hangs_keeps_nothing_but_what_its_host_had(two_tokens: FaultSite):
    site = two_tokens
    for shim in (site.soft, site.other):
        shim.rule("C_Sign", "delay", 10)
    site.deployment.start()
    with site.wire() as wire:
        wire.batch("pool", [os.urandom(32) for _ in range(40)])
        site.soft.lift_all()
        hang = site.soft.rule("C_Sign", "hang")
        results = wire.batch("pool", [os.urandom(32) for _ in range(200)])
        told = Counter(each.reason if isinstance(each, RefusedError) else "signed" for each in results)
        assert told["signed"] + told["OUTCOME_UNKNOWN"] == 200
        assert told["OUTCOME_UNKNOWN"] <= 40, told
        for _ in range(10):  # meanwhile and afterwards the other token has all of it
            wire.sign_until_it_works("pool")
        site.soft.lift(hang)
    audit(site, pool_load(site))


def test_a_holder_that_shows_another_key_is_refused_and_says_so(new_site: Callable[..., FaultSite]):
    site = new_site(two_tokens=True)
    uri = r'(token = "other"\nuri = "pkcs11:object=)scratch("\n\n\[\[allow)'
    site.deployment.edit(uri, r"\g<1>release\g<2>")
    site.deployment.start()
    with site.wire() as wire:
        shown: Any = wire.key("pool")
        assert shown.state == 1
        assert "means another key than" in shown.state_detail
        assert "holder_refused" in site.deployment.stderr
        # Whichever was read first is the key. The other signs nothing.
        name = next(each for each in ("scratch", "release") if spki_sha256(site, each) == shown.spki_sha256)
        right, wrong = ("soft", "other") if name == "scratch" else ("other", "soft")
        assert f"in token {wrong} now means another key than token {right} holds" in shown.state_detail
        site.public["pool"] = site.public[name]
        for _ in range(20):
            wire.sign("pool")
    done = work_of(site)
    assert (done[right], done[wrong]) == (20, 0)


def spki_sha256(site: FaultSite, key: str) -> bytes:
    der = site.public[key].public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).digest()
