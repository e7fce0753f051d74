"""Any order of sign, retry, cancel, kill -9, reload and restart: the promises hold after each step.

Hypothesis chooses the steps against a real daemon with SoftHSM behind the shim; the clients' memory,
the log and what the token really signed are compared as in the other fault tests. The seed is
printed. GREATSEAL_FAULT_SEED repeats a choice of steps, GREATSEAL_MACHINE_EXAMPLES makes a longer run
(3 installations of 10 steps by default; 60 take about ten minutes).
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fault_history import Asked, Auditor, Load
from fault_processes import token_hosts
from fault_site import FaultSite, RefusedError, digest_request, item_refusal, refusal
from greatseal.ids import new_request_id
from greatseal.v1 import signing_pb2, signing_pb2_grpc

pytestmark = [pytest.mark.shim, pytest.mark.softhsm, pytest.mark.slow, pytest.mark.timeout(1800)]

KEY = "scratch"
RETRIED = {"UNAVAILABLE", "ABORTED"}
SECONDS = 40.0


class Machine(RuleBasedStateMachine):
    """One installation, its clients and an auditor who reads along."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="greatseal-machine-")
        self.site = FaultSite(Path(self.directory.name))
        self.load, self.auditor = Load(self.site, random.Random(0)), Auditor(self.site)
        self.allowed = True
        self.channel: grpc.Channel | None = None
        self.told: RefusedError | None = None
        self.under_way: list[grpc.Future] = []

    @initialize()
    def start(self) -> None:
        self._start()

    # -- what clients do

    @rule(count=st.integers(1, 20))
    def sign(self, count: int) -> None:
        """A new unary call or batch, repeated with the same ids until it is answered."""
        self._ask(self._new(count))

    @precondition(lambda self: self.load.asked)
    @rule(choice=st.integers(0, 1 << 30), count=st.integers(1, 8))
    def retry(self, choice: int, count: int) -> None:
        """Ids that were used before, answered, refused, cancelled or lost in a crash."""
        rng = random.Random(choice)
        self._ask(rng.sample(sorted(self.load.asked), min(count, len(self.load.asked))))

    @precondition(lambda self: self.allowed and any(asked.acknowledged for asked in self.load.asked.values()))
    @rule(choice=st.integers(0, 1 << 30))
    def reuse(self, choice: int) -> None:
        """The id of an answered request with another digest is refused."""
        answered = sorted(name for name, asked in self.load.asked.items() if asked.acknowledged)
        request = digest_request(KEY, os.urandom(32), answered[choice % len(answered)])
        with pytest.raises(grpc.RpcError) as caught:
            self._stub().SignDigest(request, timeout=SECONDS)
        assert refusal(caught.value).reason == "REQUEST_ID_REUSED"

    @rule(milliseconds=st.sampled_from([0, 1, 2, 4, 8]), count=st.integers(1, 30))
    def cancel(self, milliseconds: int, count: int) -> None:
        """A caller goes away. What was begun goes on, and its id fetches the answer later."""
        call = self._stub().BatchSign.future(self._batch(self._new(count)), timeout=SECONDS)
        time.sleep(milliseconds / 1000)
        call.cancel()

    @rule(count=st.integers(1, 30))
    def leave_under_way(self, count: int) -> None:
        """A call that is not waited for, so that what comes next meets it."""
        self.under_way.append(self._stub().BatchSign.future(self._batch(self._new(count)), timeout=SECONDS))

    # -- what happens to the daemon

    @rule(milliseconds=st.sampled_from([0, 2, 10]))
    def kill(self, milliseconds: int) -> None:
        self._wait_for_token()
        time.sleep(milliseconds / 1000)
        self.site.deployment.kill()
        self._start()

    @rule()
    def kill_host(self) -> None:
        self._wait_for_token()
        for pid in token_hosts(self.site.daemon_pid):
            os.kill(pid, 9)

    @rule()
    def restart(self) -> None:
        assert self.site.deployment.stop() == 0
        self._start()

    @rule()
    def reload(self) -> None:
        """Takes the right to the key away, or gives it back. It holds from the next call on."""
        self.allowed = not self.allowed
        before, after = ("release", KEY) if self.allowed else (KEY, "release")
        actions = r'^actions = \["sign", "signBlind", "readKeys"\]\n'
        self.site.deployment.edit(rf'({actions}keys = )\["{before}"\]', rf'\1["{after}"]')
        self.site.deployment.reload()

    # -- what holds

    @invariant()
    def log_grows_and_agrees(self) -> None:
        """Every entry that was read before is still there, under a head that covers what was released."""
        if self.site.deployment.process is None:
            return
        with self.site.wire() as wire:
            self.auditor.read(wire)
        for size, head in self.load.heads.items():
            assert self.auditor.roots.get(size) == head.root, f"the log does not extend the checkpoint of {size}"

    def teardown(self) -> None:
        try:
            if self.site.deployment.process is not None:
                self._judge()
        finally:
            self._hang_up()
            self.site.close()
            self.directory.cleanup()

    def _judge(self) -> None:
        if not self.allowed:
            self.reload()
        self._ask(sorted(self.load.asked))
        assert all(asked.acknowledged for asked in self.load.asked.values())
        assert self.site.deployment.stop() == 0
        self._start()
        with self.site.wire() as wire:
            self.auditor.read(wire)
        self.auditor.check_all_closed()
        self.auditor.compare(self.load, self.site.soft)

    # -- how

    def _new(self, count: int) -> list[str]:
        names = [new_request_id() for _ in range(count)]
        self.load.asked |= {name: Asked(KEY, os.urandom(32)) for name in names}
        return names

    def _batch(self, names: list[str]) -> signing_pb2.BatchSignRequest:
        request = signing_pb2.BatchSignRequest()
        for name in names:
            request.items.add().digest.CopyFrom(digest_request(KEY, self.load.asked[name].digest, name))
        return request

    def _ask(self, names: list[str]) -> None:
        """Ask until each has an answer that is final: a signature, or that the caller may not."""
        deadline = time.monotonic() + SECONDS
        for start in range(0, len(names), 1000):
            waiting = names[start : start + 1000]
            while waiting:
                assert time.monotonic() < deadline, f"{len(waiting)} requests have no answer: {self.told}"
                waiting = self._attempt(waiting)
                if waiting:
                    time.sleep(0.05)

    def _attempt(self, names: list[str]) -> list[str]:
        """One call; returns the ids that the daemon says may be asked again."""
        try:
            answer = self._stub().BatchSign(self._batch(names), timeout=SECONDS)
        except grpc.RpcError as error:
            self.told = refused = refusal(error)
            assert refused.code in RETRIED, f"a client was told {refused}"
            return names
        again = []
        for name, result in zip(names, answer.results, strict=True):
            asked = self.load.asked[name]
            if result.HasField("error"):
                again += self._refused(name, item_refusal(result.error))
                continue
            assert self.allowed, f"{name} was signed for a caller who may not"
            assert not asked.acknowledged or result.signature.replayed, f"{name} was acknowledged and is not known"
            self.load._took(digest_request(KEY, asked.digest, name), result.signature, answer.checkpoint)
        return again

    def _refused(self, name: str, refused: RefusedError) -> list[str]:
        if refused.reason == "ACCESS_DENIED":
            assert not self.allowed, f"{name} was refused to a caller who may"
            return []
        self.told = refused
        assert refused.code in RETRIED, f"a client was told {refused}"
        return [name]

    def _stub(self) -> signing_pb2_grpc.SigningServiceStub:
        if self.channel is None:
            address, credentials = self.site.deployment.address, self.site.credentials
            self.channel = grpc.secure_channel(address, credentials, options=[("grpc.enable_retries", 0)])
        return signing_pb2_grpc.SigningServiceStub(self.channel)

    def _wait_for_token(self) -> None:
        """Wait until it is logged in: SoftHSM rewrites its token's file at login in place, and a kill would lose the token."""
        deadline = time.monotonic() + SECONDS
        while not self.site.metric(r'^greatseald_token_state{.*"ready".* 1'):
            assert time.monotonic() < deadline, "the token does not come back"
            time.sleep(0.02)

    def _start(self) -> None:
        self._hang_up()
        self.site.deployment.start()

    def _hang_up(self) -> None:
        """Wait for the calls that were left under way; what they brought is on record or to be asked again."""
        for call in self.under_way:
            call.exception()
        self.under_way.clear()
        if self.channel is not None:
            self.channel.close()
            self.channel = None


def test_promises_hold_in_any_order_of_events() -> None:
    number = int(os.environ.get("GREATSEAL_FAULT_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"GREATSEAL_FAULT_SEED={number}")
    chosen = settings(
        max_examples=int(os.environ.get("GREATSEAL_MACHINE_EXAMPLES", "3")),
        stateful_step_count=10,
        # A step happens in real time: what was found is not found again by running a smaller part of it.
        phases=[Phase.generate],
        derandomize=False,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(number)(Machine), settings=chosen)
