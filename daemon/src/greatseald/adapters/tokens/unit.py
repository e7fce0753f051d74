"""The main process of a token host that runs as its own unit and user.

It holds the listening socket and keeps one worker alive, which accepts from it: when the worker
ends, connections wait in the socket until its successor takes them. It loads no vendor's library
and reads no PIN, so nothing that such a library does can stop it from replacing a worker.

A refused PIN does not end it: it stays, says so, and tries nothing before the operator has acted.
SIGHUP is answered with a line that says what takes a restart.

Exit codes: 0 stopped by SIGTERM or SIGINT, 2 the configuration or the socket cannot be used.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from greatseald.adapters import service_manager
from greatseald.adapters.tokens import frames
from greatseald.adapters.tokens.breaker import breaker_of
from greatseald.adapters.tokens.frames import FrameBuffer, FrameInvalid, Hello, NotReady, Ping, Ready, Stop, ToHost
from greatseald.adapters.tokens.hardening import harden
from greatseald.adapters.tokens.launch import launch_host, say
from greatseald.adapters.tokens.unix_sockets import SocketUnusable, bind
from greatseald.config import ConfigError, load_token
from greatseald.domain.tokens import TokenSettings

_TICK_SECONDS: Final = 0.5
_PING_SECONDS: Final = 5.0
_SILENCE_SECONDS: Final = 30.0
EXIT_USAGE: Final = 2
_MAX_UID: Final = (1 << 32) - 1
_NO_RELOAD: Final = (
    "SIGHUP changes nothing: module, PIN and sessions are read when a host starts. Restart this unit, and the front "
    "reconnects; rules and certificates are the front's"
)


def run_unit(config: Path, token: str, front: str) -> int:
    """Run the host of `token` until a signal ends it; returns the exit code."""
    try:
        settings = load_token(config, token).settings()
        uid, gid = _front_user(front)
        path = _socket_path(settings, config)
        listener = bind(path, gid)
    except (ConfigError, SocketUnusable) as error:
        say(token, str(error))
        return EXIT_USAGE
    harden()
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, lambda *_: os.write(2, f"token host {token}: {_NO_RELOAD}\n".encode()))
    service_manager.notify("READY=1", f"STATUS=listening on {path}")
    try:
        _keep_worker(settings, listener, uid, lambda: stopped)
    finally:
        service_manager.notify("STOPPING=1")
        listener.close()
        path.unlink(missing_ok=True)
    return 0


def _socket_path(settings: TokenSettings, config: Path) -> Path:
    if settings.host_socket is None:
        raise SocketUnusable(f"token {settings.name} of {config} has no host_socket: the front starts its host itself")
    return settings.host_socket


def _front_user(name: str) -> tuple[int, int | None]:
    """The user id that may connect, and the group that the socket is for (None: only our own user)."""
    if not name:
        return os.geteuid(), None
    if name.isdecimal() and int(name) < _MAX_UID:  # containers know no names
        try:
            return int(name), pwd.getpwuid(int(name)).pw_gid
        except KeyError:
            return int(name), int(name)
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        message = f"there is no user {name!r} to be the front"
        raise SocketUnusable(message) from error
    return entry.pw_uid, entry.pw_gid


def _keep_worker(settings: TokenSettings, listener: socket.socket, front_uid: int, stopped: Callable[[], bool]) -> None:
    breaker = breaker_of(settings)
    while not stopped():
        began = time.monotonic()
        try:
            process, control = launch_host(settings.environment, listener, front_uid)
        except OSError as error:
            say(settings.name, f"its worker cannot be started: {error}")
        else:
            with control:
                _watch(settings, process, control, stopped)
            if time.monotonic() - began > _SILENCE_SECONDS:
                breaker.succeeded()
        resume = time.monotonic() + breaker.failed()
        while not stopped() and time.monotonic() < resume:
            time.sleep(min(_TICK_SECONDS, max(0.0, resume - time.monotonic())))


def _watch(
    settings: TokenSettings, process: subprocess.Popen[bytes], control: socket.socket, stopped: Callable[[], bool]
) -> None:
    """Stay with one worker until it has ended; kill it when it no longer answers, stop it when we are stopped."""
    control.settimeout(_TICK_SECONDS)
    buffer = FrameBuffer()
    silence = max(_SILENCE_SECONDS, settings.operation_timeout) + _PING_SECONDS
    heard = pinged = time.monotonic()
    stopping_until = 0.0
    try:
        _send(control, Hello(frames.VERSION, settings.name, frames.to_host_settings(settings)))
        while process.poll() is None:
            now = time.monotonic()
            if stopped() and not stopping_until:
                stopping_until = now + settings.operation_timeout + _PING_SECONDS
                _send(control, Stop())
            if now - heard > silence or (stopping_until and now > stopping_until):
                say(settings.name, "its worker does not answer and is killed")
                break
            if now - pinged > _PING_SECONDS:
                pinged = now
                _send(control, Ping(0))
            try:
                data = control.recv(65536)
            except TimeoutError:
                continue
            if not data:
                break
            heard = time.monotonic()
            for body in buffer.feed(data):
                message = frames.decode_from_host(body)
                if isinstance(message, Ready):
                    say(settings.name, "ready" + "".join(f"; {note}" for note in message.notes))
                    service_manager.notify("STATUS=the token is ready")
                elif isinstance(message, NotReady):
                    say(settings.name, message.detail)
                    service_manager.notify(f"STATUS={message.detail[:500]}")
    except (OSError, FrameInvalid) as error:
        say(settings.name, f"its worker is given up: {error}")
    finally:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_TICK_SECONDS)  # the end of file comes a moment before the end of the process
        process.kill()
        process.wait()
        if process.returncode and process.returncode != -signal.SIGKILL:
            say(settings.name, f"its worker ended with code {process.returncode}")


def _send(control: socket.socket, message: ToHost) -> None:
    control.sendall(frames.encode(message))
