"""The outbox: delivers every entry of the log to sinks, in order, at least once, never on the release path.

Each sink has a task and a cursor of its own. A batch is delivered, then the cursor moves: a crash between
the two delivers the batch again, and nothing is ever left out. A sink that does not take its batch is
tried again, with growing pauses, for ever, and so is a log that cannot be read, or in which somebody has
edited an entry; how far it is behind is a metric, and the log keeps what it has not taken. Signing knows
nothing of all this.

    outbox = Outbox(name="siem", sink=..., cursor=..., format_entry=..., log=log, metrics=metrics)
    outbox.begin()
    await outbox.run()      # until cancelled
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import structlog

from greatseald.domain.errors import EntryPruned, LogUnavailable
from greatseald.ports.sinks import SinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from greatseald.app.audit import AuditLog
    from greatseald.ports.sinks import Cursor, Format, Record, Sink

_log = structlog.get_logger("greatseald.outbox")

_IDLE_SECONDS: Final = 0.25
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 60.0
_REMIND_SECONDS: Final = 300.0
_KEPT_INTENTS: Final = 8192
"""Intents are kept until their outcomes come by; an older one is read again."""


class OutboxMetrics(Protocol):
    """What an outbox reports."""

    def watch_outbox(self, outbox: str, behind: Callable[[], float]) -> None:
        """Ask `behind`, at each scrape, how many entries were not delivered yet."""
        ...

    def outbox_delivered(self, outbox: str, entries: int) -> None:
        """So many entries were delivered."""
        ...

    def outbox_failed(self, outbox: str) -> None:
        """A delivery failed; it will be tried again."""
        ...


class _Closed(msgspec.Struct):
    index: int


class _Kind(msgspec.Struct):
    """What the outbox itself reads of an entry."""

    t: str
    intent: _Closed | None = None


_kind = msgspec.json.Decoder(_Kind)


class Outbox:
    """Follows the log for one sink. Belongs to the event loop."""

    def __init__(
        self,
        *,
        name: str,
        sink: Sink,
        cursor: Cursor,
        format_entry: Format,
        log: AuditLog,
        metrics: OutboxMetrics,
        types: Collection[str],
        batch: int,
    ) -> None:
        """Follow `log` from where `cursor` stands; only entries whose type is in `types` are delivered."""
        self._name = name
        self._sink = sink
        self._cursor = cursor
        self._format = format_entry
        self._log = log
        self._metrics = metrics
        self._types = frozenset(types)
        self._batch = batch
        self._intents: OrderedDict[int, bytes] = OrderedDict()
        self._at = 0

    def begin(self) -> None:
        """Find where to go on. Reads a small file.

        Raises:
            SinkError: the cursor cannot be read, or is beyond the log.
        """
        self._at = self._cursor.read()
        if self._at > self._log.size:
            message = (
                f"outbox {self._name} has delivered {self._at} entries, and the log has {self._log.size}: its cursor is "
                "another log's, or the log was cut. Remove the cursor to deliver from the beginning"
            )
            raise SinkError(message)

    async def run(self) -> None:
        """Deliver until cancelled."""
        self._metrics.watch_outbox(self._name, lambda: max(0, self._log.size - self._at))
        try:
            while True:
                if self._at >= self._log.size:
                    await asyncio.sleep(_IDLE_SECONDS)
                    continue
                await self._skip_pruned()
                end = min(self._at + self._batch, self._log.size)
                await self._deliver(self._at, end)
                self._at = end
        finally:
            await self._sink.close()

    @property
    def name(self) -> str:
        """The outbox's name."""
        return self._name

    @property
    def position(self) -> int:
        """The index of the next entry to be delivered."""
        return self._at

    async def _skip_pruned(self) -> None:
        """Begin behind what was pruned before this outbox came: nothing that an outbox still waits for is pruned."""
        if self._at == 0 and (pruned := await self._pruned_size()):
            _log.warning("outbox_begins_after_pruned", outbox=self._name, first_index=pruned)
            self._at = pruned

    async def _pruned_size(self) -> int:
        try:
            return await self._log.pruned_size()
        except LogUnavailable:
            return 0  # the delivery that follows says so

    async def _deliver(self, start: int, end: int) -> None:
        """Deliver entries `start` to `end` (excluded), as often as it takes."""
        records: list[Record] | None = None
        pause, failures, reminded = _FIRST_PAUSE, 0, 0.0
        loop = asyncio.get_running_loop()
        while True:
            try:
                if records is None:
                    records = await self._records(start, end)
                if records:
                    await self._sink.deliver(records)
                await asyncio.to_thread(self._cursor.write, end)
            except (SinkError, LogUnavailable) as error:
                failures += 1
                self._metrics.outbox_failed(self._name)
                if failures == 1 or loop.time() - reminded > _REMIND_SECONDS:
                    reminded = loop.time()
                    _log.error(
                        "outbox_failing",
                        outbox=self._name,
                        next_index=start,
                        behind=self._log.size - start,
                        failures=failures,
                        why=str(error),
                    )
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, guards nothing
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            if failures:
                _log.info("outbox_recovered", outbox=self._name, failures=failures, behind=self._log.size - end)
            self._metrics.outbox_delivered(self._name, len(records))
            return

    async def _records(self, start: int, end: int) -> list[Record]:
        entries = await self._log.entries(start, end)
        wanted: list[tuple[int, bytes, bytes | None]] = []
        for index, entry in enumerate(entries, start):
            try:
                kind = _kind.decode(entry)
            except msgspec.MsgspecError as error:
                raise _altered(index, error) from error
            intent: bytes | None = None
            if kind.t == "intent":
                self._keep(index, entry)
            elif kind.t == "outcome" and kind.intent is not None:
                intent = await self._intent(kind.intent.index)
            if kind.t in self._types:
                wanted.append((index, entry, intent))
        # On a thread: formatting a batch would hold up the loop for milliseconds.
        return await asyncio.to_thread(lambda: [self._formatted(*each) for each in wanted])

    def _formatted(self, index: int, entry: bytes, intent: bytes | None) -> Record:
        try:
            return self._format(index, entry, intent)
        except Exception as error:  # an entry that no daemon wrote may fail in any way
            raise _altered(index, error) from error

    def _keep(self, index: int, entry: bytes) -> None:
        self._intents[index] = entry
        if len(self._intents) > _KEPT_INTENTS:
            self._intents.popitem(last=False)

    async def _intent(self, index: int) -> bytes | None:
        known = self._intents.pop(index, None)
        if known is not None:
            return known
        try:
            found = await self._log.entries(index, index + 1)
        except EntryPruned:
            return None
        return found[0] if found else None


def _altered(index: int, error: Exception) -> LogUnavailable:
    return LogUnavailable(
        f"entry {index} of the log, or the intent that it closes, is not as a daemon writes it "
        f"({type(error).__name__}: {error}): the database was altered"
    )
