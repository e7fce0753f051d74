"""Plain HTTP on loopback for probes and Prometheus: `/metrics`, `/healthz`, `/readyz`.

Health over mTLS alone shuts out balancers and probes, which have no certificate. Nothing here takes
input but a path: the request is read up to 4 KiB within five seconds, answered, and the connection
closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from greatseald.config import is_loopback, split_endpoint

_MAX_REQUEST: Final = 4096
_MAX_CONNECTIONS: Final = 32
_READ_SECONDS: Final = 5.0
_TEXT: Final = "text/plain; charset=utf-8"


class NotLoopbackError(Exception):
    """The address can be reached from elsewhere, and nothing here authenticates."""


class StatusServer:
    """Answers probes. `ready` returns whether the daemon serves, and a word on it."""

    def __init__(
        self, listen: str, *, metrics: Callable[[], bytes], content_type: str, ready: Callable[[], tuple[bool, str]]
    ) -> None:
        host, port = split_endpoint(listen)
        if not is_loopback(host):
            raise NotLoopbackError(f"metrics_listen must be on loopback, and {listen} is not")
        self._host, self._port = host, port
        self._metrics = metrics
        self._content_type = content_type
        self._ready = ready
        self._connections = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Listen; return the address with the real port. Raises OSError if it is in use."""
        self._server = await asyncio.start_server(self._serve, self._host, self._port, limit=_MAX_REQUEST)
        port = self._server.sockets[0].getsockname()[1]
        return f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"

    async def stop(self) -> None:
        """Stop listening; a connection under way ends by itself within seconds."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= _MAX_CONNECTIONS:
                async with asyncio.timeout(_READ_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a probe that went away, or no probe at all
        finally:
            self._connections -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
        if method not in {b"GET", b"HEAD"}:
            return _response("405 Method Not Allowed", _TEXT, b"only GET\n", method)
        if path == b"/metrics":
            return _response("200 OK", self._content_type, self._metrics(), method)
        if path == b"/healthz":
            return _response("200 OK", _TEXT, b"ok\n", method)
        if path == b"/readyz":
            ready, word = self._ready()
            status = "200 OK" if ready else "503 Service Unavailable"
            return _response(status, _TEXT, f"{word}\n".encode(), method)
        return _response("404 Not Found", _TEXT, b"/metrics, /healthz or /readyz\n", method)


def _response(status: str, content_type: str, body: bytes, method: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == b"HEAD" else body)
