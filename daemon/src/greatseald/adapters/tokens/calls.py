"""Sign calls, and how their operations travel: grouped on the way to a host, sorted out on the way back.

A `Group` is what was asked for in one tick of the loop for one key and algorithm, by one call or
many. A `Frame` is a group, or a part of one, that a host has. Every position is delivered once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from greatseal.algorithms import Algorithm
from greatseald.ports.tokens import NotSigned, Operation, SignResult


class Call:
    """One `sign` call: an asynchronous iterator over its results as they come."""

    __slots__ = ("_chunks", "_left", "_waiter")

    def __init__(self, operations: int) -> None:
        self._left = operations
        self._chunks: deque[list[SignResult]] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def deliver(self, results: list[SignResult]) -> None:
        """Add results; wakes whoever waits for them."""
        self._left -= len(results)
        self._chunks.append(results)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> AsyncIterator[list[SignResult]]:
        return self

    async def __anext__(self) -> list[SignResult]:
        while not self._chunks:
            if self._left <= 0:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._chunks.popleft()


@dataclass(slots=True)
class Group:
    """Operations for one key and algorithm, of one or more calls: (call, number of its operations, their first position)."""

    uri: str
    algorithm: Algorithm
    operations: list[Operation] = field(default_factory=list)
    owners: list[tuple[Call, int, int]] = field(default_factory=list)
    movable: bool = False

    def fail(self, detail: str, *, retry: bool, locked: bool) -> None:
        """Answer every operation: certainly not signed."""
        for call, length, first in self.owners:
            call.deliver([NotSigned(first + n, False, 0, detail, 0, retry, locked) for n in range(length)])

    def split(self, count: int) -> Group:
        """Take the first `count` operations out into a group of their own."""
        taken = Group(self.uri, self.algorithm, self.operations[:count], movable=self.movable)
        del self.operations[:count]
        left = count
        while left:
            call, length, first = self.owners[0]
            part = min(left, length)
            taken.owners.append((call, part, first))
            if part == length:
                del self.owners[0]
            else:
                self.owners[0] = (call, length - part, first + part)
            left -= part
        return taken


@dataclass(slots=True)
class Frame:
    """A Sign frame that the host has: which of its positions are not answered yet."""

    group: Group
    open: set[int]
    message_bytes: int = 0

    def deliver(self, results: Sequence[SignResult]) -> int:
        """Hand results to their calls, each position once; returns how many were ours."""
        fresh = [result for result in results if result.position in self.open]
        self.open.difference_update(result.position for result in fresh)
        if len(self.group.owners) == 1:
            call, _, first = self.group.owners[0]
            if fresh:
                call.deliver(fresh if first == 0 else [r._replace(position=r.position + first) for r in fresh])
            return len(fresh)
        fresh.sort(key=_position)
        at = start = 0
        for call, length, first in self.group.owners:
            mine: list[SignResult] = []
            while at < len(fresh) and fresh[at].position < start + length:
                mine.append(fresh[at]._replace(position=fresh[at].position - start + first))
                at += 1
            start += length
            if mine:
                call.deliver(mine)
        return len(fresh)


def _position(result: SignResult) -> int:
    return result.position
