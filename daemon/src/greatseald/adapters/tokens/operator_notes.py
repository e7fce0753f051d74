"""Brings what operators did at a token's host into the audit log, each act once, and tells the host when it is there.

The host gets no work before that. Where the log cannot be written the host waits; an act that was written
and of which the host did not hear any more, because it ended, is known here when it tells of it again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from greatseald.adapters.tokens.connection import HostConnection
from greatseald.adapters.tokens.frames import ActsNoted
from greatseald.domain.errors import GreatsealError
from greatseald.ports.tokens import OperatorAct

OnAct = Callable[[str, OperatorAct], Awaitable[None]]
"""Writes what an operator did into the log; raises GreatsealError where it cannot."""

_PAUSE_SECONDS: Final = 1.0
_KNOWN: Final = 256


class OperatorNotes:
    """The acts at one token's hosts, one host after the other. Belongs to the event loop."""

    def __init__(self, token: str, write: OnAct | None, on_fault: Callable[[BaseException], None]) -> None:
        """Have acts at `token` written by `write`; `on_fault` hears of what must not happen."""
        self._token = token
        self._write = write
        self._on_fault = on_fault
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()
        self._known: deque[str] = deque(maxlen=_KNOWN)
        self._connection: HostConnection | None = None
        self._early: Sequence[OperatorAct] = ()

    def expect(self) -> None:
        """A new host is being brought up: what it tells before `attach` is kept until then."""
        self._connection, self._early = None, ()

    def attach(self, connection: HostConnection) -> None:
        """This is the way to the new host."""
        self._connection = connection
        acts, self._early = self._early, ()
        if acts:
            self.note(acts)

    def note(self, acts: Sequence[OperatorAct]) -> None:
        """Have acts written, and tell the host."""
        if self._connection is None:
            self._early = acts
        elif self._write is not None:
            task = asyncio.get_running_loop().create_task(self._note_all(self._write, self._connection, acts))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    async def finish(self) -> None:
        """Let what is on its way to the log get there; what cannot is the host's to tell again."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_PAUSE_SECONDS)

    async def _note_all(self, write: OnAct, connection: HostConnection, acts: Sequence[OperatorAct]) -> None:
        """Write each act once, whoever tells of it; what has begun is finished after the host has gone too."""
        async with self._lock:
            for act in acts:
                while act.id not in self._known:
                    try:
                        await write(self._token, act)
                        self._known.append(act.id)
                    except GreatsealError:  # said elsewhere: nothing is signed meanwhile, here or anywhere
                        await asyncio.wait((connection.lost,), timeout=_PAUSE_SECONDS)
                        if connection.lost.done():
                            return
                connection.send(ActsNoted([act.id]))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fault(error)
