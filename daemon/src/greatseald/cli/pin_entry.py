"""Where a command gets a PIN from: the terminal without echo, a pinentry program, or stdin where that is asked for.

Never from argv or the environment, which every process of the machine may read. A PIN is a
`Secret`: whoever asked for it wipes it.
"""

from __future__ import annotations

import os
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from greatseald.adapters.tokens.pinentry import Pinentry, PinentryCancelled, PinentryFailed
from greatseald.adapters.tokens.secret import MAX_PIN_BYTES, Secret, one_line, wipe
from greatseald.cli.exits import INTERRUPTED, UNAVAILABLE, USAGE, CommandFailed

_TERMINAL: Final = "/dev/tty"


class PinEntry(Protocol):
    """Something that gives PINs."""

    @property
    def again(self) -> bool:
        """Whether somebody is there who can be asked for another one."""
        ...

    def ask(self, what: str, token: str, error: str = "") -> Secret:
        """Ask for `what`, such as "PIN", of a token; `error` says what was wrong with the last one.

        Raises:
            CommandFailed: nobody gives one.
        """
        ...


def ask_new(entry: PinEntry, what: str, token: str) -> Secret:
    """Ask for a new PIN, twice where somebody types it.

    Raises:
        CommandFailed: nobody gives one, or the two differ.
    """
    new = entry.ask(what, token)
    if not entry.again:
        return new
    repeated = entry.ask(f"{what} once more", token)
    same = repeated == new
    repeated.wipe()
    if not same:
        new.wipe()
        raise CommandFailed(USAGE, f"the two do not agree: nothing was changed at token {token}")
    return new


@contextmanager
def pin_entry(*, stdin: bool, pinentry: bool, program: str) -> Iterator[PinEntry]:
    """What the options ask for.

    Raises:
        CommandFailed: both are asked for, or there is no terminal.
    """
    if stdin and pinentry:
        raise CommandFailed(USAGE, "--stdin and --pinentry are two ways to give a PIN: choose one")
    if stdin:
        yield _Stdin()
    elif pinentry:
        try:
            with Pinentry(program, _tty_name()) as dialog:
                yield _Dialog(dialog)
        except PinentryCancelled as error:
            raise CommandFailed(INTERRUPTED, "the dialog was closed: no PIN was tried") from error
        except PinentryFailed as error:
            raise CommandFailed(UNAVAILABLE, f"no PIN was given: {error}") from error
    else:
        yield _Terminal()


def _tty_name() -> str:
    for descriptor in (0, 2):
        try:
            return os.ttyname(descriptor)
        except OSError:
            continue
    return ""


class _Terminal:
    """The controlling terminal, whatever stdin and stdout are."""

    again = True

    def ask(self, what: str, token: str, error: str = "") -> Secret:
        """Ask without echo."""
        try:
            descriptor = os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as failure:
            message = "no terminal to ask for a PIN: use --pinentry, or --stdin in a script"
            raise CommandFailed(USAGE, message) from failure
        try:
            before = termios.tcgetattr(descriptor)
            silent = termios.tcgetattr(descriptor)
            silent[3] &= ~termios.ECHO
            silent[3] |= termios.ICANON
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, silent)
            try:
                prefix = f"{error}\n" if error else ""
                os.write(descriptor, f"{prefix}{what} of token {token}: ".encode())
                buffer = bytearray(MAX_PIN_BYTES + 3)
                size = os.readv(descriptor, [buffer])
            finally:
                termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
                os.write(descriptor, b"\n")
        finally:
            os.close(descriptor)
        return _checked(buffer, size, what)


class _Stdin:
    """Lines of stdin, in the order in which they are asked for."""

    again = False

    def ask(self, what: str, token: str, error: str = "") -> Secret:
        """Take the next line."""
        del token, error
        buffer, size = bytearray(MAX_PIN_BYTES + 3), 0
        byte = bytearray(1)
        while size < len(buffer) and os.readv(0, [byte]):  # one by one: the next line is another secret
            buffer[size] = byte[0]
            size += 1
            if byte[0] == 0x0A:
                break
        wipe(byte)
        return _checked(buffer, size, what)


class _Dialog:
    """A pinentry program."""

    again = True

    def __init__(self, dialog: Pinentry) -> None:
        self._dialog = dialog

    def ask(self, what: str, token: str, error: str = "") -> Secret:
        """Have the program ask."""
        pin = self._dialog.ask("Greatseal", f"{what}:", f"{what} of token {token}", error)
        if not len(pin):
            raise CommandFailed(USAGE, f"no {what} was given: nothing was tried")
        return pin


def _checked(buffer: bytearray, size: int, what: str) -> Secret:
    try:
        return one_line(buffer, size)
    except ValueError as error:
        raise CommandFailed(USAGE, f"the {what} {error}: nothing was tried") from error
