"""What an operator may do at a token's host: see how it stands, unlock, lock, change and unblock its PIN.

Invariants:
- an act is noted durably before anything is done (`operator_acts.py`), and nothing is signed after it
  before a front has it in the log;
- one request tries one PIN at most once, under the latch; a PIN that was refused is not tried again by
  this process; the last try is taken only where it is asked for by name;
- what can be known to be wrong without the token (lengths, the same PIN again) costs no try;
- where the PIN lies in a file, the new one is on the disk before the token is told of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from greatseald.adapters.tokens.ckr import LoginVerdict
from greatseald.adapters.tokens.device import (
    Device,
    DeviceError,
    DeviceUnusable,
    NewPinRefused,
    TokenNotFound,
    attempt_by_operator,
)
from greatseald.adapters.tokens.latch import (
    LatchUnusable,
    PinAttemptForbidden,
    PinLatch,
    PinWasRefused,
    RetryCounter,
)
from greatseald.adapters.tokens.operator_acts import ActJournal, ActsUnusable
from greatseald.adapters.tokens.operator_protocol import (
    CHANGE_PIN,
    LOCK,
    STATUS,
    UNBLOCK,
    UNLOCK,
    VERSION,
    Answer,
    Request,
    TokenStatus,
)
from greatseald.adapters.tokens.operator_status import describe, describe_tries
from greatseald.adapters.tokens.pin import (
    PinUnavailable,
    drop_staged_pin,
    pin_source,
    settle_pin,
    stage_pin,
    staged_path,
)
from greatseald.adapters.tokens.secret import RefusedPins, Secret
from greatseald.adapters.tokens.uris import UriInvalid

if TYPE_CHECKING:
    from greatseald.domain.tokens import TokenSettings

DONE, REFUSED, FORBIDDEN, FAILED, USAGE = "done", "refused", "forbidden", "failed", "usage"
_UNUSABLE: Final = (ActsUnusable, DeviceError, DeviceUnusable, LatchUnusable, PinUnavailable, TokenNotFound, UriInvalid)


_Result = TypeVar("_Result")


class Holder(Protocol):
    """The process that holds the token, as an operator's desk needs it."""

    @property
    def state(self) -> str:
        """Ready, locked (it waits for an operator), closed (by its latch), or held (the process is a command's own)."""
        ...

    @property
    def detail(self) -> str:
        """Why it is not ready, in words."""
        ...

    def device(self) -> Device:
        """The device, opened now if it was not. Raises what `open_device` raises."""
        ...

    @property
    def opened_device(self) -> Device | None:
        """The device, if it is open."""
        ...

    def with_session(self, work: Callable[[Any], _Result]) -> _Result:
        """Do something with a session, and with the device, that nobody else uses meanwhile.

        Raises what `work` raises; DeviceUnusable, where it was not begun.
        """
        ...

    def known_pin(self) -> Secret | None:
        """The PIN, a copy, where this process knows it without being told. Raises PinUnavailable."""
        ...

    def come_up(self, pin: Secret | None) -> None:
        """The token is logged in: begin to work. Raises DeviceError."""
        ...

    def take_pin(self, pin: Secret) -> None:
        """The token's PIN is another one from now on."""
        ...

    def reopen(self) -> None:
        """Open the session again that `Device.unblock` ended. Raises DeviceError."""
        ...

    def lock(self, detail: str) -> None:
        """Log out by ending this process, once what was begun is answered."""
        ...

    def end(self) -> None:
        """End this process, so that a fresh one brings the token up."""
        ...


