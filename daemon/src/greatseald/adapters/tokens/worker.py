"""The process that holds a token: brings it up, serves fronts, ends itself when the token is gone.

It never outlives its parent, and it never tries twice to bring the token up: vendors' libraries
stay dead in a process once they have lost their device, so whoever started it starts a fresh one.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

from greatseald.adapters.tokens import frames
from greatseald.adapters.tokens.act_reporter import ActReporter
from greatseald.adapters.tokens.device import (
    Device,
    DeviceError,
    DeviceUnusable,
    TokenNotFound,
    attempt_login,
    open_device,
)
from greatseald.adapters.tokens.engine import Engine
from greatseald.adapters.tokens.frames import (
    ActsNoted,
    FindKey,
    FrameInvalid,
    Hello,
    NotReady,
    Ping,
    Pong,
    Ready,
    Sign,
    Stop,
    ToHost,
    TouchWait,
)
from greatseald.adapters.tokens.front_connection import Connection
from greatseald.adapters.tokens.hardening import die_with_parent, harden, ignore_terminal_signals
from greatseald.adapters.tokens.latch import FILE_NAME as LATCH_NAME
from greatseald.adapters.tokens.latch import LatchUnusable, PinAttemptForbidden, PinLatch
from greatseald.adapters.tokens.launch import say
from greatseald.adapters.tokens.ledger import FILE_NAME as LEDGER_NAME
from greatseald.adapters.tokens.ledger import Ledger, LedgerBroken, LedgerUnwritable
from greatseald.adapters.tokens.operator_acts import ActJournal, ActsUnusable
from greatseald.adapters.tokens.operator_desk import OperatorDesk
from greatseald.adapters.tokens.operator_socket import OperatorSocket
from greatseald.adapters.tokens.pin import PinUnavailable, pin_source, read_pin
from greatseald.adapters.tokens.secret import Secret
from greatseald.adapters.tokens.unix_sockets import SocketUnusable
from greatseald.adapters.tokens.uris import UriInvalid
from greatseald.adapters.tokens.watchdog import EXIT_GAVE_UP, Watchdog
from greatseald.domain.tokens import TokenSettings

_MAX_CONNECTIONS: Final = 16
_NOT_READY_SECONDS: Final = 5.0
_LOCKED_SECONDS: Final = 60.0
_SEND_SECONDS: Final = 0.5
_HANG_UP_SECONDS: Final = 1.0
STARTUP_SECONDS: Final = 20.0
"""Least time, in seconds, that a host has for its start, whatever `operation_timeout` says."""
_STARTUP: Final = -1
_OPERATOR: Final = -2
_IDLE_SECONDS: Final = 10.0
_Result = TypeVar("_Result")


class Worker:
    """The process that holds the token. Implements `operator_desk.Holder`.

    `unit`: the other end of `control` is the unit's main process, and fronts come to a socket; otherwise it is the
    front itself. `maintenance`: the process serves operators alone, and logs in for nobody.
    """

    def __init__(
        self, settings: TokenSettings, control: Connection, *, unit: bool = False, maintenance: bool = False
    ) -> None:
        self._settings = settings
        self._control = control
        self._unit = unit
        self._maintenance = maintenance
        self._device: Device | None = None
        self._first: Any = None
        self._unlocked = threading.Event()
        self._locking = False
        self._operators: OperatorSocket | None = None
        self._reporter: ActReporter | None = None
        self._notes: list[str] = []
        self._connections: set[Connection] = set()
        self._connections_lock = threading.Lock()
        self._up = threading.Event()
        self._greeting: Ready | NotReady | None = None
        self._watchdog = Watchdog(settings.name, settings.operation_timeout, self._last_words)
        self._finished = threading.Event()

    # -- bringing the token up --------------------------------------------------------------------

    def bring_up(self) -> Ready | NotReady:
        """Open the ledger, load the module, log in, start the sessions; what to greet fronts with."""
        self._watchdog.start()
        try:
            with self._watchdog.watch(_STARTUP, max(STARTUP_SECONDS, self._settings.operation_timeout)):
                greeting: Ready | NotReady = self._open_token()
        except PinAttemptForbidden as error:
            greeting = NotReady(frames.VERSION, locked=True, detail=str(error))
        except (
            ActsUnusable, DeviceError, DeviceUnusable, LatchUnusable, LedgerBroken, LedgerUnwritable, PinUnavailable,
            SocketUnusable, UriInvalid, TokenNotFound, OSError,
        ) as error:  # fmt: skip
            message = str(error)
            prefix = "" if message.startswith("token ") else f"token {self._settings.name}: "
            greeting = NotReady(frames.VERSION, locked=False, detail=prefix + message)
        self._greeting = greeting
        self._up.set()
        return greeting

    def _open_token(self) -> Ready | NotReady:
        settings = self._settings
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._ledger = Ledger(settings.state_dir / LEDGER_NAME)
        self._notes = [self._ledger.note] if self._ledger.note else []
        self._acts = ActJournal(settings.state_dir, settings.name)
        self._reporter = ActReporter(self._acts, self._welcome_all)
        source = pin_source(settings)
        self._latch = PinLatch(settings.state_dir, settings.name, source, by_operator=settings.by_operator)
        self._listen_to_operators()
        if self._maintenance:
            return NotReady(frames.VERSION, locked=True, detail=f"token {settings.name}: held by an operator's command")
        pin = None
        if not settings.by_operator:
            self._latch.refuse_if_closed()
            pin = read_pin(settings)
        if settings.by_operator:
            self._open_device()
            last = self._latch.last_attempt()
            detail = (
                f"token {settings.name} waits for an operator: `greatseald token unlock {settings.name}` on its machine"
            )
            return NotReady(frames.VERSION, locked=True, detail=f"{detail}; {last}" if last else detail)
        try:
            self._open_device()
            self._log_in(self._latch, self._first, pin)
        except BaseException:
            if pin is not None:
                pin.wipe()
            raise
        return self._begin_work(pin)

    def _open_device(self) -> None:
        self._device, self._description = open_device(self._settings, self._announce_touch)
        self._first = self._device.open_session()

    def _begin_work(self, pin: Secret | None) -> Ready:
        """Start the sessions of a token that is logged in."""
        settings, device, description = self._settings, self.device(), self._description
        self.engine = Engine(
            settings, device, self._ledger, self._latch, pin, self._watchdog, self._announce_end, self._end
        )
        sessions = self.engine.start(self._first)
        notes = [*self._notes, *device.notes]
        if sessions < settings.sessions:
            why = "the token opens no more" if device.parallel else "the module cannot be used by several threads"
            notes.append(f"{sessions} of {settings.sessions} sessions: {why}")
        return Ready(
            version=frames.VERSION,
            pid=os.getpid(),
            serial=description.serial,
            label=description.label,
            manufacturer=description.manufacturer,
            model=description.model,
            firmware=description.firmware,
            sequence=self._ledger.sequence,
            sessions=sessions,
            algorithms=[algorithm.value for algorithm in device.advertised()],
            notes=notes,
        )

    def _log_in(self, latch: PinLatch, session: Any, pin: Secret | None) -> None:
        """The one login of this process.

        Raises:
            PinAttemptForbidden: the latch forbids it, or the PIN was refused.
            LatchUnusable: the latch cannot be kept.
            DeviceError: the token did not answer.
            PinUnavailable: the token wants a PIN and none is configured.
        """
        device = self.device()
        if pin is None:
            if not device.wants_login:
                return
            if not device.has_pin_pad:
                message = f"token {self._settings.name} wants a PIN: set pin_file, pin_credential or unlock"
                raise PinUnavailable(message)
        never_locks = self._settings.lockout == "none"
        attempt_login(device, latch, lambda: device.login(session, pin), never_locks=never_locks)

    # -- operators ----------------------------------------------------------------------------------

    def _listen_to_operators(self) -> None:
        """Make the socket for operators; a token that only they can unlock is of no use without it."""
        try:
            self._operators = OperatorSocket(self._settings.operator_socket, self._settings.name)
        except SocketUnusable as error:
            if self._settings.by_operator or self._maintenance:
                raise
            self._notes.append(f"no operator can reach this host: {error}")

    def serve_operators(self) -> None:
        """Answer operators from now on, in a thread of its own."""
        if self._operators is not None and self._reporter is not None:
            desk = OperatorDesk(self._settings, self._latch, self._acts, self, self._reporter.tell)
            keep_alive = self._device.profile.keep_alive if self._device is not None else _IDLE_SECONDS
            self._operators.start(desk, self._keep_alive, keep_alive)

    @property
    def state(self) -> str:
        """See `operator_desk.Holder`."""
        if isinstance(self._greeting, Ready):
            return "ready"
        if self._maintenance:
            return "held"
        return "locked" if self._settings.by_operator else "closed"

    @property
    def detail(self) -> str:
        """Why it is not ready."""
        return self._greeting.detail if isinstance(self._greeting, NotReady) else ""

    @property
    def opened_device(self) -> Device | None:
        """The device, if it is open."""
        return self._device

    def device(self) -> Device:
        """The device, opened now if it was not."""
        if self._device is None:
            try:
                with self._watchdog.watch(_OPERATOR, max(STARTUP_SECONDS, self._settings.operation_timeout)):
                    self._open_device()
            except BaseException:
                self._device = None
                raise
        assert self._device is not None  # noqa: S101 - `_open_device` returned
        return self._device

    def with_session(self, work: Callable[[Any], _Result]) -> _Result:
        """Do something with a session, and with the device, that nobody else uses meanwhile."""
        if isinstance(self._greeting, Ready):
            results: list[_Result] = []
            self.engine.run(lambda session: results.append(work(session)))
            return results[0]
        self.device()
        with self._watchdog.watch(_OPERATOR, max(STARTUP_SECONDS, self._settings.operation_timeout)):
            return work(self._first)

    def known_pin(self) -> Secret | None:
        """The PIN that this process logged in with, or that lies where it reads it; an operator's own has to be given."""
        if self._settings.by_operator:
            return None
        if isinstance(self._greeting, Ready):
            return self.engine.pin.copy() if self.engine.pin is not None else None
        return read_pin(self._settings) if self._settings.pin_file is not None else None

    def come_up(self, pin: Secret | None) -> None:
        """Begin to work, as an operator has logged in; fronts hear of it once his act is in the log."""
        self._greeting = self._begin_work(pin)
        self._unlocked.set()
        if self._unit:
            self._greet_now(self._control)

    def take_pin(self, pin: Secret) -> None:
        """Use another PIN from now on."""
        if isinstance(self._greeting, Ready):
            self.engine.replace_pin(pin)
        else:
            pin.wipe()

    def reopen(self) -> None:
        """Open the session again."""
        self._first = self.device().open_session()

    def lock(self, detail: str) -> None:
        """Log out by ending this process."""
        self._locking = True
        self.engine.leave(detail, locked=True)

    def end(self) -> None:
        """End this process, so that a fresh one comes."""
        if isinstance(self._greeting, Ready):
            self.engine.leave(f"token {self._settings.name} is gone: it did not answer an operator", locked=False)
        else:
            os._exit(EXIT_GAVE_UP)

    def _keep_alive(self) -> None:
        """While nobody is logged in, see that the device is still there."""
        if self.state != "locked" or self._device is None:
            return
        try:
            with self._watchdog.watch(_OPERATOR):
                self._device.keep_alive(self._first)
        except DeviceError as error:
            self._watchdog.die(f"token {self._settings.name} is gone: {error.answer}")

    def wait_for_operator(self) -> None:
        """Wait until an operator has unlocked the token."""
        self._unlocked.wait()

    # -- serving ------------------------------------------------------------------------------------

    def serve(self, connection: Connection, *, ends_process: bool) -> None:
        """Answer one front until it is gone. `ends_process`: the process has no other reason to live."""
        with self._connections_lock:
            self._connections.add(connection)
        try:
            while (message := connection.receive()) is not None:
                if isinstance(message, Stop):
                    break
                self._handle(connection, message)
            else:
                if ends_process:  # the front is gone: nobody is left to answer
                    os._exit(0)
        except FrameInvalid:
            if ends_process:
                os._exit(1)
        except Exception as error:  # noqa: BLE001 - a thread that ends quietly would leave its front waiting
            self._watchdog.die(f"token {self._settings.name}: its host failed: {type(error).__name__}: {error}")
        finally:
            with self._connections_lock:
                self._connections.discard(connection)
            if not ends_process:
                if self._reporter is not None:
                    self._reporter.gone(connection)
                connection.close()

    def _handle(self, connection: Connection, message: ToHost) -> None:
        if isinstance(message, Ping):
            connection.send(Pong(message.id))
            return
        if isinstance(message, Hello):
            self._greet(connection, message)
            return
        if isinstance(message, ActsNoted) and connection.greeted and self._reporter is not None:
            self._reporter.noted(connection, message.ids)
            return
        if not connection.ready or not isinstance(self._greeting, Ready):
            error = "a request before the greeting"
            raise FrameInvalid(error)
        if isinstance(message, Sign):
            if len(message.operations) > frames.MAX_OPERATIONS:
                raise FrameInvalid(
                    f"{len(message.operations)} operations in a frame of at most {frames.MAX_OPERATIONS}"
                )
            self.engine.sign(connection, message)
        elif isinstance(message, FindKey):
            self.engine.find_key(connection, message)

    def _greet(self, connection: Connection, hello: Hello) -> None:
        if hello.version != frames.VERSION or hello.token != self._settings.name:
            detail = (
                f"this host speaks version {frames.VERSION} for token {self._settings.name}, "
                f"the front asked for version {hello.version} and token {hello.token[:64]}"
            )
            connection.send(NotReady(frames.VERSION, locked=False, detail=detail))
            return
        self._up.wait()
        self.welcome(connection)

    def welcome(self, connection: Connection) -> None:
        """Greet a front, or the unit's main process, as soon as it may be greeted."""
        connection.greeted = True
        reporter = None if self._unit and connection is self._control else self._reporter
        if reporter is None or reporter.settled or isinstance(self._greeting, NotReady):
            self._greet_now(connection)
        if reporter is not None:
            reporter.came(connection)

    def _greet_now(self, connection: Connection) -> None:
        greeting = self._greeting
        with self._connections_lock:
            if greeting is None or connection.ready:
                return
            connection.ready = isinstance(greeting, Ready)
        connection.send(greeting)

    def _welcome_all(self) -> None:
        """Everything that operators did is in the log: tell those who wait that the token is ready."""
        if not isinstance(self._greeting, Ready):
            return
        with self._connections_lock:
            waiting = [each for each in (*self._connections, self._control) if each.greeted and not each.ready]
        for connection in waiting:
            self._greet_now(connection)

    def accept(self, listener: socket.socket, front_uid: int) -> None:
        """Serve whoever connects to the unit's socket and is the front's user; never returns."""
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:  # out of descriptors, or a front that gave up before it was accepted
                time.sleep(_SEND_SECONDS)
                continue
            connection = Connection(sock)
            with self._connections_lock:
                full = len(self._connections) >= _MAX_CONNECTIONS
            uid = connection.peer_uid()
            if full or uid not in (front_uid, 0):
                reason = "too many connections" if full else f"user id {uid} is not the front's"
                say(self._settings.name, f"connection refused: {reason}")
                connection.close()
                continue
            threading.Thread(target=self.serve, args=(connection,), kwargs={"ends_process": False}, daemon=True).start()

    # -- ending -------------------------------------------------------------------------------------

    def _last_words(self, message: NotReady) -> None:
        with self._connections_lock:
            connections = list(self._connections)
        for connection in connections:
            if connection.greeted or connection is self._control:
                connection.last_words(message)

    def _announce_end(self, message: NotReady) -> None:
        """Tell every front; what they ask for from now on is answered as not begun."""
        with self._connections_lock:
            connections = [connection for connection in self._connections if connection.greeted]
        for connection in connections:
            connection.send(message)

    def _announce_touch(self, what: str) -> None:
        """Tell every front that the device waits for a touch, or (empty) that it no longer does."""
        with self._connections_lock:
            connections = [connection for connection in self._connections if connection.greeted]
        for connection in connections:
            connection.send(TouchWait(what))

    def _end(self) -> None:
        """End the process once the fronts have hung up, which they do when they have their answers."""
        self._finished.wait(_HANG_UP_SECONDS)
        if self._locking and self._device is not None:
            with self._watchdog.watch(_STARTUP), suppress(DeviceError):
                self._device.close()
        os._exit(EXIT_GAVE_UP)

    @property
    def latched(self) -> bool:
        """Whether the latch forbids the login; ask before anybody can know of it, and remove it."""
        return (self._settings.state_dir / LATCH_NAME).exists()

    def linger(self, greeting: NotReady, *, unit: bool, closed: bool) -> None:
        """Stay for a while so that fronts hear why there is no token, then end: a fresh process tries again.

        A locked host stays longer, and one that is `closed` by the latch until the operator has removed it.
        """
        if not greeting.locked and not unit:
            return
        if self._maintenance:
            self._finished.wait()
            return
        deadline = time.monotonic() + (_LOCKED_SECONDS if greeting.locked else _NOT_READY_SECONDS)
        while time.monotonic() < deadline or closed:
            if closed and not self.latched:
                return
            if self._finished.wait(0.5):
                return

    def stop(self) -> None:
        """Finish what was asked for, leave the token logged out, end the process."""
        self._finished.set()
        if self._operators is not None:
            self._operators.close()
        if isinstance(self._greeting, Ready):
            if self.engine.stop(self._settings.operation_timeout):
                with self._watchdog.watch(_STARTUP):
                    self.device().close()
                if self.engine.pin is not None:
                    self.engine.pin.wipe()
            with suppress(OSError):
                self._ledger.close()
        os._exit(0)

    def give_up(self) -> None:
        """End the process, but not in the middle of what an operator does."""
        if self._operators is not None:
            self._operators.close()
        os._exit(EXIT_GAVE_UP)


