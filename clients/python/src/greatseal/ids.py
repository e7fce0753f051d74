"""Request ids: UUIDs of version 7 (RFC 9562, 5.7), ordered by time and unique within a process.

The daemon keeps one index over request ids, and ids that arrive in the order of time keep it
cheap. Ids made by one process are strictly increasing, also across threads and when the clock is
set back: the 12 bits of `rand_a` and the 14 bits below the variant count within a millisecond
(RFC 9562, 6.2, method 2), and a full counter borrows the next millisecond.

    new_request_id()        # '01926e4a-7d1c-7003-8a51-2b6f0c9d4e77'
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Final

_COUNTER_BITS: Final = 26
_SEED_BITS: Final = 24


class RequestIds:
    """A source of increasing UUIDv7; safe to use from several threads.

    Args:
        clock: nanoseconds since 1970; the process's own clock by default.
        random: n random bytes; the operating system's by default.
    """

    def __init__(self, clock: Callable[[], int] = time.time_ns, random: Callable[[int], bytes] = os.urandom) -> None:
        self._clock = clock
        self._random = random
        self._lock = threading.Lock()
        self._millisecond = -1
        self._counter = 0

    def new(self) -> uuid.UUID:
        """Return the next id, greater than every one before it from this source."""
        random = int.from_bytes(self._random(10), "big")
        with self._lock:
            now = self._clock() // 1_000_000
            if now > self._millisecond:
                # The counter starts below a quarter of its range, so that it has room to count.
                self._millisecond, self._counter = now, random >> (80 - _SEED_BITS)
            else:
                self._counter += 1
                if self._counter >> _COUNTER_BITS:
                    self._millisecond, self._counter = self._millisecond + 1, 0
            millisecond, counter = self._millisecond, self._counter
        value = (millisecond & (1 << 48) - 1) << 80
        value |= 0x7 << 76 | counter >> 14 << 64
        value |= 0b10 << 62 | (counter & 0x3FFF) << 48 | random & (1 << 48) - 1
        return uuid.UUID(int=value)


_ids = RequestIds()
# A child of fork shares the counter but not the future: it reads fresh random bits for each id, and
# takes a new source, so that a lock held at the moment of the fork cannot hang it.
if hasattr(os, "register_at_fork"):  # pragma: no branch

    def _renew() -> None:
        global _ids  # noqa: PLW0603 - the one source of this process
        _ids = RequestIds()

    os.register_at_fork(after_in_child=_renew)


def new_request_id() -> str:
    """Return a new UUIDv7 as text, greater than every one before it in this process."""
    return str(_ids.new())
