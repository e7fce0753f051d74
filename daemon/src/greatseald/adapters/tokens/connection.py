"""One connection from the front to a token host, and the host's process where we started it.

`lost` completes with HostLost when the connection has ended, for whatever reason, and `reason`
says which. `end()` leaves no process behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import Callable
from typing import Final, cast

from greatseald.adapters.tokens import frames
from greatseald.adapters.tokens.frames import FrameBuffer, FrameInvalid, FromHost, Hello, NotReady, Ready, Stop, ToHost
from greatseald.adapters.tokens.launch import launch_host
from greatseald.domain.tokens import TokenSettings

_REAP_SECONDS: Final = 5.0
_FINISH_SECONDS: Final = 5.0
_CLOSED: Final = "its host closed the connection"


class HostLost(Exception):
    """The host is gone or was given up; the message says why."""


class HostConnection(asyncio.Protocol):
    """Frames to and from one host."""

    def __init__(
        self,
        process: subprocess.Popen[bytes] | None,
        received: Callable[[FromHost], None],
        leaving: Callable[[str], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._process = process
        self._received = received
        self._leaving = leaving
        self._buffer = FrameBuffer()
        self._transport: asyncio.Transport | None = None
        self.greeting: asyncio.Future[Ready | NotReady] = loop.create_future()
        self.unlocked: asyncio.Future[Ready] = loop.create_future()
        """Completes when an operator unlocks a token that greeted as locked."""
        self.lost: asyncio.Future[None] = loop.create_future()
        self.reason = ""

    @property
    def pid(self) -> int | None:
        """The host's process, None where it is not our child."""
        return self._process.pid if self._process is not None else None

    # -- asyncio.Protocol ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        # uvloop's transports are no subclass of asyncio's, so this cannot be checked at run time.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        try:
            for body in self._buffer.feed(data):
                message = frames.decode_from_host(body)
                if isinstance(message, (Ready, NotReady)):
                    self._greeted(message)
                else:
                    self._received(message)
        except FrameInvalid as error:
            self.lose(f"its host sent {error}")

    def connection_lost(self, _error: Exception | None) -> None:
        """Called by the loop."""
        self.lose(_CLOSED)

    # -- the supervisor's -----------------------------------------------------------------------------

    def _greeted(self, message: Ready | NotReady) -> None:
        if not self.greeting.done():
            self.greeting.set_result(message)
        elif isinstance(message, NotReady):  # it gives up: its reason is better than the end of file that follows
            self.reason = self.reason or message.detail
            self._leaving(message.detail)
        elif not self.unlocked.done():
            self.unlocked.set_result(message)

    def send(self, message: ToHost) -> None:
        """Send one message; once the connection is lost, nothing is sent and `lost` has told so."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames.encode(message))

    def lose(self, reason: str) -> None:
        """Give the host up: kill it if it is ours, close the connection."""
        if not self.reason:
            self.reason = reason
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        if self.lost.done():
            return
        self.lost.set_exception(HostLost(self.reason))
        self.lost.exception()  # retrieved: whoever waits sees it, and nobody has to
        if not self.greeting.done():
            self.greeting.set_exception(HostLost(self.reason))
            self.greeting.exception()
        if self._transport is not None:
            self._transport.abort()

    def _explain(self, code: int) -> None:
        """Say how the process ended, where the end of file is all we know."""
        if self.reason == _CLOSED:
            if code < 0:
                name = signal.Signals(-code).name
                why = "by hand, or for want of memory" if -code == signal.SIGKILL else "the vendor's module has crashed"
                self.reason = f"its host was ended by {name}: {why}"
            else:
                self.reason = f"its host ended with code {code}"

    async def finish(self) -> None:
        """Ask the host to end by itself; it has a few seconds."""
        if self.lost.done():
            return
        self.send(Stop())
        self.reason = "stopped"
        with contextlib.suppress(HostLost, TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.lost), _FINISH_SECONDS)

    async def end(self) -> None:
        """Leave nothing behind: connection closed, process killed and reaped.

        A process that the kernel cannot kill (a vendor's driver that hangs) is left after a few
        seconds; its ledger's lock keeps a second one from the token for as long.
        """
        self.lose("its host was given up")
        process = self._process
        if process is None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _REAP_SECONDS
        while process.poll() is None and loop.time() < deadline:  # noqa: ASYNC110 - a child's end has no event in every loop
            await asyncio.sleep(0.005)
        if process.returncode is not None:
            self._explain(process.returncode)


async def connect_host(
    settings: TokenSettings, received: Callable[[FromHost], None], leaving: Callable[[str], None]
) -> HostConnection:
    """Start the token's host, or connect to its unit's socket, and say hello.

    `received` is called with every message but the greeting, `leaving` with the reason when a host
    that was ready announces its end: it answers what it has, and is to be handed nothing more.

    Raises:
        OSError: it cannot be started or reached.
    """
    loop = asyncio.get_running_loop()
    if settings.host_socket is not None:
        _, connection = await loop.create_unix_connection(
            lambda: HostConnection(None, received, leaving), path=str(settings.host_socket)
        )
        connection.send(Hello(frames.VERSION, settings.name, None))
        return connection
    process, sock = launch_host(settings.environment)
    try:
        sock.setblocking(False)
        _, connection = await loop.create_unix_connection(lambda: HostConnection(process, received, leaving), sock=sock)
    except BaseException:
        process.kill()
        process.wait()
        sock.close()
        raise
    connection.send(Hello(frames.VERSION, settings.name, frames.to_host_settings(settings)))
    return connection
