"""The other end of a token host's socket for operators: what `greatseald token` asks.

    with reach(settings, offline=True) as host:      # the host that runs, or one for this command alone
        answer = host.ask("unlock", [pin])

A PIN is sent to nobody but the host's own user, root, or ourselves, by the kernel's word on who listens.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from greatseald.adapters.tokens import frames
from greatseald.adapters.tokens.frames import FrameBuffer, FrameInvalid, Hello, NotReady, Ready, Stop
from greatseald.adapters.tokens.launch import launch_host
from greatseald.adapters.tokens.operator_protocol import (
    STATUS,
    VERSION,
    Answer,
    OperatorProtocolError,
    Request,
    TokenStatus,
    receive_answer,
    send_request,
)
from greatseald.adapters.tokens.unix_sockets import peer_uid

if TYPE_CHECKING:
    import subprocess

    from greatseald.adapters.tokens.secret import Secret
    from greatseald.domain.tokens import TokenSettings

_SPARE_SECONDS: Final = 10.0
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 5.0


class HostUnreachable(Exception):
    """No host can be asked; the message says why and what to do."""


class WrongUser(HostUnreachable):
    """Who runs the command may not, or who listens is not who should."""


class OperatedHost:
    """A token's host that an operator talks to."""

    def __init__(self, settings: TokenSettings, *, temporary: bool) -> None:
        self._settings = settings
        self.temporary = temporary

    def ask(self, action: str, secrets: Sequence[Secret] = (), *, final_try: bool = False) -> Answer:
        """Ask for one thing; the secrets are the caller's to wipe.

        Raises:
            HostUnreachable: nobody answers.
        """
        settings = self._settings
        path = settings.operator_socket
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            # The host works on one thing at a time, and each may take the token's time.
            sock.settimeout(2 * max(settings.operation_timeout, _START_SECONDS) + _SPARE_SECONDS)
            try:
                sock.connect(str(path))
                self._check_listener(peer_uid(sock))
                send_request(sock, Request(VERSION, settings.name, action, final_try), secrets)
                return receive_answer(sock)
            except PermissionError as error:
                message = f"the socket of token {settings.name}'s host, {path}, is for its user and root: run this as one of them"
                raise WrongUser(message) from error
            except OSError as error:
                message = f"no host of token {settings.name} listens on {path}: {error.strerror or error}"
                raise HostUnreachable(message) from error
            except OperatorProtocolError as error:
                message = f"the host of token {settings.name} gave no answer ({error}): what it did is in its log"
                raise HostUnreachable(message) from error

    def status(self) -> TokenStatus:
        """How it stands.

        Raises:
            HostUnreachable: nobody answers.
        """
        answer = self.ask(STATUS)
        if answer.status is None:
            raise HostUnreachable(answer.message)
        return answer.status

    def _check_listener(self, uid: int) -> None:
        path = self._settings.operator_socket
        trusted = {0, os.geteuid()}
        with suppress(OSError):
            trusted.add(self._settings.state_dir.stat().st_uid)
        if uid not in trusted:
            message = (
                f"who listens on {path} is user id {uid}, not the token's host: nothing was sent, find out who that is"
            )
            raise WrongUser(message)


@contextmanager
def reach(settings: TokenSettings, *, offline: bool) -> Iterator[OperatedHost]:
    """The token's host; with `offline` and none that runs, one for as long as this lasts, which logs in for nobody.

    Raises:
        HostUnreachable: there is none, and none can be started.
    """
    if _listens(settings):
        yield OperatedHost(settings, temporary=False)
        return
    if not offline:
        message = (
            f"no host of token {settings.name} listens on {settings.operator_socket}: start the daemon or the token's unit; "
            "where it runs, its log says why the token cannot be brought up"
        )
        raise HostUnreachable(message)
    _check_user(settings)
    process, control = launch_host(settings.environment)
    try:
        _wait_until_held(settings, control)
        yield OperatedHost(settings, temporary=True)
    finally:
        _end(process, control)


def _listens(settings: TokenSettings) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(settings.operator_socket))
        except PermissionError:
            return True  # `ask` says so
        except OSError:
            return False
        return True


def _check_user(settings: TokenSettings) -> None:
    """Only the host's own user starts one: what another wrote, the next host could not read."""
    directory = settings.state_dir
    while not directory.exists():
        directory = directory.parent
    owner = directory.stat().st_uid
    if owner != os.geteuid():
        message = (
            f"no host of token {settings.name} runs, and {directory} belongs to user id {owner}: run this as that user, such as "
            f"with `runuser -u '#{owner}'`, or start the host"
        )
        raise WrongUser(message)


def _wait_until_held(settings: TokenSettings, control: socket.socket) -> None:
    hello = Hello(frames.VERSION, settings.name, frames.to_host_settings(settings, maintenance=True))
    buffer = FrameBuffer()
    deadline = time.monotonic() + _START_SECONDS
    try:
        control.sendall(frames.encode(hello))
        while True:
            control.settimeout(max(0.01, deadline - time.monotonic()))
            data = control.recv(65536)
            if not data:
                message = f"the host of token {settings.name} ended at its start"
                raise HostUnreachable(message)
            for body in buffer.feed(data):
                message_of_host = frames.decode_from_host(body)
                if isinstance(message_of_host, NotReady) and message_of_host.locked:
                    return
                if isinstance(message_of_host, (NotReady, Ready)):
                    why = message_of_host.detail if isinstance(message_of_host, NotReady) else "it came up"
                    raise HostUnreachable(why)
    except (OSError, FrameInvalid) as error:
        message = f"no host of token {settings.name} can be started: {error}"
        raise HostUnreachable(message) from error


def _end(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    import subprocess

    with control, suppress(OSError):
        control.settimeout(_STOP_SECONDS)
        control.sendall(frames.encode(Stop()))
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
