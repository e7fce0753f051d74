"""The PIN attempt latch: a wrong PIN is tried at most once per operator action.

A small file in the token's state directory. It is written durably before C_Login and removed
after a success, so a host that dies in between, or whose PIN was refused, leaves it behind:

    no file                 a login may be tried
    verdict "refused"       the token refused the PIN: never again until an operator removes the file
    no verdict              the host died in C_Login, or the answer did not say whether the PIN was
                            tried: one more automatic try, only if the device never locks
                            (`lockout = "none"`) or reports a full retry counter

That is for PINs that a host finds by itself, in a file or a credential. Where an operator gives the PIN,
each attempt is the operator's action: the latch is written before it all the same, tells the next one
what became of the last, and forbids nothing but the last try, which has to be asked for by name.

The file holds nothing derived from the PIN: PINs are short, and even a slow hash of a refused one
could be searched by whoever reads a backup of the state directory, and after a replug the refused
PIN may have been the right one. The price is that putting another PIN into the file does not count
as the operator's action; removing the latch does, and every message says so.
"""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Final

import msgspec

from greatseald.adapters.durable import fsync_directory, write_durably

FILE_NAME: Final = "pin-attempt.latch"
_MAX_BYTES: Final = 4096


class PinAttemptForbidden(Exception):
    """No login may be tried before an operator has acted; the message tells which action."""


class PinWasRefused(PinAttemptForbidden):
    """The token tried the PIN just now, and refused it."""


class LatchUnusable(Exception):
    """The latch file cannot be read or written, so no login may be tried."""


class RetryCounter(Enum):
    """What the token's flags say of its PIN tries."""

    FULL = "full"
    LOW = "low"
    FINAL_TRY = "final try"
    LOCKED = "locked"


class _Latch(msgspec.Struct, omit_defaults=True):
    attempted_at: str
    automatic_tries: int = 0
    verdict: str = ""
    detail: str = ""


class PinLatch:
    """The latch of one token. `before_attempt` → C_Login → `succeeded`, `refused` or `not_tried`.

    `by_operator`: nobody but an operator ever gives this token's PIN.
    """

    def __init__(self, directory: Path, token: str, pin_source: str, *, by_operator: bool = False) -> None:
        self.path = directory / FILE_NAME
        self._token = token
        self._pin_source = pin_source
        self._by_operator = by_operator

    @property
    def present(self) -> bool:
        """Whether the file is there."""
        return self.path.exists()

    def refuse_if_closed(self) -> None:
        """Raise where the latch forbids a login whatever the token reports.

        Raises:
            PinAttemptForbidden: the PIN was refused earlier.
            LatchUnusable: the file cannot be read.
        """
        latch = self._read()
        if latch is not None and latch.verdict:
            raise PinAttemptForbidden(self._closed(latch))

    def before_attempt(self, counter: RetryCounter, *, never_locks: bool) -> None:
        """Decide whether C_Login may be called now; when this returns, the attempt is durably noted.

        Raises:
            PinAttemptForbidden: an operator has to act first.
            LatchUnusable: the file cannot be read or written.
        """
        latch = self._read()
        if latch is not None and latch.verdict:
            raise PinAttemptForbidden(self._closed(latch))
        self._refuse_if_locked(counter)
        if counter is RetryCounter.FINAL_TRY:
            message = (
                f"token {self._token}: one PIN try is left, and the daemon never takes the last one: "
                "log in once with the vendor's tool and the right PIN, which restores the counter"
            )
            raise PinAttemptForbidden(message)
        tries = 0
        if latch is not None:
            tries = latch.automatic_tries + 1
            if not never_locks and (counter is not RetryCounter.FULL or tries > 1):
                message = (
                    f"token {self._token}: a login at {latch.attempted_at} ended without an answer, so the PIN may have "
                    f"been tried and refused: check that {self._pin_source} holds the right PIN and that the token has "
                    f"tries left, then remove {self.path}"
                )
                raise PinAttemptForbidden(message)
        self._write(_Latch(attempted_at=_now(), automatic_tries=tries))

    def before_operator_attempt(self, counter: RetryCounter, *, final_try: bool) -> None:
        """The same for a PIN that an operator gave for this one attempt, whatever became of the last.

        Raises:
            PinAttemptForbidden: the PIN is locked, or one try is left and `final_try` is not set.
            LatchUnusable: the file cannot be written.
        """
        self._refuse_if_locked(counter)
        if counter is RetryCounter.FINAL_TRY and not final_try:
            message = (
                f"token {self._token}: one PIN try is left, and a wrong one locks it: take it with --final-try, "
                "once you are sure of the PIN"
            )
            raise PinAttemptForbidden(message)
        self._write(_Latch(attempted_at=_now()))

    def _refuse_if_locked(self, counter: RetryCounter) -> None:
        if counter is RetryCounter.LOCKED:
            message = (
                f"token {self._token}: its PIN is locked: unblock it (`greatseald token unblock {self._token}`, or the "
                "vendor's tool)"
            )
            raise PinAttemptForbidden(message)

    def last_attempt(self) -> str:
        """What became of the last attempt, in words, where it did not succeed; empty otherwise.

        Raises:
            LatchUnusable: the file cannot be read.
        """
        latch = self._read()
        if latch is None:
            return ""
        if latch.verdict:
            return f"the last PIN was refused at {latch.attempted_at} ({latch.detail})"
        return f"a login at {latch.attempted_at} ended without an answer and may have cost a try"

    def succeeded(self) -> None:
        """The token accepted the PIN: remove the latch durably.

        Raises:
            LatchUnusable: it cannot be removed.
        """
        try:
            self.path.unlink(missing_ok=True)
            fsync_directory(self.path.parent)
        except OSError as error:
            message = f"token {self._token}: the PIN latch {self.path} cannot be removed: {error.strerror}"
            raise LatchUnusable(message) from error

    not_tried = succeeded

    def refused(self, detail: str) -> PinWasRefused:
        """The token refused the PIN: close the latch and return what to raise.

        Raises:
            LatchUnusable: it cannot be written; the attempt that `before_attempt` noted still stands.
        """
        latch = _Latch(attempted_at=_now(), verdict="refused", detail=detail)
        self._write(latch)
        return PinWasRefused(self._closed(latch))

    def _closed(self, latch: _Latch) -> str:
        if self._by_operator:
            return f"token {self._token}: the PIN was refused at {latch.attempted_at} ({latch.detail}) and is not tried again"
        return (
            f"token {self._token}: the PIN in {self._pin_source} was refused at {latch.attempted_at} ({latch.detail}) and "
            f"is not tried again: put the right PIN there, then remove {self.path}"
        )

    def _read(self) -> _Latch | None:
        try:
            with self.path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            message = f"token {self._token}: the PIN latch {self.path} cannot be read: {error.strerror}"
            raise LatchUnusable(message) from error
        try:
            return msgspec.json.decode(data, type=_Latch)
        except msgspec.DecodeError:
            # Someone else's or half a file: an attempt of which nothing is known.
            return _Latch(attempted_at="an unknown time", automatic_tries=1)

    def _write(self, latch: _Latch) -> None:
        try:
            write_durably(self.path, msgspec.json.encode(latch) + b"\n")
        except OSError as error:
            message = f"token {self._token}: the PIN latch {self.path} cannot be written, so no login is tried: {error.strerror}"
            raise LatchUnusable(message) from error


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
