"""A token that fails is left alone for a growing while, then tried with one operation."""

from __future__ import annotations

from greatseald.adapters.tokens.breaker import Breaker
from greatseald.ports.tokens import BreakerState


def test_two_failures_restart_at_once_and_the_third_opens():
    breaker = Breaker()
    assert [breaker.failed(), breaker.failed()] == [0.0, 0.2]
    assert (breaker.state, breaker.open, breaker.trying) == (BreakerState.CLOSED, False, True)
    assert breaker.failed() == 1.0
    assert (breaker.state, breaker.open) == (BreakerState.OPEN, True)


def test_a_fresh_host_makes_it_half_open_and_only_a_success_closes_it():
    breaker = Breaker()
    for _ in range(3):
        breaker.failed()
    breaker.probe()
    assert (breaker.state, breaker.open, breaker.trying) == (BreakerState.HALF_OPEN, False, True)
    assert breaker.failed() == 2.0
    assert breaker.state is BreakerState.OPEN
    breaker.probe()
    breaker.succeeded()
    assert (breaker.state, breaker.trying) == (BreakerState.CLOSED, False)


def test_a_healthy_token_is_never_half_open():
    breaker = Breaker()
    breaker.probe()
    assert breaker.state is BreakerState.CLOSED


def test_the_pause_has_a_longest():
    assert [Breaker(2.0).failed() for _ in range(1)] == [0.0]
    breaker = Breaker(2.0)
    assert max(breaker.failed() for _ in range(20)) == 2.0
