"""A PIN from a pinentry program: GnuPG's, over the Assuan protocol on its stdin and stdout.

    with Pinentry("pinentry", tty="/dev/pts/3") as dialog:
        pin = dialog.ask("PIN of token hsm")

`AssuanAnswer` parses without I/O. Of a program that says more than the protocol allows (lines over
1,000 bytes, more data than a PIN has, an inquiry) nothing is taken. Source: the Assuan manual, "Server
responses"; pinentry's manual, "Protocol".
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from greatseald.adapters.tokens.secret import MAX_PIN_BYTES, Secret, wipe

MAX_LINE_BYTES: Final = 1000
_MAX_LINES: Final = 200
_READ_BYTES: Final = 1024
_CANCELLED: Final = 99
"""GPG_ERR_CANCELED, the low 16 bits of an ERR line's number."""
_KEPT: Final = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TERM", "DISPLAY", "XAUTHORITY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
)  # fmt: skip


class PinentryFailed(Exception):
    """The program cannot be run, or does not speak the protocol; the message says which."""


class PinentryCancelled(Exception):
    """The person closed the dialog."""


class AssuanAnswer:
    """The answer to one command, put together from the bytes of a server."""

    def __init__(self) -> None:
        self._line = bytearray(MAX_LINE_BYTES)
        self._used = 0
        self._lines = 0
        self._data = bytearray(MAX_PIN_BYTES)
        self._size = 0
        self.done = False
        self.error: tuple[int, str] | None = None
        """The number and the words of an ERR line."""

    def feed(self, data: bytearray, size: int) -> None:
        """Take in the first `size` bytes; what follows the end of the answer is an error.

        Raises:
            PinentryFailed: this is not the protocol.
        """
        for position in range(size):
            byte = data[position]
            if self.done:
                message = "it goes on after its answer"
                raise PinentryFailed(message)
            if byte == 0x0A:
                self._end_of_line()
            elif self._used == MAX_LINE_BYTES:
                message = f"it sent a line of more than {MAX_LINE_BYTES} bytes"
                raise PinentryFailed(message)
            else:
                self._line[self._used] = byte
                self._used += 1

    def secret(self) -> Secret:
        """The data of the answer."""
        return Secret(self._data[: self._size])

    def wipe(self) -> None:
        """Forget what was received."""
        wipe(self._line)
        wipe(self._data)
        self._size = 0

    def _end_of_line(self) -> None:
        line, used = self._line, self._used
        self._used = 0
        self._lines += 1
        if self._lines > _MAX_LINES:
            message = f"it sent more than {_MAX_LINES} lines"
            raise PinentryFailed(message)
        if used and line[used - 1] == 0x0D:
            used -= 1
        word, _, _ = bytes(line[: min(used, 8)]).partition(b" ")
        if word == b"D":
            self._unescape(2, used)
        elif word == b"OK":
            self.done = True
        elif word == b"ERR":
            number, _, words = bytes(line[4:used]).decode("utf-8", "replace").partition(" ")
            self.done, self.error = True, (int(number) if number.isascii() and number.isdecimal() else 0, words[:200])
        elif word != b"S" and used and line[0] != ord("#"):
            message = f"it sent {'an inquiry' if word == b'INQUIRE' else 'a line'} that is no answer"
            raise PinentryFailed(message)

    def _unescape(self, position: int, end: int) -> None:
        """Add a data line, its percent escapes undone."""
        while position < end:
            byte = self._line[position]
            if byte == ord("%"):
                try:
                    byte = int(bytes(self._line[position + 1 : min(position + 3, end)]).decode("ascii"), 16)
                except (ValueError, UnicodeDecodeError):
                    byte = -1
                if byte < 0 or position + 3 > end or self._line[position + 1] in b"+-_ ":
                    message = "it sent a percent sign that escapes nothing"
                    raise PinentryFailed(message)
                position += 2
            position += 1
            if self._size == MAX_PIN_BYTES:
                message = f"a PIN has at most {MAX_PIN_BYTES} bytes"
                raise PinentryFailed(message)
            self._data[self._size] = byte
            self._size += 1


class Pinentry:
    """One running pinentry program."""

    def __init__(self, program: str, tty: str = "") -> None:
        """Start it, and tell it the terminal that it may use.

        Raises:
            PinentryFailed: it is not there, or does not greet.
        """
        found = shutil.which(program)
        if found is None:
            message = f"{program} is not installed, or not on PATH (Debian: apt-get install pinentry-curses)"
            raise PinentryFailed(message)
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        try:
            self._process = subprocess.Popen(
                [found], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
            )
        except OSError as error:
            message = f"{found} cannot be started: {error.strerror}"
            raise PinentryFailed(message) from error
        self._program = found
        try:
            self._answer().wipe()  # its greeting
            for option in _options(tty):
                self._command(f"OPTION {option}", may_fail=True).wipe()
        except BaseException:
            self.close()
            raise

    def ask(self, title: str, prompt: str, description: str, error: str = "") -> Secret:
        """Have a person give a PIN.

        Raises:
            PinentryCancelled: the dialog was closed.
            PinentryFailed: the program does not do what it should.
        """
        self._command(f"SETTITLE {_escaped(title)}").wipe()
        self._command(f"SETPROMPT {_escaped(prompt)}").wipe()
        self._command(f"SETDESC {_escaped(description)}").wipe()
        if error:
            self._command(f"SETERROR {_escaped(error)}").wipe()
        answer = self._command("GETPIN")
        try:
            return answer.secret()
        finally:
            answer.wipe()

    def _command(self, line: str, *, may_fail: bool = False) -> AssuanAnswer:
        assert self._process.stdin is not None  # noqa: S101 - it was opened with pipes
        try:
            self._process.stdin.write(line.encode("utf-8")[: MAX_LINE_BYTES - 1] + b"\n")
        except OSError as error:
            message = f"{self._program} has gone: {error.strerror}"
            raise PinentryFailed(message) from error
        answer = self._answer()
        if answer.error is not None and not may_fail:
            answer.wipe()
            number, words = answer.error
            if number & 0xFFFF == _CANCELLED:
                raise PinentryCancelled
            message = f"{self._program} says {words or number}"
            raise PinentryFailed(message)
        return answer

    def _answer(self) -> AssuanAnswer:
        assert self._process.stdout is not None  # noqa: S101 - it was opened with pipes
        answer, buffer = AssuanAnswer(), bytearray(_READ_BYTES)
        try:
            size = 1
            while size and not answer.done:
                size = os.readv(self._process.stdout.fileno(), [buffer])
                answer.feed(buffer, size)
        except PinentryFailed as error:
            answer.wipe()
            message = f"{self._program} is no pinentry: {error}"
            raise PinentryFailed(message) from error
        finally:
            wipe(buffer)
        if not answer.done:
            answer.wipe()
            message = f"{self._program} ended without an answer"
            raise PinentryFailed(message)
        return answer

    def close(self) -> None:
        """End the program."""
        process = self._process
        with suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        if process.stdout is not None:
            process.stdout.close()
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _options(tty: str) -> list[str]:
    options = ["grab"]
    if tty:
        options += [f"ttyname={tty}", f"ttytype={os.environ.get('TERM', 'dumb')}"]
    language = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG")
    return [*options, f"lc-ctype={language}"] if language else options


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
