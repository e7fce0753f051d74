"""Operations go where they are done soonest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from greatseald.domain.scheduling import Lane, spread


def test_equal_tokens_get_equal_shares():
    assert spread(100, [Lane(0, 0.1)] * 10) == [10] * 10


def test_a_faster_token_gets_more_and_a_busy_one_less():
    assert spread(9, [Lane(0, 0.1), Lane(0, 0.2)]) == [6, 3]
    assert spread(6, [Lane(4, 0.1), Lane(0, 0.1)]) == [1, 5]


def test_a_token_that_is_late_gets_nothing_while_others_are_sooner():
    assert spread(5, [Lane(0, 0.1, late=1.0), Lane(0, 0.1)]) == [0, 5]
    assert spread(20, [Lane(0, 0.1, late=1.0), Lane(0, 0.1)]) == [5, 15]


def test_a_token_that_was_never_measured_is_tried():
    assert spread(4, [Lane(0, 0.0), Lane(0, 0.1)]) == [2, 2]
    assert spread(4, [Lane(0, 0.0), Lane(0, 0.0)]) == [2, 2]


def test_a_token_that_is_tried_gets_one_and_one_that_is_out_none():
    assert spread(4, [Lane(0, 0.1, limit=1), Lane(0, 0.1), Lane(0, 0.1, limit=0)]) == [1, 3, 0]


def test_what_nobody_may_take_is_left_over():
    assert spread(4, [Lane(0, 0.1, limit=1)]) == [1]
    assert spread(4, []) == []


lanes = st.builds(
    Lane,
    st.integers(0, 50),
    st.sampled_from((0.0, 0.0001, 0.01, 0.1, 0.3)),
    late=st.sampled_from((0.0, 0.05, 2.0)),
    limit=st.sampled_from((None, 0, 1, 7)),
)


@given(st.integers(0, 120), st.lists(lanes, max_size=6))
def test_no_share_could_be_moved_to_a_token_that_would_be_done_sooner(count: int, chosen: list[Lane]):
    shares = spread(count, chosen)
    room = sum(count if lane.limit is None else lane.limit for lane in chosen)
    assert sum(shares) == min(count, room)
    paces = [lane.seconds or min((each.seconds for each in chosen if each.seconds), default=1.0) for lane in chosen]

    def done(number: int, share: int) -> float:
        return chosen[number].late + (chosen[number].backlog + share) * paces[number]

    for number, share in enumerate(shares):
        assert chosen[number].limit is None or share <= chosen[number].limit
        for other, lane in enumerate(chosen):
            if share and other != number and (lane.limit is None or shares[other] < lane.limit):
                assert done(number, share) <= done(other, shares[other] + 1) + 1e-9
