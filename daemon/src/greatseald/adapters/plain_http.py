"""The little of HTTP/1.1 that the daemon speaks: GET and HEAD of a path, within bounds.

    server = PlainServer("127.0.0.1:9464", answer, connections=32)
    address = await server.start()

A request's head has up to 4 KiB and five seconds to arrive; what has a body is refused. `answer` gets the
request and gives the response. Idle connections are closed, and those beyond the limit at once.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from greatseald.config import split_endpoint

_MAX_REQUEST: Final = 4096
_READ_SECONDS: Final = 5.0
_WRITE_SECONDS: Final = 60.0
_HANDSHAKE_SECONDS: Final = 5.0
_MAX_REQUESTS: Final = 10_000
"""Requests of one connection: a mirror fetches a whole log over one."""
TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is well-formed. `path` has no query; `certificate` is the client's, DER, where TLS asked for one."""

    method: str
    path: str
    headers: dict[str, str]
    peer: str
    certificate: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. A body of HEAD or of 304 is measured and not sent."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT
    headers: dict[str, str] = field(default_factory=lambda: {"Cache-Control": "no-store"})


Answer = Callable[[Request], Awaitable[Response]]


class PlainServer:
    """Serves one address.

    Args:
        listen: `host:port`.
        answer: makes the responses; what it raises closes the connection.
        connections: most at a time.
        keep_alive: whether a connection may bring further requests.
        tls: for TLS; it should demand a client certificate.
    """

    def __init__(
        self,
        listen: str,
        answer: Answer,
        *,
        connections: int,
        keep_alive: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._host, self._port = split_endpoint(listen)
        self._answer = answer
        self._most = connections
        self._keep_alive = keep_alive
        self._tls = tls
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Listen; return the address with the real port. Raises OSError if it is in use."""
        self._server = await asyncio.start_server(
            self._connected,
            self._host,
            self._port,
            limit=_MAX_REQUEST,
            ssl=self._tls,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS if self._tls else None,
        )
        port = self._server.sockets[0].getsockname()[1]
        return f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"

    async def stop(self) -> None:
        """Stop listening and end what is under way."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= self._most:
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this as a task
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that went away, or no client at all
        except asyncio.CancelledError:
            pass  # stop() ends it; asyncio would report a cancelled connection as an error
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = str(writer.get_extra_info("peername"))
        session = writer.get_extra_info("ssl_object")
        certificate = (session.getpeercert(binary_form=True) or b"") if session is not None else b""
        for _ in range(_MAX_REQUESTS):
            async with asyncio.timeout(_READ_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            request = _parse(head, peer, certificate)
            if request is None:
                response, goes_on = Response(HTTPStatus.BAD_REQUEST, b"not a request without a body\n"), False
            elif request.method not in {"GET", "HEAD"}:
                response, goes_on = Response(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n"), False
            else:
                response = await self._answer(request)
                goes_on = self._keep_alive and request.headers.get("connection", "").lower() != "close"
            with_body = response.status is not HTTPStatus.NOT_MODIFIED and (request is None or request.method != "HEAD")
            writer.write(_head(response, goes_on=goes_on) + (response.body if with_body else b""))
            async with asyncio.timeout(_WRITE_SECONDS):
                await writer.drain()
            if not goes_on:
                return


def _parse(head: bytes, peer: str, certificate: bytes) -> Request | None:
    """Read a request's head; None where it is malformed or announces a body."""
    try:
        lines = head[:-4].decode("ascii").split("\r\n")
    except UnicodeDecodeError:
        return None
    # RFC 9110, 5.5: no line ends within a line, and no control character but a tab is in one.
    if not all(line.replace("\t", " ").isprintable() for line in lines):
        return None
    method, _, rest = lines[0].partition(" ")
    target, _, version = rest.partition(" ")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip() or name.lower() in headers:
            return None
        headers[name.lower()] = value.strip()
    if version not in {"HTTP/1.1", "HTTP/1.0"} or not target.startswith("/") or not method.isalpha():
        return None
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        return None
    if version == "HTTP/1.0":
        headers["connection"] = "close"
    return Request(method, target.partition("?")[0], headers, peer, certificate)


def _head(response: Response, *, goes_on: bool) -> bytes:
    length = [] if response.status is HTTPStatus.NOT_MODIFIED else [f"Content-Length: {len(response.body)}"]
    lines = [
        f"HTTP/1.1 {response.status.value} {response.status.phrase}",
        f"Content-Type: {response.content_type}",
        *length,
        *(f"{name}: {value}" for name, value in response.headers.items()),
        "X-Content-Type-Options: nosniff",
        f"Connection: {'keep-alive' if goes_on else 'close'}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
