"""The front's side of a token: starts or reaches its host, hands work over, replaces it when it fails.

    token = SupervisedToken(settings, on_state=log, on_fatal=stop_the_daemon)
    await token.start()
    async for results in token.sign("pkcs11:object=release", Algorithm.ECDSA_P256_SHA256, operations): ...

Invariants:
- every operation gets exactly one result. One that was handed over and not answered is `unknown`;
  one that was not handed over goes to the fresh host or fails as not unknown;
- the oldest frame that a host has must get an answer, at least in part, within the token's
  `operation_timeout`, else the host is killed; a client's deadline never reaches the host;
- only as much is handed over as the host does in a fraction of a second, so that little is
  `unknown` when it dies, and more only while it answers;
- what operators did at the host is in the log before the host gets work again: it waits for our word;
- no failure latches: a token that fails again and again is left alone for a growing while, then
  tried with one operation (`breaker.py`). A token locked by its PIN is the host's to watch;
- a token that was withdrawn gets nothing more and has no host, once the one that it had has finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from greatseal.algorithms import Algorithm
from greatseald.adapters.tokens import frames
from greatseald.adapters.tokens.breaker import breaker_of
from greatseald.adapters.tokens.calls import Call, Frame, Group
from greatseald.adapters.tokens.connection import HostConnection, HostLost, connect_host
from greatseald.adapters.tokens.frames import (
    FindKey,
    FromHost,
    Key,
    KeyRefused,
    NotReady,
    OperatorActs,
    Ping,
    Pong,
    Ready,
    Results,
    Sign,
    TouchWait,
)
from greatseald.adapters.tokens.operator_notes import OnAct, OperatorNotes
from greatseald.domain.errors import TokenLocked, TokenUnavailable
from greatseald.domain.tokens import TokenSettings
from greatseald.ports.tokens import (
    WITHDRAWN,
    NotSigned,
    Operation,
    SignResult,
    TokenInfo,
    TokenKey,
    TokenLoad,
    TokenState,
)

OnState = Callable[[str, TokenState, str], None]
OnTouch = Callable[[str, str], None]
OnFatal = Callable[[BaseException], None]

_START_SECONDS: Final = 30.0
"""Least time, in seconds, that a host has from its start until the token is logged in."""
_LOCKED_PAUSE_SECONDS: Final = 1.0
_PING_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 0.5
"""A token that is late by so much, and by ten operations, lets others have what waits for it."""
_WINDOW_SECONDS: Final = 0.08
_MAX_WINDOW: Final = 2048
_FRAME_OPERATIONS: Final = 512
_FRAME_MESSAGES: Final = 1024 * 1024
"""Bytes of whole messages (Ed25519) in one frame; a single longer one has a frame of its own."""
_MAX_MESSAGES: Final = 8 * 1024 * 1024
"""Bytes of whole messages that a host has at a time, unless a single one is longer."""
_ALGORITHM_NAMES: Final = frozenset(algorithm.value for algorithm in Algorithm)
_FAILURES_IN_A_ROW: Final = 16
"""Operations that end unknown one after the other in a living host before it is replaced; one in a host that is tried."""


class SupervisedToken:
    """A token behind its host; implements `greatseald.ports.tokens.Token`. Belongs to one event loop."""

    def __init__(
        self,
        settings: TokenSettings,
        *,
        on_state: OnState | None = None,
        on_touch: OnTouch | None = None,
        on_act: OnAct | None = None,
        on_fatal: OnFatal | None = None,
    ) -> None:
        self._settings = settings
        self._on_state = on_state
        self._on_touch = on_touch
        self._on_fatal = on_fatal
        self._notes = OperatorNotes(settings.name, on_act, self._fatal)
        self._awaited = ""
        self._state = TokenState.UNAVAILABLE
        self._detail = "not started"
        self._info: TokenInfo | None = None
        self._breaker = breaker_of(settings)
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._withdrawn: TokenState | None = None
        self._why = ""
        self._withdrawing: asyncio.Task[None] | None = None
        self._finishing = False
        self._connection: HostConnection | None = None
        self._ready = False
        # Work that no host has: groups of this tick by key and algorithm, then in the order of their first operation.
        self._tick: dict[tuple[str, Algorithm, bool], Group] = {}
        self._waiting: deque[Group] = deque()
        self._unhanded = 0
        self._searches: dict[int, asyncio.Future[TokenKey]] = {}
        # Work that the host has, oldest first: Sign frames, searches and pings by their number.
        self._handed: dict[int, Frame | str] = {}
        self._outstanding = 0
        self._messages = 0
        self._next_id = 0
        self._operation_seconds = 0.0
        self._last_success = 0.0
        self._failures_in_a_row = 0
        self._leaving = False
        self._progress = 0.0
        self._settled = asyncio.Event()
        self._settled.set()
        self._idle = asyncio.Event()
        self._idle.set()

    # -- the port -----------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return self._settings.name

    @property
    def state(self) -> TokenState:
        """Where it is now."""
        return self._state

    @property
    def detail(self) -> str:
        """Why it is not ready, for people; empty when it is."""
        return self._detail

    @property
    def awaited(self) -> str:
        """What a person is asked to do at the token just now."""
        return self._awaited

    @property
    def info(self) -> TokenInfo | None:
        """What it said of itself, None until it was reached."""
        return self._info

    @property
    def load(self) -> TokenLoad:
        """How busy it is, and how fast."""
        return TokenLoad(
            self._unhanded,
            self._outstanding,
            self._operation_seconds,
            self._info.sessions if self._info is not None else self._settings.sessions,
            self._late(),
            self._breaker.state,
            self._last_success,
        )

    @property
    def host_pid(self) -> int | None:
        """The process id of a host that we started, while it lives."""
        return self._connection.pid if self._connection is not None else None

    async def start(self) -> None:
        """Start or reach the host in the background; returns at once and raises for nothing a token can do."""
        if self._task is None and self._withdrawn is None:
            self._set_state(TokenState.STARTING, "its host is starting")
            self._task = asyncio.create_task(self._run(), name=f"token {self.name}")
            self._task.add_done_callback(self._ended)

    async def settled(self, seconds: float) -> TokenState:
        """Wait until the token is no longer starting, at most so many seconds; its state then."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), seconds)
        return self._state

    async def stop(self) -> None:
        """Let the host finish what it has (at most `operation_timeout`), end it; what it does not have fails."""
        self._stopping = True
        self._fail_waiting("the daemon is stopping", retry=True, locked=False)
        if self._withdrawing is not None:
            self._withdrawing.cancel()
        await self._end_host()
        await self._notes.finish()
        self._set_state(TokenState.UNAVAILABLE, "stopped")

    def withdraw(self, state: TokenState, why: str) -> None:
        """Take it out of service; see the port."""
        self._withdrawn, self._why = state, why
        if state is TokenState.QUARANTINED:
            self._fail_waiting(why, retry=True, locked=False)
        busy = self._task is not None
        self._set_state(TokenState.DRAINING if busy and state is TokenState.DRAINED else state, why)
        if busy and self._withdrawing is None:
            self._withdrawing = asyncio.create_task(self._withdraw(), name=f"withdrawal of token {self.name}")

    async def _withdraw(self) -> None:
        """Bring what was accepted to its end, then the host."""
        self._finishing = True
        while self._ready and (self._tick or self._waiting or self._handed):
            await self._idle.wait()
            await asyncio.sleep(0)  # what this tick collects is handed over in the next
        self._finishing = False
        await self._end_host()
        self._fail_waiting(self._why, retry=True, locked=False)
        self._withdrawing = None
        if self._withdrawn is not None:
            self._set_state(self._withdrawn, self._why)

    async def restore(self) -> None:
        """Put it back into service; see the port. One that was quarantined is tried with one operation first."""
        if self._withdrawn is None:
            return
        if self._withdrawing is not None and self._finishing and self._ready:
            self._withdrawing.cancel()
            self._withdrawing, self._finishing = None, False
        elif self._withdrawing is not None:
            await asyncio.shield(self._withdrawing)
        withdrawn, self._withdrawn = self._withdrawn, None
        self._breaker = breaker_of(self._settings)
        if withdrawn is TokenState.QUARANTINED:
            self._breaker.failed()
            self._breaker.probe()
        if self._task is None:
            await self.start()
        else:
            self._set_state(TokenState.READY, "")

    async def _end_host(self) -> None:
        """Let the host finish what it has, at most `operation_timeout`, and supervise no further one."""
        task, connection = self._task, self._connection
        if connection is not None and (self._ready or self._leaving):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), self._settings.operation_timeout)
            await connection.finish()
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self._task = None
        if connection is not None:
            await connection.end()

    async def find_key(self, uri: str) -> TokenKey:
        """Find the one private key that `uri` means; see the port.

        Raises:
            TokenUnavailable: not found (naming what there is), or the token cannot be reached.
            TokenLocked: an operator is needed.
        """
        limit = 2 * max(_START_SECONDS, self._settings.operation_timeout)
        if self._state is TokenState.STARTING:
            await self.settled(limit)
        connection = self._require_ready()
        number = self._number()
        future: asyncio.Future[TokenKey] = asyncio.get_running_loop().create_future()
        self._searches[number] = future
        self._hand_over(number, "search")
        connection.send(FindKey(number, uri))
        try:
            # The host answers or is killed within its time; this bound only says so once more.
            return await asyncio.wait_for(future, limit)
        except TimeoutError as error:
            raise TokenUnavailable(f"token {self.name}: no answer to a search for {uri}", token=self.name) from error
        finally:
            self._searches.pop(number, None)

    def sign(
        self, uri: str, algorithm: Algorithm, operations: Sequence[Operation], *, movable: bool = False
    ) -> AsyncIterator[list[SignResult]]:
        """Sign `operations`; see the port. What is asked for in one tick of the loop travels together.

        Raises:
            TokenUnavailable: the token cannot be reached; nothing was handed over.
            TokenLocked: an operator is needed; nothing was handed over.
        """
        if self._state is not TokenState.STARTING:
            self._require_ready()
        call = Call(len(operations))
        if not operations:
            return call
        if not self._tick:
            asyncio.get_running_loop().call_soon(self._end_of_tick)
        group = self._tick.get((uri, algorithm, movable))
        if group is None:
            group = self._tick[uri, algorithm, movable] = Group(uri, algorithm, movable=movable)
        group.owners.append((call, len(operations), 0))
        group.operations.extend(operations)
        self._unhanded += len(operations)
        return call

    # -- handing over -------------------------------------------------------------------------------

    def _require_ready(self) -> HostConnection:
        if self._ready and self._connection is not None and not self._stopping and self._withdrawn is None:
            return self._connection
        if self._state is TokenState.LOCKED:
            raise TokenLocked(self._detail, token=self.name)
        raise TokenUnavailable(self._detail or f"token {self.name} is not ready", token=self.name)

    def _number(self) -> int:
        self._next_id += 1
        return self._next_id

    def _end_of_tick(self) -> None:
        groups = list(self._tick.values())
        self._tick.clear()
        self._waiting.extend(groups)
        if self._stopping or not (self._ready or self._state is TokenState.STARTING):
            self._fail_waiting(self._detail, retry=True, locked=self._state is TokenState.LOCKED)
        else:
            self._pump()

    def _window(self) -> int:
        """How many operations the host may have at a time."""
        if self._breaker.trying:
            return 1
        if not self._operation_seconds:
            return 4 * self._settings.sessions
        done_in_time = int(self._settings.sessions * _WINDOW_SECONDS / self._operation_seconds)
        return max(2 * self._settings.sessions, min(_MAX_WINDOW, done_in_time))

    def _pump(self) -> None:
        """Hand over as much as the window allows."""
        connection = self._connection
        if not self._ready or connection is None or not self._waiting:
            return
        window = self._window()
        # Half a window at a time: topping it up by each few answers costs a frame, and a waking of the host, for each few.
        if self._outstanding > window // 2:
            return
        while self._waiting and (room := window - self._outstanding) > 0:
            group = self._waiting[0]
            count = min(len(group.operations), room, _FRAME_OPERATIONS)
            size = 0
            if group.algorithm.is_pure:
                count, size = _fitting(group.operations, count)
                if self._messages and self._messages + size > _MAX_MESSAGES:
                    return
            if count == len(group.operations):
                self._waiting.popleft()
            else:
                group = group.split(count)
            number = self._number()
            message = Sign(number, group.uri, group.algorithm.value, group.operations)
            self._hand_over(number, Frame(group, set(range(count)), size))
            self._outstanding += count
            self._unhanded -= count
            self._messages += size
            connection.send(message)

    def _hand_over(self, number: int, item: Frame | str) -> None:
        if not self._handed:
            self._progress = asyncio.get_running_loop().time()
        self._handed[number] = item
        self._idle.clear()

    # -- what the host says ---------------------------------------------------------------------------

    def _received(self, message: FromHost) -> None:
        try:
            self._dispatch(message)
        except Exception as error:  # noqa: BLE001 - the loop would only log it, and callers would wait
            self._fatal(error)

    def _dispatch(self, message: FromHost) -> None:
        if isinstance(message, Results):
            self._results(message)
        elif isinstance(message, TouchWait):
            self._progress = asyncio.get_running_loop().time()
            self._await_touch(message.what)
        elif isinstance(message, Pong):
            self._answered(message.id)
        elif isinstance(message, OperatorActs):
            self._notes.note(message.acts)
        elif isinstance(message, Key):
            future = self._searches.get(message.id)
            self._answered(message.id)
            if future is not None and not future.done():
                algorithms = tuple(Algorithm(name) for name in message.algorithms)
                future.set_result(TokenKey(message.spki, algorithms, tuple(message.attestation), message.custody))
        elif isinstance(message, KeyRefused):
            future = self._searches.get(message.id)
            self._answered(message.id)
            if future is not None and not future.done():
                kind = TokenLocked if message.locked else TokenUnavailable
                future.set_exception(kind(message.detail, token=self.name))

    def _leave(self, reason: str) -> None:
        """The host announced its end: it gets nothing more, and is let go once it has answered what it has."""
        self._ready = False
        self._leaving = True
        self._set_state(TokenState.STARTING, reason)
        if not self._handed and self._connection is not None:
            self._connection.lose(reason)

    def _results(self, message: Results) -> None:
        frame = self._handed.get(message.id)
        if not isinstance(frame, Frame):
            return
        if message.operation_seconds > 0:
            self._operation_seconds = message.operation_seconds
        count = 0
        if message.signed:
            self._breaker.succeeded()
            self._last_success = time.time()
            self._failures_in_a_row = 0
            count += frame.deliver(message.signed)
        if message.failed:
            count += frame.deliver(message.failed)
            if not message.signed:
                self._failures_in_a_row += sum(1 for result in message.failed if result.unknown)
        self._outstanding -= count
        if self._is_oldest(message.id):
            self._progress = asyncio.get_running_loop().time()
        if not frame.open:
            self._taken_back(message.id)
        limit = 1 if self._breaker.trying else _FAILURES_IN_A_ROW
        if self._failures_in_a_row >= limit and self._connection is not None:
            detail = message.failed[-1].detail if message.failed else ""
            self._connection.lose(f"{self._failures_in_a_row} operations failed in a row, the last: {detail}")
            return
        self._pump()

    def _answered(self, number: int) -> None:
        if self._is_oldest(number):
            self._progress = asyncio.get_running_loop().time()
        self._taken_back(number)

    def _taken_back(self, number: int) -> None:
        item = self._handed.pop(number, None)
        if isinstance(item, Frame):
            self._messages -= item.message_bytes
        if not self._handed:
            self._idle.set()
            if self._leaving and self._connection is not None:
                self._connection.lose(self._detail)

    def _is_oldest(self, number: int) -> bool:
        return next(iter(self._handed), None) == number

    # -- the life of hosts ------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Bring up one host after the other, until the token is stopped."""
        while not self._stopping:
            why, locked = await self._one_host()
            if self._withdrawn is not None:
                return
            delay = self._breaker.failed()
            if locked:
                delay = max(delay, _LOCKED_PAUSE_SECONDS)
            elif self._breaker.open:
                self._set_state(TokenState.UNAVAILABLE, why)
                self._fail_waiting(why, retry=True, locked=False)
            else:
                self._set_state(TokenState.STARTING, why)
            await asyncio.sleep(delay)

    async def _one_host(self) -> tuple[str, bool]:
        """Bring up one host and serve until it is lost; returns why it was lost, and whether an operator is needed."""
        limit = max(_START_SECONDS, self._settings.operation_timeout + 5)
        locked = False
        self._notes.expect()
        try:
            connection = await asyncio.wait_for(connect_host(self._settings, self._received, self._leave), limit)
        except (OSError, TimeoutError) as error:
            self._breaker.trip()
            how = f"reached at {self._settings.host_socket}" if self._settings.host_socket else "started"
            return self._named(f"its host cannot be {how}: {str(error) or 'no answer'}"), False
        self._connection = connection
        self._notes.attach(connection)
        try:
            greeting = await asyncio.wait_for(connection.greeting, limit)
            if isinstance(greeting, Ready) and greeting.version == frames.VERSION:
                self._became_ready(greeting)
                await self._serve(connection)
            elif isinstance(greeting, NotReady) and greeting.locked:
                locked = True
                unlocked = await self._locked(connection, greeting)
                if unlocked is not None:
                    locked = False
                    self._became_ready(unlocked)
                    await self._serve(connection)
            elif isinstance(greeting, NotReady):
                connection.lose(greeting.detail)
            else:
                connection.lose(f"its host speaks version {greeting.version}, this front {frames.VERSION}")
        except HostLost:
            pass
        except TimeoutError:
            connection.lose(f"its host did not bring the token up within {limit:g} s")
        finally:
            was_ready, self._ready, self._leaving = self._ready or self._leaving, False, False
            self._connection = None
            await asyncio.shield(connection.end())
            self._lost_host(connection)
        if not was_ready:
            # What cannot be brought up is not there for the calls that wait either.
            self._breaker.trip()
        return self._named(connection.reason), locked

    def _named(self, reason: str) -> str:
        return reason if reason.startswith("token ") else f"token {self.name}: {reason}"

    async def _locked(self, connection: HostConnection, greeting: NotReady) -> Ready | None:
        """Stay with a locked host until an operator has acted: it is ready then, or ends."""
        self._set_state(TokenState.LOCKED, greeting.detail)
        self._fail_waiting(greeting.detail, retry=False, locked=True)
        await asyncio.wait((connection.lost, connection.unlocked), return_when=asyncio.FIRST_COMPLETED)
        return connection.unlocked.result() if connection.unlocked.done() and not connection.lost.done() else None

    def _became_ready(self, greeting: Ready) -> None:
        self._info = TokenInfo(
            serial=greeting.serial,
            label=greeting.label,
            manufacturer=greeting.manufacturer,
            model=greeting.model,
            firmware=greeting.firmware,
            sessions=greeting.sessions,
            advertised=tuple(Algorithm(name) for name in greeting.algorithms if name in _ALGORITHM_NAMES),
        )
        self._ready = True
        self._leaving = False
        self._failures_in_a_row = 0
        self._operation_seconds = 0.0
        self._breaker.probe()
        self._set_state(TokenState.READY, "", note="; ".join(greeting.notes))
        self._pump()

    async def _serve(self, connection: HostConnection) -> None:
        """Watch a ready host until it is lost: the oldest thing it has must progress.

        Raises:
            HostLost: it was lost.
        """
        loop = asyncio.get_running_loop()
        timeout = self._settings.operation_timeout
        pinged = loop.time()
        while True:
            await asyncio.wait((connection.lost,), timeout=min(1.0, timeout / 8))
            if connection.lost.done():
                connection.lost.result()
                return
            now = loop.time()
            # A person has touch_timeout; the last of the device's own waits may begin just before it is over.
            limit = timeout + 2 * self._settings.touch_timeout if self._awaited else timeout
            if self._late() > _PATIENCE_SECONDS + 10 * self._operation_seconds:
                self._give_back(f"token {self.name} has not answered for {now - self._progress:.1f} s")
            if self._handed and now - self._progress > limit:
                connection.lose(f"an operation took longer than the token's operation_timeout of {timeout:g} s")
            elif not self._handed and now - pinged > _PING_SECONDS:
                pinged = now
                number = self._number()
                self._hand_over(number, "ping")
                connection.send(Ping(number))

    def _lost_host(self, connection: HostConnection) -> None:
        """Everything that the lost host had, and has not answered, gets its answer now."""
        reason = self._named(connection.reason)
        detail = f"{reason}; the token may have signed"
        handed, self._handed, self._outstanding, self._messages = self._handed, {}, 0, 0
        self._idle.set()
        self._await_touch("")
        for number, item in handed.items():
            if isinstance(item, Frame):
                item.deliver([NotSigned(position, True, 0, detail, 0, True, False) for position in sorted(item.open)])
            future = self._searches.get(number)
            if future is not None and not future.done():
                future.set_exception(TokenUnavailable(reason, token=self.name))

    def _late(self) -> float:
        """For how many seconds the host's next result has been overdue. A person who is waited for is not late."""
        if not self._handed or self._awaited:
            return 0.0
        return max(0.0, asyncio.get_running_loop().time() - self._progress - self._operation_seconds)

    def _give_back(self, detail: str) -> None:
        """Let others do what no host has, where others can: certainly not signed here."""
        kept: deque[Group] = deque()
        for group in self._waiting:
            if group.movable:
                self._unhanded -= len(group.operations)
                group.fail(detail, retry=True, locked=False)
            else:
                kept.append(group)
        self._waiting = kept

    def _fail_waiting(self, detail: str, *, retry: bool, locked: bool) -> None:
        """Answer every operation that no host has: certainly not signed."""
        groups = [*self._waiting, *self._tick.values()]
        self._waiting.clear()
        self._tick.clear()
        self._unhanded = 0
        for group in groups:
            group.fail(detail, retry=retry, locked=locked)

    # -- telling others -----------------------------------------------------------------------------------

    def _set_state(self, state: TokenState, detail: str, *, note: str = "") -> None:
        if self._withdrawn is not None and state not in WITHDRAWN:
            return  # what becomes of its last host is no news
        changed = (state, detail) != (self._state, self._detail)
        self._state, self._detail = state, detail
        if state is TokenState.STARTING:
            self._settled.clear()
        else:
            self._settled.set()
        if (changed or note) and self._on_state is not None:
            self._on_state(self.name, state, detail or note)

    def _await_touch(self, what: str) -> None:
        if what != self._awaited:
            self._awaited = what
            if self._on_touch is not None:
                self._on_touch(self.name, what)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The supervising task never ends by itself: if it does, nobody would answer the calls that wait."""
        if (self._stopping or self._withdrawn is not None) and (task.cancelled() or task.exception() is None):
            return
        error = (None if task.cancelled() else task.exception()) or RuntimeError("the token's supervision ended")
        self._fatal(error)

    def _fatal(self, error: BaseException) -> None:
        """A fault of our own: nobody waits for ever, and whoever runs us hears of it."""
        self._ready = False
        self._set_state(TokenState.UNAVAILABLE, f"token {self.name}: internal fault: {error}")
        self._fail_waiting(self._detail, retry=False, locked=False)
        if self._on_fatal is not None:
            self._on_fatal(error)
        else:
            raise error


def _fitting(operations: Sequence[Operation], most: int) -> tuple[int, int]:
    """How many of the first `most` operations one frame takes with their messages, at least one, and the messages' bytes."""
    size = len(operations[0].message)
    for count in range(1, most):
        more = len(operations[count].message)
        if size + more > _FRAME_MESSAGES:
            return count, size
        size += more
    return most, size
