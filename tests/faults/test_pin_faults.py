"""A wrong PIN is tried once, whatever restarts around it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pkcs11_shim
import pytest

from fault_site import FaultSite, RefusedError

pytestmark = [pytest.mark.shim, pytest.mark.softhsm]


def put_pin(site: FaultSite, pin: str) -> str:
    path = site.directory / "tokens" / "soft" / "pin"
    old = path.read_text()
    path.write_text(pin)
    path.chmod(0o600)
    return old


def locked_reason(site: FaultSite) -> str:
    """Ask until the token is not merely starting; what the client is told then."""
    deadline = time.monotonic() + 20
    with site.wire() as wire:
        while True:
            try:
                wire.sign("scratch")
            except RefusedError as refused:
                if refused.reason != "TOKEN_UNAVAILABLE" or time.monotonic() > deadline:
                    return refused.reason if refused.code == "FAILED_PRECONDITION" else str(refused)
                time.sleep(0.05)
            else:
                return "signed"


@pytest.mark.parametrize("lockout", ["none", ""])
def test_wrong_pin_is_tried_once_over_many_restarts(lockout: str, new_site: Callable[..., FaultSite]) -> None:
    site = new_site(lockout=lockout)
    site.soft.rule("C_Login", "lockout", 3)
    right = put_pin(site, "not-the-pin\n")
    for _ in range(4):
        site.deployment.start()
        assert locked_reason(site) == "TOKEN_LOCKED"
        assert "not-the-pin" not in site.deployment.stderr
        assert site.deployment.stop() == 0
    assert [call.rv for call in site.soft.logins()] == [pkcs11_shim.CKR_PIN_INCORRECT]
    # The operator puts the PIN right and removes the latch, as the message says.
    put_pin(site, right)
    (site.state_dir("soft") / "pin-attempt.latch").unlink()
    site.deployment.start()
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
    assert [call.rv for call in site.soft.logins()] == [pkcs11_shim.CKR_PIN_INCORRECT, pkcs11_shim.CKR_OK]


def test_wrong_pin_is_tried_once_however_often_the_host_is_killed(site: FaultSite) -> None:
    from fault_processes import children

    put_pin(site, "not-the-pin\n")
    site.deployment.start()
    assert locked_reason(site) == "TOKEN_LOCKED"
    for _ in range(3):
        for pid in children(site.daemon_pid):
            os.kill(pid, 9)
        time.sleep(0.7)
        assert locked_reason(site) == "TOKEN_LOCKED"
    assert len(site.soft.logins()) == 1


def test_the_last_try_is_never_taken(new_site: Callable[..., FaultSite]) -> None:
    """The device says that one try is left: the daemon does not log in even with the right PIN."""
    site = new_site(lockout="")
    site.soft.rule("C_Login", "lockout", 1)
    site.deployment.start()
    assert locked_reason(site) == "TOKEN_LOCKED"
    assert site.soft.logins() == []


def test_a_locked_token_does_not_hold_up_the_others(new_site: Callable[..., FaultSite]) -> None:
    site = new_site(two_tokens=True)
    site.soft.rule("C_Login", "rv", pkcs11_shim.CKR_PIN_LOCKED)
    site.deployment.start()
    with site.wire() as wire:
        wire.sign_until_it_works("steady")
    assert locked_reason(site) == "TOKEN_LOCKED"
    assert len(site.soft.logins()) == 1
