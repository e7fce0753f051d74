"""When a call is sent again: the decision, without clock or network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greatseal import errors
from greatseal.retry import Backoff, Deadline


@pytest.mark.parametrize(
    "error",
    [
        errors.Denied("x"),
        errors.InvalidRequest("x"),
        errors.NotReady("x"),
        errors.DeadlineExceeded("x"),
        errors.Exhausted("x"),
        errors.DaemonFault("x"),
        errors.ConnectionRefused("x"),
        errors.InFlight("without RetryInfo"),
        errors.VerificationFailed("x"),
    ],
)
def test_everything_else_is_never_sent_again(error: errors.GreatsealError):
    assert Backoff().pause(error, 0, 1000.0) is None


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0.001, 3600))
def test_a_pause_is_positive_bounded_and_within_the_deadline(attempt: int, draw: float, remaining: float):
    pause = Backoff(draw=lambda: draw).pause(errors.Unavailable("x"), attempt, remaining)
    assert pause is None or 0 < pause < remaining
    assert pause is None or pause <= Backoff().maximum


def test_pauses_grow_and_two_callers_do_not_come_back_together():
    low, high = Backoff(draw=lambda: 0.0), Backoff(draw=lambda: 1.0)
    error = errors.Unavailable("x")
    lows = [low.pause(error, attempt, 1000) for attempt in range(8)]
    highs = [high.pause(error, attempt, 1000) for attempt in range(8)]
    assert lows == sorted(lows)
    assert lows[3] == 8 * lows[0]
    assert all(high > low for low, high in zip(lows, highs, strict=True))


@given(st.floats(0, 1))
def test_the_daemons_word_is_the_least_pause(draw: float):
    told = errors.InFlight("x", retry_after=2.0)
    pause = Backoff(draw=lambda: draw).pause(told, 0, 1000)
    assert pause is not None
    assert 2.0 <= pause <= 2.1


def test_a_wait_beyond_the_deadline_is_not_begun():
    assert Backoff().pause(errors.Unavailable("x", retry_after=31.0), 0, 30.0) is None
    assert Backoff().pause(errors.Unavailable("x"), 0, 0.0) is None


def test_a_deadline_that_passed_raises():
    now = [0.0]
    deadline = Deadline.after(5, clock=lambda: now[0])
    assert deadline.remaining() == 5
    now[0] = 5.0
    with pytest.raises(errors.DeadlineExceeded):
        deadline.remaining()