def run_worker(control_descriptor: int, parent: int, listen_descriptor: int | None, front_uid: int | None) -> None:
    """The life of a worker; never returns."""
    ignore_terminal_signals()
    die_with_parent(parent)
    harden()
    control = Connection(socket.socket(fileno=control_descriptor))
    hello = control.receive()
    if not isinstance(hello, Hello) or hello.settings is None:
        os._exit(1)
    unit = listen_descriptor is not None and front_uid is not None
    worker = Worker(
        frames.from_host_settings(hello.settings), control, unit=unit, maintenance=hello.settings.maintenance
    )

    def serve_control() -> None:
        worker.serve(control, ends_process=True)
        worker.stop()

    if unit:
        listener = socket.socket(fileno=listen_descriptor)
        threading.Thread(target=worker.accept, args=(listener, front_uid), name="accept", daemon=True).start()
    greet = threading.Thread(target=serve_control, name="control", daemon=True)
    greet.start()
    greeting = worker.bring_up()
    closed = worker.latched
    worker.welcome(control)
    if isinstance(greeting, Ready) or greeting.locked:
        worker.serve_operators()
    if isinstance(greeting, NotReady):
        if greeting.locked and worker.state == "locked":
            worker.wait_for_operator()
        else:
            worker.linger(greeting, unit=unit, closed=closed)
            worker.give_up()
    greet.join()
