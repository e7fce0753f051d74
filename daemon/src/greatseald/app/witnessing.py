"""Gathers cosignatures of witnesses on checkpoints, beside the signing path.

A round is one checkpoint that every witness is asked to cosign, each on its own: one that does not answer holds up
nobody but who wants its signature. Without anybody waiting there is a round now and then, if the log has grown.
Whoever must have cosignatures (`cover`) has a round begun at once, and shares it with all who came meanwhile. A new
round begins when the one before has what keys ask for, or all its answers; a witness that was busy joins the newest.

    covered = await witnessing.cover(size, wanted=2, until=deadline)     # None where they did not answer in time
    note = witnessing.note(head)                                          # with the lines that there are

A witness that has seen another history ends the signing (`Standing`); one that cannot be reached is an alarm.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from greatseal.checkpoint import read_unverified
from greatseald.app.alarms import FIRST_PAUSE, Alarm, Contradiction
from greatseald.app.cosigning import Ahead, Disagrees, cosign
from greatseald.app.recovery import WAY_OUT
from greatseald.domain.errors import LogUnavailable
from greatseald.ports.sightings import OutsideUnreachable, SightingsUnusable

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from greatseald.app.alarms import OutsideMetrics
    from greatseald.app.audit import AuditLog
    from greatseald.app.standing import Standing
    from greatseald.app.writer import SignedHead
    from greatseald.ports.sightings import Sightings, Witness

_log = structlog.get_logger("greatseald.anchors")

_KEPT_ROUNDS: Final = 64
_TRIES: Final = 3
_OFTEN: Final = 2
"""Nobody waits for a witness that failed so often without an answer between."""

_MAX_WAITING: Final = 128
"""Calls that wait for witnesses at once: they are calls being served, of which other keys need theirs."""

_PATIENCE_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.25
"""While somebody waits, witnesses that failed are tried again about once a second; this is how often that is looked at."""

WITNESS: Final = "witness"


@dataclass(slots=True)
class Covered:
    """A checkpoint, with the cosignature lines of those witnesses that have answered, by name."""

    head: SignedHead
    lines: dict[str, str] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """The signed note with its cosignatures."""
        return self.head.note + "".join(self.lines.values())


class _Asked:
    """One witness: what it has cosigned as far as we know, and how it does."""

    def __init__(self, witness: Witness, alarm: Alarm) -> None:
        self.witness = witness
        self.name = witness.key.name
        self.alarm = alarm
        self.known = 0
        self.asking: Covered | None = None
        self.failed_at = float("-inf")
        self.rests_until = float("-inf")

    def is_hopeful(self, since: float) -> bool:
        """Whether it is worth waiting for: it answers as a rule, and has not failed since then."""
        return self.alarm.failures < _OFTEN and self.failed_at < since


class Witnessing:
    """The witnesses of one front. Belongs to the event loop."""

    def __init__(
        self,
        *,
        witnesses: Sequence[Witness],
        quorum: int,
        log: AuditLog,
        standing: Standing,
        sightings: Sightings,
        threads: Executor,
        metrics: OutsideMetrics,
        interval: float,
    ) -> None:
        """Ask `witnesses`; `quorum` is the most that any key waits for. Blocking exchanges run on `threads`."""
        self._quorum = quorum
        self._log = log
        self._standing = standing
        self._sightings = sightings
        self._threads = threads
        self._interval = interval
        self._asked = [_Asked(each, Alarm(WITNESS, each.key.name, metrics)) for each in witnesses]
        self._contradiction = Contradiction(WITNESS, standing, sightings, threads, metrics)
        self._rounds: OrderedDict[int, Covered] = OrderedDict()
        self._current: Covered | None = None
        self._wanted = 0
        """The size that somebody waits for to be cosigned."""
        self._waiting = 0
        self._poked = False
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._asked)

    def begin(self) -> None:
        """Take up from what is remembered. Reads a small file. Raises SightingsUnusable."""
        heads = self._sightings.read().heads
        for each in self._asked:
            if each.name in heads:
                each.known = read_unverified(heads[each.name]).size

    def note(self, head: SignedHead) -> str:
        """Return a checkpoint's note with the cosignatures that there are."""
        found = self._rounds.get(head.size)
        return found.note if found is not None else head.note

    async def ask_all(self) -> list[str]:
        """Ask every witness once about the newest checkpoint; return the names of those that did not answer."""
        for _ in range(_TRIES):
            await self._begin_round(eager=True)
            while any(each.asking for each in self._asked):
                await self._change(self._changed)
            if self._current is not None:  # nobody was ahead of us
                break
        return [each.name for each in self._asked if each.alarm.failures]

    async def run(self) -> None:
        """Have checkpoints cosigned until cancelled."""
        if not self._asked:
            return
        try:
            next_round = time.monotonic() + self._interval
            while True:
                changed = self._changed  # taken first, so that what changes meanwhile is not slept over
                if (self._waiting or self._poked) and self._is_settled():
                    self._poked = False
                    if self._current is None or self._current.head.size < self._wanted or self._has_idle():
                        await self._begin_round(eager=True)
                elif time.monotonic() >= next_round:
                    await self._begin_round(eager=False)
                    next_round = time.monotonic() + self._interval
                left = next_round - time.monotonic()
                await self._change(changed, min(left, _LOOK_SECONDS) if self._waiting else left)
        finally:
            for task in self._tasks:
                task.cancel()

    async def cover(self, size: int, wanted: int, until: float) -> Covered | None:
        """Return a checkpoint of at least `size` entries with as many cosignatures as could be had, `wanted` at best.

        Waits no longer than `until` (of time.monotonic), nor for witnesses that did not answer again and again or have
        failed meanwhile: those are tried again beside it. Where too many wait already, it does not wait at all.

        Raises:
            LogUnavailable: no checkpoint can be made.
        """
        arrived = time.monotonic()
        self._wanted = max(self._wanted, size)
        self._poked = True
        self._notify()
        self._waiting += 1
        try:
            while True:
                best = self._best(size)
                have = best.lines if best is not None else {}
                hopeful = sum(each.is_hopeful(arrived) for each in self._asked if each.name not in have)
                left = until - time.monotonic()
                over = left <= 0 or self._waiting > _MAX_WAITING or bool(self._standing.against)
                if len(have) >= wanted or len(have) + hopeful < wanted or over:
                    return best
                await self._change(self._changed, min(left, _PATIENCE_SECONDS))
        finally:
            self._waiting -= 1

    # ------------------------------------------------------------------------------------ rounds

    def _best(self, size: int) -> Covered | None:
        """The round at or beyond a size with the most cosignatures; of those the newest."""
        fitting = [each for each in self._rounds.values() if each.head.size >= size]
        return max(fitting, key=lambda each: (len(each.lines), each.head.size), default=None)

    def _is_settled(self) -> bool:
        """Whether the current round has what keys ask for, or nobody works on it any more."""
        current = self._current
        if current is None or len(current.lines) >= max(self._quorum, 1):
            return True
        return not any(each.asking is current for each in self._asked)

    def _has_idle(self) -> bool:
        """Whether a witness could be asked now that has not cosigned the current round, and did not just fail."""
        now = time.monotonic()
        return any(
            each.asking is None
            and self._current is not None
            and each.name not in self._current.lines
            and now - each.failed_at > FIRST_PAUSE
            for each in self._asked
        )

    async def _begin_round(self, *, eager: bool) -> None:
        # Of an empty log too: a witness that has seen entries of it says so.
        head = await self._log.checkpoint()
        current = self._rounds.get(head.size)
        if current is None:
            current = self._rounds[head.size] = Covered(head)
            if len(self._rounds) > _KEPT_ROUNDS:
                self._rounds.popitem(last=False)
        self._current = current
        for each in self._asked:
            if eager or time.monotonic() >= each.rests_until:
                self._ask(each)

    def _ask(self, asked: _Asked) -> None:
        """Ask a witness about the current round, unless it is busy or has answered."""
        current = self._current
        if current is None or asked.asking is not None or asked.name in current.lines or self._standing.against:
            return
        asked.asking = current
        task = asyncio.get_running_loop().create_task(self._ask_one(asked, current))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask_one(self, asked: _Asked, current: Covered) -> None:
        head = current.head
        answered = True
        try:
            line = await asyncio.get_running_loop().run_in_executor(self._threads, self._converse, asked, head)
        except Ahead as ahead:
            await self._catch_up(asked, ahead.size)
        except Disagrees as error:
            await self._contradict(asked, str(error))
        except (OutsideUnreachable, SightingsUnusable, LogUnavailable) as error:
            answered = False
            self._failed(asked, error)
        else:
            current.lines[asked.name] = line
            asked.known = head.size
            asked.alarm.answered(head.size)
        finally:
            asked.asking = None
            self._notify()
        if answered and self._current is not current:
            self._ask(asked)

    def _converse(self, asked: _Asked, head: SignedHead) -> str:
        """Ask, and remember the answer before anybody may count on it. Blocks."""
        found = cosign(asked.witness, asked.known, head.size, head.note, self._log.consistency_now)
        self._sightings.remember(asked.name, head.note + found.line)
        return found.line

    async def _catch_up(self, asked: _Asked, size: int) -> None:
        """The witness has cosigned more than we asked about: another front's entries, or entries that are gone."""
        if await self._log.size_for(size) >= size:
            asked.known = size
            self._current = None  # the next round has them
        else:
            await self._contradict(
                asked,
                f"witness {asked.name} has cosigned {size} entries, and the log has {self._log.size}: "
                f"the database is an older copy, and signing on it would fork the log. {WAY_OUT}",
            )

    async def _contradict(self, asked: _Asked, why: str) -> None:
        await self._contradiction.tell(asked.name, asked.name, why)

    def _failed(self, asked: _Asked, error: Exception) -> None:
        asked.alarm.failed(error)
        asked.failed_at = time.monotonic()
        asked.rests_until = asked.failed_at + asked.alarm.pause * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load

    # ----------------------------------------------------------------------------------- waiting

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @staticmethod
    async def _change(changed: asyncio.Event, seconds: float | None = None) -> None:
        """Wait until something has changed, or so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0.0) if seconds is not None else None):
                await changed.wait()
