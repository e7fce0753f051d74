"""The token host's engine: sessions on threads, work taken in small portions, answers as they come.

Invariants:
- every operation is checked, and appended to the ledger, before any C_Sign of its frame;
- every operation of a frame gets exactly one result, or the process ends;
- no session survives an error; an operation is tried twice only where the first cannot have signed;
- an operation that takes longer than the token's `operation_timeout` ends the process (C calls run
  without the GIL, so the watchdog thread sees it), whoever started the host brings a fresh one.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from greatseal.algorithms import Algorithm
from greatseald.adapters.tokens.ckr import CKR, NO_SESSION_LEFT, Verdict
from greatseald.adapters.tokens.device import (
    Device,
    DeviceError,
    DeviceUnusable,
    KeyDescription,
    KeyUnusable,
    SignatureMalformed,
    attempt_login,
)
from greatseald.adapters.tokens.frames import VERSION, FindKey, FromHost, Key, KeyRefused, NotReady, Results, Sign
from greatseald.adapters.tokens.latch import LatchUnusable, PinAttemptForbidden, PinLatch
from greatseald.adapters.tokens.ledger import Ledger, LedgerUnwritable
from greatseald.adapters.tokens.secret import Secret
from greatseald.adapters.tokens.watchdog import Watchdog
from greatseald.domain.tokens import TokenSettings
from greatseald.ports.tokens import NotSigned, Operation, Signed

PORTION: Final = 32
"""Most operations a thread takes, and answers, at a time."""
_PORTION_SECONDS: Final = 0.01
_FLUSH_SECONDS: Final = 0.02
_GATHER_SECONDS: Final = 0.01
_HERE_SECONDS: Final = 0.001
"""A token that signs within so long is not worth a hand-over for a single operation."""
_SMOOTHING: Final = 0.2
LEAF_HASH_BYTES: Final = 32
_LAST_ANSWERS_SECONDS: Final = 2.0


class Answers(Protocol):
    """Where results go: the connection that asked. `send` never raises for a peer that is gone."""

    def send(self, message: FromHost) -> None:
        """Send one message."""
        ...


@dataclass(slots=True)
class _Work:
    """What is left of a Sign frame: operations that passed the checks, each with its position and sequence.

    The bytes between are what C_Sign is given: the digest, or of Ed25519 the message.
    """

    answers: Answers
    frame: int
    uri: str
    algorithm: Algorithm
    operations: list[tuple[int, bytes, int]]
    taken: int = 0
    answered: int = 0
    signed: list[Signed] = field(default_factory=list)
    failed: list[NotSigned] = field(default_factory=list)
    flushed: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class _Search:
    answers: Answers
    frame: int
    uri: str


@dataclass(slots=True)
class _Errand:
    """Something else to be done with a session, for somebody who waits for it."""

    work: Callable[[Any], None]
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


class Engine:
    """Works on one token with `settings.sessions` threads."""

    def __init__(
        self,
        settings: TokenSettings,
        device: Device,
        ledger: Ledger,
        latch: PinLatch,
        pin: Secret | None,
        watchdog: Watchdog,
        on_ending: Callable[[NotReady], None],
        on_end: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._device = device
        self._ledger = ledger
        self._latch = latch
        self._pin = pin
        self._profile = device.profile
        self._watchdog = watchdog
        self._on_ending = on_ending
        self._on_end = on_end
        self._work: deque[_Work | _Search | _Errand] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._ending: NotReady | None = None
        self._busy = 0
        self._lent = False
        self._threads: list[threading.Thread] = []
        self._sessions: list[Any] = []
        self._keys: dict[str, KeyDescription] = {}
        self._accept_lock = threading.Lock()
        self._login_lock = threading.RLock()
        self.operation_seconds = 0.0

    def start(self, first: Any) -> int:
        """Start the threads, each with a session of its own; returns how many there are.

        `first` is the session that logged in. A device that opens fewer sessions than asked for is
        used with those that it opens.
        """
        count = min(self._settings.sessions, self._profile.max_sessions) if self._device.parallel else 1
        self._sessions = [first]
        for _ in range(count - 1):
            try:
                self._sessions.append(self._device.open_session())
            except DeviceError as error:
                if error.ckr not in NO_SESSION_LEFT:
                    raise
                break
        for number in range(len(self._sessions)):
            thread = threading.Thread(target=self._serve, args=(number,), name=f"session-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return len(self._sessions)

    # -- taking work ----------------------------------------------------------------------------

    def find_key(self, answers: Answers, message: FindKey) -> None:
        """Queue a search for a key."""
        self._put(_Search(answers, message.id, message.uri))

    def run(self, work: Callable[[Any], None]) -> None:
        """Do something with a session that nobody else uses meanwhile, behind what was asked for before.

        Raises:
            DeviceUnusable: it was not begun, since the host is ending.
            whatever `work` raises.
        """
        errand = _Errand(work)
        self._put(errand)
        errand.done.wait()
        if errand.error is not None:
            raise errand.error

    @property
    def pin(self) -> Secret | None:
        """The PIN that the token was logged in with."""
        return self._pin

    def replace_pin(self, pin: Secret) -> None:
        """The token's PIN is another one: what wants a login for each signature gets this one."""
        with self._login_lock:
            old, self._pin = self._pin, pin
            if old is not None:
                old.wipe()

    def sign(self, answers: Answers, message: Sign) -> None:
        """Check a frame's operations, note the good ones in the ledger, queue them, answer the others."""
        try:
            algorithm = Algorithm(message.algorithm)
        except ValueError:
            self._refuse(answers, message.id, range(len(message.operations)), "the host does not know the algorithm")
            return
        size = algorithm.digest_size
        good: list[int] = []
        failed: list[NotSigned] = []
        seen: set[tuple[int, bytes]] = set()
        # Before the lock is taken: messages may be long.
        foreign = _foreign_messages(message.operations) if algorithm.is_pure else frozenset()
        with self._accept_lock:  # the order of the ledger and the check for replays
            for position, (index, leaf_hash, digest, _) in enumerate(message.operations):
                if len(leaf_hash) != LEAF_HASH_BYTES or index < 0:
                    why = "the host signs nothing without an intent: index and 32-byte leaf hash"
                elif len(digest) != size:
                    why = f"{algorithm.value} signs a digest of {size} bytes, not of {len(digest)}"
                elif position in foreign:
                    why = f"{algorithm.value} signs the message itself, and this one is not the digest's"
                elif (index, leaf_hash) in seen or self._ledger.has_signed(index, leaf_hash):
                    why = f"intent {index} was signed before: an intent permits one signature"
                else:
                    seen.add((index, leaf_hash))
                    good.append(position)
                    continue
                failed.append(_refusal(position, why))
            operations = message.operations
            accepted: Sequence[Operation] = (
                operations if len(good) == len(operations) else [operations[position] for position in good]
            )
            try:
                first = self._ledger.append(accepted) if accepted else 0
            except LedgerUnwritable as error:
                self._refuse(answers, message.id, range(len(operations)), str(error), retry=True)
                return
        if failed:
            answers.send(Results(message.id, [], failed, self.operation_seconds))
        if good:
            pure = algorithm.is_pure
            numbered = [
                (p, operations[p].message if pure else operations[p].tbs, first + n) for n, p in enumerate(good)
            ]
            work = _Work(answers, message.id, message.uri, algorithm, numbered)
            if len(good) > 1 or not self._sign_here(work):
                self._put(work)

    def _sign_here(self, work: _Work) -> bool:
        """Sign a single operation on the thread that received it, if the token is fast and idle; whether it was done.

        Waking a session's thread would take as long as the signature. It lends its session meanwhile.
        """
        with self._changed:
            if not 0 < self.operation_seconds < _HERE_SECONDS or self._busy or self._work or self._ending is not None:
                return False
            self._busy += 1
            self._lent = True
        try:
            self._sign_portion(0, work, work.operations)
        finally:
            with self._changed:
                self._busy -= 1
                self._lent = False
                if self._work or self._stopping or self._ending is not None:
                    self._changed.notify_all()
        return True

    def _refuse(self, answers: Answers, frame: int, positions: range, why: str, *, retry: bool = False) -> None:
        failed = [_refusal(position, why, retry=retry) for position in positions]
        answers.send(Results(frame, [], failed, self.operation_seconds))

    def _put(self, item: _Work | _Search | _Errand) -> None:
        with self._changed:
            ending = self._ending
            if ending is None:
                self._work.append(item)
                self._changed.notify(min(len(item.operations), len(self._threads)) if isinstance(item, _Work) else 1)
        if ending is not None:
            self._answer_unbegun(item, ending)

    def _answer_unbegun(self, item: _Work | _Search | _Errand, ending: NotReady) -> None:
        """Answer what no thread has begun, and none will."""
        if isinstance(item, _Errand):
            item.error = DeviceUnusable(ending.detail)
            item.done.set()
            return
        if isinstance(item, _Search):
            item.answers.send(KeyRefused(item.frame, ending.detail, ending.locked))
            return
        left = [
            NotSigned(position, False, 0, ending.detail, sequence, not ending.locked, ending.locked)
            for position, _, sequence in item.operations[item.taken :]
        ]
        item.answers.send(Results(item.frame, [], left, self.operation_seconds))

    def _portion(self, left: int) -> int:
        """How many operations a thread takes at once: about 10 ms of work, at most 32, and a share for each thread."""
        seconds = self.operation_seconds
        most = (
            PORTION if 0 < seconds <= _PORTION_SECONDS / PORTION else max(1, int(_PORTION_SECONDS / (seconds or 0.01)))
        )
        return min(most, max(math.ceil(most / 4), math.ceil(left / len(self._threads))), left)

    # -- the threads ----------------------------------------------------------------------------

    def _serve(self, number: int) -> None:
        try:
            while (item := self._take(number)) is not None:
                try:
                    if isinstance(item, _Search):
                        self._search(number, item)
                    elif isinstance(item, _Errand):
                        self._run(number, item)
                    else:
                        self._sign_portion(number, *item)
                finally:
                    with self._changed:
                        self._busy -= 1
                        self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - a thread that ends quietly would leave its callers waiting
            self._watchdog.die(f"token {self._settings.name}: its host failed: {type(error).__name__}: {error}")

    def _take(self, number: int) -> _Search | _Errand | tuple[_Work, list[tuple[int, bytes, int]]] | None:
        """The next portion of work; None when the host stops. Keeps the session alive while there is none."""
        while True:
            with self._changed:
                woken = True
                while woken and (self._is_lent(number) or not (self._work or self._stopping or self._ending)):
                    woken = self._changed.wait(self._profile.keep_alive)
                if self._is_lent(number):
                    continue
                if self._ending is not None or (self._stopping and not self._work):
                    return None
                if self._work:
                    item = self._work[0]
                    self._busy += 1
                    if not isinstance(item, _Work):
                        self._work.popleft()
                        return item
                    count = self._portion(len(item.operations) - item.taken)
                    portion = item.operations[item.taken : item.taken + count]
                    item.taken += count
                    if item.taken == len(item.operations):
                        self._work.popleft()
                    return item, portion
                self._busy += 1  # so that nobody borrows the session meanwhile
            try:
                self._keep_alive(number)
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()

    def _is_lent(self, number: int) -> bool:
        """Whether another thread works with this thread's session just now."""
        return number == 0 and self._lent

    def _keep_alive(self, number: int) -> None:
        """Use an idle session, so that it stays, and so that a lost device is noticed before a request meets it."""
        session = self._sessions[number]
        if session is None:
            return
        try:
            with self._watchdog.watch(number):
                self._device.keep_alive(session)
        except DeviceError as error:
            self._discard(number)
            if error.verdict.fresh_host:
                self._end(f"token {self._settings.name} is gone: {error.answer}")

    def _session(self, number: int) -> Any:
        session = self._sessions[number]
        if session is None:
            session = self._sessions[number] = self._device.open_session()
        return session

    def _discard(self, number: int) -> None:
        session = self._sessions[number]
        self._sessions[number] = None
        if session is not None and not self._device.close_session(session):
            self._end(f"token {self._settings.name}: its last session was lost, and the login with it")

    def _search(self, number: int, item: _Search) -> None:
        with self._watchdog.watch(number):
            for attempt in (1, 2):
                try:
                    key = self._device.describe_key(self._session(number), item.uri)
                except KeyUnusable as error:
                    item.answers.send(KeyRefused(item.frame, f"token {self._settings.name}: {error}", locked=False))
                    return
                except DeviceError as error:
                    self._discard(number)
                    row = error.verdict
                    if row.again and attempt == 1:
                        continue
                    detail = f"token {self._settings.name}: {error}"
                    item.answers.send(KeyRefused(item.frame, detail, row.locked))
                    if row.fresh_host:
                        self._end(detail)
                    return
                known = self._keys.get(item.uri)
                if key.always_authenticate is None and known is not None and known.spki == key.spki:
                    key.always_authenticate = known.always_authenticate
                self._keys[item.uri] = key
                algorithms = [algorithm.value for algorithm in key.algorithms]
                item.answers.send(Key(item.frame, key.spki, algorithms, list(key.attestation), key.custody))
                return

    def _run(self, number: int, item: _Errand) -> None:
        try:
            with self._login_lock, self._watchdog.watch(number):  # it may try a PIN, under the latch
                item.work(self._session(number))
        except DeviceError as error:
            item.error = error
            if error.verdict.fresh_host:
                self._end(f"token {self._settings.name}: {error}")
        except BaseException as error:  # noqa: BLE001 - whoever waits for it raises it
            item.error = error
        finally:
            item.done.set()

    def _sign_portion(self, number: int, work: _Work, portion: list[tuple[int, bytes, int]]) -> None:
        signed: list[Signed] = []
        failed: list[NotSigned] = []
        clock = time.monotonic
        began = flushed = clock()
        for position, signed_bytes, sequence in portion:
            if self._ending is not None:  # another thread found the token gone: these were not begun
                failed.append(_unbegun(position, sequence, self._ending))
                continue
            self._watchdog.begin(number, began)
            result = self._sign_one(number, work, signed_bytes)
            now = clock()
            self._watchdog.end(number)
            if isinstance(result, bytes):
                signed.append(Signed(position, result, sequence))
                # Without a lock: a lost update costs a little of the average.
                self.operation_seconds += (now - began - self.operation_seconds) * (
                    _SMOOTHING if self.operation_seconds else 1.0
                )
            else:
                failed.append(result._replace(position=position, sequence=sequence))
            if now - flushed > _FLUSH_SECONDS:
                self._answer(work, signed, failed, now)
                signed, failed = [], []
                now = flushed = clock()
            began = now
        if signed or failed:
            self._answer(work, signed, failed, began)

    def _answer(self, work: _Work, signed: list[Signed], failed: list[NotSigned], now: float) -> None:
        """Send results together with those of the other threads: every frame wakes the front.

        At most `_GATHER_SECONDS` of them are held back, and none once the whole frame is done.
        """
        with work.lock:
            work.signed += signed
            work.failed += failed
            work.answered += len(signed) + len(failed)
            gathered = len(work.signed) + len(work.failed)
            if gathered < PORTION and work.answered < len(work.operations) and now - work.flushed < _GATHER_SECONDS:
                return
            results = Results(work.frame, work.signed, work.failed, self.operation_seconds)
            work.signed, work.failed, work.flushed = [], [], now
            work.answers.send(results)

    def _sign_one(self, number: int, work: _Work, signed: bytes) -> bytes | NotSigned:
        """Sign one digest or message; position and sequence of a NotSigned are the caller's to fill in."""
        name = self._settings.name
        for attempt in (1, 2):
            try:
                session = self._session(number)
                key = self._keys.get(work.uri)
                if key is None:
                    key = self._keys[work.uri] = self._device.describe_key(session, work.uri)
                if work.algorithm not in key.algorithms:
                    return _refusal(0, self._not_offered(work, key))
                if key.touch_seconds:  # a person is slower than a device
                    limit = self._settings.operation_timeout + key.touch_seconds
                    self._watchdog.begin(number, time.monotonic(), limit)
                self._device.begin(session, work.uri, work.algorithm)
                if key.always_authenticate:
                    self._authenticate(session)
                return self._device.finish(session, key, work.algorithm, signed)
            except KeyUnusable as error:
                return _refusal(0, f"token {name}: {error}")
            except SignatureMalformed as error:
                return NotSigned(0, True, 0, f"token {name}: {error}", 0, False, False)
            except PinAttemptForbidden as error:
                self._end(str(error), locked=True)
                return NotSigned(0, False, int(CKR.PIN_INCORRECT), str(error), 0, False, True)
            except LatchUnusable as error:
                return _refusal(0, str(error), retry=True)
            except DeviceError as error:
                if error.refuses_algorithm and (key := self._keys.get(work.uri)) is not None:
                    # Nothing was begun, so the session stays. What it answers next time it is asked next time.
                    return _refusal(0, f"{self._not_offered(work, key)} ({error})")._replace(ckr=error.ckr)
                self._discard(number)
                row = error.verdict
                if attempt == 1 and (row.again or self._learn_always_authenticate(work.uri, error)):
                    continue
                if error.in_login:  # it wants none, so the login of the process was what got lost
                    self._keys.pop(work.uri, None)
                    row = row._replace(fresh_host=True)
                return self._failure(error, row)
        raise AssertionError  # the second attempt returns

    def _not_offered(self, work: _Work, key: KeyDescription) -> str:
        others = [algorithm.value for algorithm in key.algorithms if algorithm is not work.algorithm]
        offered = ", ".join(others) or "nothing that is supported"
        return f"token {self._settings.name} does not sign {work.algorithm.value} with {work.uri}; it can: {offered}"

    def _learn_always_authenticate(self, uri: str, error: DeviceError) -> bool:
        """Whether the key turned out to want a login for each signature, which some modules do not tell beforehand."""
        key = self._keys.get(uri)
        if key is None or key.always_authenticate is not None or not error.wants_login:
            return False
        key.always_authenticate = True
        return True

    def _authenticate(self, session: Any) -> None:
        """A login for one signature, under the same latch as the first one."""
        with self._login_lock:
            attempt_login(
                self._device,
                self._latch,
                lambda: self._device.authenticate(session, self._pin),
                never_locks=self._settings.lockout == "none",
            )

    def _failure(self, error: DeviceError, row: Verdict) -> NotSigned:
        detail = f"token {self._settings.name}: {error}"
        if error.ckr in (CKR.OPERATION_ACTIVE, CKR.MUTEX_BAD, CKR.MUTEX_NOT_LOCKED) and len(self._threads) > 1:
            detail += "; modules that fail so with several sessions want sessions = 1"
        if row.fresh_host:
            self._end(detail)
        return NotSigned(0, row.unknown, error.ckr, detail, 0, row.retry, row.locked)

    # -- ending ---------------------------------------------------------------------------------

    def _end(self, detail: str, *, locked: bool = False) -> None:
        """Nothing in this process will work any more: answer what was not begun and let the process end."""
        with self._changed:
            if self._ending is not None:
                return
            self._ending = ending = NotReady(VERSION, locked, detail)
            waiting = list(self._work)
            self._work.clear()
            self._changed.notify_all()
        for item in waiting:
            self._answer_unbegun(item, ending)
        threading.Thread(target=self._finish_ending, args=(ending,), name="ending", daemon=True).start()

    def _finish_ending(self, ending: NotReady) -> None:
        """Tell the fronts at once, so that they hand over no more; end when what is begun has ended."""
        self._on_ending(ending)
        with self._changed:
            self._changed.wait_for(lambda: self._busy == 0, _LAST_ANSWERS_SECONDS)
        self._on_end()

    def leave(self, detail: str, *, locked: bool) -> None:
        """End as an operator wants it: what was not begun is answered, then the process ends."""
        self._end(detail, locked=locked)

    def stop(self, timeout: float) -> bool:
        """Finish what was asked for; whether every thread ended in `timeout` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)


def _foreign_messages(operations: Sequence[Operation]) -> frozenset[int]:
    """The positions of operations whose message is not the one that the digest is of."""
    return frozenset(
        position
        for position, operation in enumerate(operations)
        if hashlib.sha256(operation.message).digest() != operation.tbs
    )


def _refusal(position: int, why: str, *, retry: bool = False) -> NotSigned:
    return NotSigned(position, False, 0, why, 0, retry, False)


def _unbegun(position: int, sequence: int, ending: NotReady) -> NotSigned:
    return NotSigned(position, False, 0, ending.detail, sequence, not ending.locked, ending.locked)
