"""A key whose token gave a wrong answer stays halted until an operator releases it, restarts included."""

from __future__ import annotations

import json
import os

import pytest

from fault_site import FaultSite, RefusedError

pytestmark = pytest.mark.shim
HALTED = 3


def admin_entries(site: FaultSite) -> list[dict]:
    with site.wire() as wire:
        entries = [json.loads(entry) for entry in wire.entries()]
    return [entry["info"] for entry in entries if entry["t"] == "admin" and entry["what"] == "key"]


def halt(site: FaultSite) -> None:
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
        digest = os.urandom(32)
        site.soft.rule("C_Sign", "flip", times=1, digest=digest)
        with pytest.raises(RefusedError):
            wire.sign("scratch", digest)


def test_a_halt_holds_across_restarts_until_it_is_released_and_the_log_tells_all_of_it(site: FaultSite):
    deployment = site.deployment
    deployment.start()
    halt(site)
    deployment.kill()  # nothing may depend on an orderly end
    deployment.start()
    with site.wire() as wire:
        assert wire.key("scratch").state == HALTED
        with pytest.raises(RefusedError) as caught:
            wire.sign("scratch")
        assert caught.value.reason == "KEY_HALTED"

    unknown = deployment.daemon("key", "release", "nobody")
    assert (unknown.returncode, "there is no key keys/nobody" in unknown.stderr) == (2, True), unknown.stderr
    done = deployment.daemon("key", "release", "scratch", "--reason", "module replaced", "--json")
    assert done.returncode == 0, done.stderr
    released = json.loads(done.stdout)
    assert "does not verify" in released["halted"]
    again = deployment.daemon("key", "release", "keys/scratch")
    assert (again.returncode, "is not halted" in again.stderr) == (2, True), again.stderr

    with site.wire() as wire:
        assert wire.sign("scratch").signature
    assert deployment.stop() == 0
    deployment.start()
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
    told = [(info["state"], info["why"]) for info in admin_entries(site)]
    assert [state for state, _ in told] == ["halted", "halted", "released"]
    assert told[2][1] == "module replaced"
    assert admin_entries(site)[2]["spki_sha256"] == released["spki_sha256"]


def test_a_list_of_halted_keys_that_cannot_be_read_stops_the_start(site: FaultSite):
    deployment = site.deployment
    deployment.start()
    halt(site)
    assert deployment.stop() == 0
    (remembered,) = (deployment.directory / "anchor").glob("*.halted")
    assert remembered.stat().st_mode & 0o777 == 0o600
    remembered.write_text("{}")
    deployment.start(wait=False)
    assert deployment.wait_exit() == 5
    assert str(remembered) in deployment.stderr


def test_without_a_daemon_the_operator_is_told_so(site: FaultSite):
    for command in (("key", "release", "scratch"), ("reload",)):
        done = site.deployment.daemon(*command)
        assert done.returncode == 5
        assert "no daemon listens" in done.stderr
