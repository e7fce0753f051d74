"""One front at the other end of a token host's socket: messages out and in."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Final

from greatseald.adapters.tokens import frames
from greatseald.adapters.tokens.frames import FrameBuffer, FromHost, NotReady, ToHost
from greatseald.adapters.tokens.unix_sockets import peer_uid

_READ_BYTES: Final = 256 * 1024
_LAST_WORDS_SECONDS: Final = 0.5


class Connection:
    """One front at the other end of a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()
        self._buffer = FrameBuffer()
        self._pending: list[bytes] = []
        self.greeted = False
        self.ready = False
        """Whether it was told that the token is ready: only then may it ask for anything."""

    def send(self, message: FromHost) -> None:
        """Send one message; a front that is gone gets nothing and that is no error."""
        data = frames.encode(message)
        with self._lock, suppress(OSError):
            self._socket.sendall(data)

    def last_words(self, message: NotReady) -> None:
        """Send a message before the process ends, if nobody else is sending and the front reads."""
        if self._lock.acquire(timeout=_LAST_WORDS_SECONDS):
            try:
                with suppress(OSError):
                    self._socket.settimeout(_LAST_WORDS_SECONDS)
                    self._socket.sendall(frames.encode(message))
            finally:
                self._lock.release()

    def receive(self) -> ToHost | None:
        """The next message; None at the end of the stream.

        Raises:
            FrameInvalid: the front does not speak this protocol.
        """
        while not self._pending:
            try:
                data = self._socket.recv(_READ_BYTES)
            except OSError:
                return None
            if not data:
                return None
            self._pending.extend(self._buffer.feed(data))
        return frames.decode_to_host(self._pending.pop(0))

    def peer_uid(self) -> int:
        """The user at the other end, by the kernel's word (SO_PEERCRED)."""
        return peer_uid(self._socket)

    def close(self) -> None:
        """Close the socket; whoever reads from it sees the end."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
