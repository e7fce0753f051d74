"""Which token does what: the operations of a key that several tokens can do go where they are done soonest.

    lanes = [Lane(backlog=4, seconds=0.1), Lane(backlog=0, seconds=0.1)]
    spread(6, lanes)        # [1, 5]: both have five then

Pure arithmetic over a snapshot: what a token has before it, how long it takes for one operation, and
for how long it has been late. A token that was never measured is taken to be as fast as the fastest
that was, so that it is tried.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Lane:
    """A way to a signature: the operations before it, and the seconds from one result to the next (0: not measured).

    `late` is for how many seconds its next result has been overdue; `limit` is how many operations
    more it may get, None for any number; 0 takes it out.
    """

    backlog: int
    seconds: float
    late: float = 0.0
    limit: int | None = None

    def unlimited(self) -> Lane:
        """The same without its limit."""
        return replace(self, limit=None)


def spread(count: int, lanes: Sequence[Lane]) -> list[int]:
    """Return how many of `count` operations each lane gets, so that the last is done as early as can be.

    The sum is `count`, or less where every lane has reached its limit. Of equal lanes the first is preferred.
    """
    measured = [lane.seconds for lane in lanes if lane.seconds > 0]
    fastest = min(measured, default=1.0)
    paces = [lane.seconds if lane.seconds > 0 else fastest for lane in lanes]
    shares = [0] * len(lanes)
    # (when the lane's next operation would be done, the lane)
    queue = [
        (lane.late + (lane.backlog + 1) * pace, number)
        for number, (lane, pace) in enumerate(zip(lanes, paces, strict=True))
        if lane.limit is None or lane.limit > 0
    ]
    heapq.heapify(queue)
    left = count
    while left and queue:
        done, number = queue[0]
        shares[number] += 1
        left -= 1
        limit = lanes[number].limit
        if limit is not None and shares[number] >= limit:
            heapq.heappop(queue)
        else:
            heapq.heapreplace(queue, (done + paces[number], number))
    return shares
