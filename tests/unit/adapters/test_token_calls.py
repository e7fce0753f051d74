"""Operations grouped, split and sorted out again: every call gets its own results, under its own positions."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from greatseal.algorithms import Algorithm
from greatseald.adapters.tokens.breaker import Breaker
from greatseald.adapters.tokens.calls import Call, Frame, Group
from greatseald.ports.tokens import NotSigned, Operation, Signed, SignResult


async def _drain(call: Call) -> list[SignResult]:
    return [result async for chunk in call for result in chunk]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.lists(st.integers(1, 12), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_every_call_gets_each_of_its_positions_once_however_its_group_was_cut(sizes, cuts, random):
    async def run() -> None:
        calls = [Call(size) for size in sizes]
        group = Group("uri", Algorithm.ECDSA_P256_SHA256)
        tbs = {}
        for number, (call, size) in enumerate(zip(calls, sizes, strict=True)):
            group.owners.append((call, size, 0))
            for position in range(size):
                name = f"{number}.{position}".encode()
                group.operations.append(Operation(0, b"", name))
                tbs[number, position] = name
        while group.operations:
            taken = group.split(min(len(group.operations), random.choice(cuts)))
            frame = Frame(taken, set(range(len(taken.operations))))
            positions = list(range(len(taken.operations)))
            random.shuffle(positions)
            while positions:
                part = [positions.pop() for _ in range(min(len(positions), random.randint(1, 5)))]
                results = [Signed(position, taken.operations[position].tbs, 1) for position in part]
                assert frame.deliver(results) == len(part)
                assert frame.deliver(results) == 0  # a host that answers twice is heard once
            assert not frame.open
        for number, call in enumerate(calls):
            results = await asyncio.wait_for(_drain(call), 5)
            assert {result.position: result.signature for result in results} == {
                position: tbs[number, position] for position in range(sizes[number])
            }

    asyncio.run(run())


def test_a_group_that_no_host_has_fails_as_certainly_not_signed():
    async def run() -> None:
        calls = [Call(2), Call(1)]
        group = Group(
            "uri", Algorithm.ECDSA_P256_SHA256, [Operation(0, b"", b"")] * 3, [(calls[0], 2, 0), (calls[1], 1, 0)]
        )
        group.fail("gone", retry=True, locked=False)
        for call, positions in zip(calls, ([0, 1], [0]), strict=True):
            results = await _drain(call)
            assert [result.position for result in results] == positions
            assert all(isinstance(result, NotSigned) and not result.unknown and result.retry for result in results)

    asyncio.run(run())


def test_a_token_that_keeps_failing_is_left_alone_longer_and_longer_but_never_for_good():
    breaker = Breaker()
    delays = [breaker.failed() for _ in range(50)]
    assert delays[0] == 0
    assert delays == sorted(delays)
    assert max(delays) == delays[-1] <= 30
    assert breaker.open
    breaker.succeeded()
    assert not breaker.open
    assert not breaker.trying


def test_the_breaker_stays_closed_for_a_crash_or_two():
    breaker = Breaker()
    breaker.failed()
    breaker.failed()
    assert breaker.trying
    assert not breaker.open
    breaker.failed()
    assert breaker.open