class OperatorDesk:
    """Answers operators' requests, one at a time."""

    def __init__(
        self, settings: TokenSettings, latch: PinLatch, acts: ActJournal, holder: Holder, tell: Callable[[], None]
    ) -> None:
        """`tell` is called when there is something new for the fronts."""
        self._settings = settings
        self._latch = latch
        self._acts = acts
        self._holder = holder
        self._tell = tell
        self._refused = RefusedPins()
        self._refused_authorities = RefusedPins()
        self._locks = ""
        self._must_end = False

    def answer(self, uid: int, request: Request, secrets: Sequence[Secret]) -> Answer:
        """Carry a request out for the user `uid`; never raises for what an operator or a token can do."""
        name = self._settings.name
        if request.version != VERSION or request.token != name:
            return Answer(USAGE, f"this host speaks version {VERSION} for token {name}")
        work = {
            UNLOCK: self._unlock,
            LOCK: self._lock,
            CHANGE_PIN: self._change_pin,
            UNBLOCK: self._unblock,
        }.get(request.action)
        try:
            if request.action == STATUS:
                answer = Answer(DONE, "")
            elif work is None:
                answer = Answer(USAGE, f"this host knows no {request.action[:32]!r}")
            else:
                answer = work(uid, request, secrets)
        except _UNUSABLE as error:
            answer = Answer(FAILED, self._named(error))
        finally:
            self._tell()
        return Answer(answer.result, answer.message, self._status())

    def finish(self, *, failed: bool = False) -> None:
        """The answer is sent: end this process where that is what was asked for, or all that is left to do."""
        if self._locks:
            self._holder.lock(self._locks)
        elif self._must_end or failed:
            self._holder.end()

    # -- how it stands ------------------------------------------------------------------------------

    def _status(self) -> TokenStatus:
        holder, device = self._holder, self._holder.opened_device
        state = "locked" if self._locks else holder.state
        status = describe(self._settings, self._latch, self._acts, state, holder.detail)
        if device is not None:
            with suppress(DeviceError, DeviceUnusable):
                return holder.with_session(lambda _: describe_tries(status, device))
        return status

    # -- what can be done ---------------------------------------------------------------------------

    def _unlock(self, uid: int, request: Request, secrets: Sequence[Secret]) -> Answer:
        settings, holder = self._settings, self._holder
        if not settings.by_operator:
            message = f"token {settings.name} takes its PIN from {pin_source(settings)}: put the right one there"
            return Answer(USAGE, f"{message}, then remove {self._latch.path}" if self._latch.present else message)
        if holder.state == "ready":
            return Answer(DONE, f"token {settings.name} is unlocked already")
        device = self._device()
        if len(secrets) > 1 or not (secrets or device.has_pin_pad):
            return Answer(USAGE, f"token {settings.name} is unlocked with one PIN")
        pin = secrets[0] if secrets else None

        def unlock(session: Any) -> Answer:
            if pin is not None and (wrong := self._known_wrong(device, pin)):
                return Answer(FORBIDDEN, wrong)

            def work() -> str:
                self._try(device, pin, lambda: device.login(session, pin), request.final_try)
                try:
                    holder.come_up(pin.copy() if pin is not None else None)
                except BaseException:
                    self._must_end = True  # logged in, and of no use: a fresh process asks for the PIN again
                    raise
                return f"token {settings.name} is unlocked, until its host ends"

            return self._carry_out(UNLOCK, "unlocked", uid, work)

        return holder.with_session(unlock)

    def _lock(self, uid: int, request: Request, secrets: Sequence[Secret]) -> Answer:
        del request, secrets
        settings, holder = self._settings, self._holder
        if not settings.by_operator:
            message = (
                f"token {settings.name} takes its PIN from {pin_source(settings)}, so its host would log in again: stop the "
                "host or the daemon instead"
            )
            return Answer(USAGE, message)
        if holder.state != "ready":
            return Answer(DONE, f"token {settings.name} is locked already")
        answer = self._carry_out(LOCK, "locked", uid, lambda: f"token {settings.name} is locked")
        if answer.result == DONE:
            self._locks = f"token {settings.name} was locked by an operator (user id {uid})"
        return answer

    def _change_pin(self, uid: int, request: Request, secrets: Sequence[Secret]) -> Answer:
        holder, name = self._holder, self._settings.name
        if not 1 <= len(secrets) <= 2:
            return Answer(USAGE, "a change takes the current PIN, unless the host knows it, and the new one")
        device, new = self._device(), secrets[-1]
        current = secrets[0].copy() if len(secrets) == 2 else holder.known_pin()
        if current is None:
            return Answer(USAGE, f"the current PIN of token {name} is needed")
        try:
            if current == new:
                return Answer(USAGE, f"the new PIN of token {name} is the current one")

            def change(session: Any) -> Answer:
                wrong = self._known_wrong(device, current) or device.pin_rules.broken_by(new, "the new PIN")
                if wrong:
                    return Answer(FORBIDDEN, wrong)

                def work() -> str:
                    def attempt(done: Callable[[Callable[[], None]], None]) -> None:
                        take = partial(device.change_pin, session, current, new)
                        self._try(device, current, lambda: done(take), request.final_try)

                    self._set_pin(new, attempt)
                    return f"token {name} has its new PIN{self._what_next()}"

                return self._carry_out(CHANGE_PIN, "changed", uid, work)

            return holder.with_session(change)
        finally:
            current.wipe()
            self._must_end = self._must_end or holder.state == "closed"

    def _unblock(self, uid: int, request: Request, secrets: Sequence[Secret]) -> Answer:
        holder, name = self._holder, self._settings.name
        if holder.state == "ready":
            return Answer(
                USAGE, f"token {name} is logged in, so its PIN is not blocked: use change-pin, or lock it first"
            )
        if len(secrets) != 2:
            return Answer(USAGE, "unblocking takes what unblocks, and the new PIN")
        device, (authority, new) = self._device(), secrets
        what = device.unblocks_with

        def unblock(session: Any) -> Answer:
            rules = device.pin_rules
            wrong = rules.broken_by(authority, f"the {what}") or rules.broken_by(new, "the new PIN")
            if not wrong and authority in self._refused_authorities:
                wrong = f"this {what} was refused before and is not tried again"
            wrong = wrong or self._spares_the_last(device, final_try=request.final_try)
            if wrong:
                return Answer(FORBIDDEN, f"token {name}: {wrong}")

            def work() -> str:
                try:
                    self._set_pin(new, lambda done: done(partial(device.unblock, session, authority, new)))
                except DeviceError as error:
                    if error.login is LoginVerdict.REFUSED:
                        self._refused_authorities.add(authority)
                    raise
                finally:
                    self._reopen()
                self._latch.succeeded()
                return f"token {name} has its new PIN{self._what_next()}"

            return self._carry_out(UNBLOCK, "unblocked", uid, work)

        try:
            return holder.with_session(unblock)
        finally:
            self._must_end = self._must_end or holder.state == "closed"

    # -- how it is done -----------------------------------------------------------------------------

    def _device(self) -> Device:
        try:
            return self._holder.device()
        except BaseException:
            self._must_end = True  # what cannot be opened now, no later attempt of this process opens
            raise

    def _carry_out(self, action: str, result: str, uid: int, work: Callable[[], str]) -> Answer:
        """Note an act, do it, note how it ended."""
        act = self._acts.begin(action, uid)
        try:
            answer, ended = Answer(DONE, work()), result
        except PinWasRefused as error:
            answer, ended = Answer(REFUSED, f"{error}; {self._tries_left()}"), "refused"
        except PinAttemptForbidden as error:
            answer, ended = Answer(FORBIDDEN, str(error)), "not tried"
        except NewPinRefused as error:
            answer, ended = Answer(FORBIDDEN, self._named(error)), "new PIN refused"
        except DeviceError as error:
            self._must_end = self._must_end or error.verdict.fresh_host
            refused = error.login is LoginVerdict.REFUSED
            answer, ended = (
                Answer(REFUSED if refused else FAILED, self._explained(error)),
                "refused" if refused else "failed",
            )
        except _UNUSABLE as error:
            answer, ended = Answer(FAILED, self._named(error)), "failed"
        except BaseException as error:
            self._acts.end(act, "failed", type(error).__name__)
            raise
        self._acts.end(act, ended, "" if answer.result == DONE else answer.message)
        return answer

    def _try(self, device: Device, pin: Secret | None, attempt: Callable[[], None], final_try: bool) -> None:
        """Have a PIN tried once, under the latch, and remember one that was refused."""
        try:
            attempt_by_operator(device, self._latch, attempt, final_try=final_try)
        except PinWasRefused:
            if pin is not None:
                self._refused.add(pin)
            raise
        self._refused.forget()

    def _set_pin(self, new: Secret, change: Callable[[Callable[[Callable[[], None]], None]], None]) -> None:
        """Set a new PIN; where it lies in a file, in the order of `pin.py`.

        `change` is called with a function, through which it calls what makes the device take the new PIN.
        """
        path = self._settings.pin_file
        taken, certain = False, True

        def done(take: Callable[[], None]) -> None:
            nonlocal taken, certain
            certain = False
            try:
                take()
            except (NewPinRefused, DeviceUnusable):  # or it was not begun
                certain = True
                raise
            except DeviceError as error:
                certain = error.login is not LoginVerdict.AMBIGUOUS
                raise
            taken = certain = True

        if path is not None:
            stage_pin(path, new)
        try:
            change(done)
        finally:
            if taken:
                self._holder.take_pin(new.copy())
                self._refused.forget()
            if path is not None and taken:
                settle_pin(path)
            elif path is not None and certain:
                drop_staged_pin(path)

    def _reopen(self) -> None:
        try:
            self._holder.reopen()
        except DeviceError:
            self._must_end = True

    def _known_wrong(self, device: Device, pin: Secret) -> str:
        """Why a PIN is certainly not this token's, without asking it; empty where it may be."""
        wrong = device.pin_rules.broken_by(pin)
        if not wrong and pin in self._refused:
            wrong = "this PIN was refused before and is not tried again: give another one"
        return f"token {self._settings.name}: {wrong}; nothing was tried" if wrong else ""

    def _spares_the_last(self, device: Device, *, final_try: bool) -> str:
        """Why what unblocks the PIN may not be tried; empty where it may."""
        tries, what = device.unblocking_tries, device.unblocks_with
        if tries.counter is RetryCounter.LOCKED:
            return f"its {what} is locked: nothing but resetting the token helps, and that destroys its keys"
        if tries.counter is RetryCounter.FINAL_TRY and not final_try:
            return f"one try of its {what} is left: take it with --final-try, once you are sure"
        return ""

    def _what_next(self) -> str:
        settings = self._settings
        if settings.pin_file is not None:
            return f", which lies in {settings.pin_file}"
        if settings.pin_credential:
            return f": put it into the credential {settings.pin_credential} before the host starts again"
        return ""

    def _explained(self, error: DeviceError) -> str:
        message = self._named(error)
        if not error.in_login or error.login is not LoginVerdict.AMBIGUOUS:
            return message
        message += ": it did not say whether it tried the PIN"
        path = self._settings.pin_file
        if path is not None and staged_path(path).exists():
            message += f", so the PIN is the one in {path} or the one in {staged_path(path)}"
        return message

    def _tries_left(self) -> str:
        device = self._holder.opened_device
        if device is not None:
            with suppress(DeviceError):
                return str(device.tries)
        return "see how many tries are left before the next"

    def _named(self, error: Exception) -> str:
        message = str(error)
        return message if message.startswith("token ") else f"token {self._settings.name}: {message}"
