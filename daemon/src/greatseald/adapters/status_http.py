"""Plain HTTP on loopback for probes and Prometheus: `/metrics`, `/healthz`, `/readyz`.

Health over mTLS alone shuts out balancers and probes, which have no certificate. Nothing here takes
input but a path; after its answer a connection is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from greatseald.adapters.plain_http import PlainServer, Request, Response
from greatseald.config import is_loopback, split_endpoint

_MAX_CONNECTIONS: Final = 32


class NotLoopbackError(Exception):
    """The address can be reached from elsewhere, and nothing here authenticates."""


class StatusServer:
    """Answers probes. `ready` returns whether the daemon serves, and a word on it."""

    def __init__(
        self, listen: str, *, metrics: Callable[[], bytes], content_type: str, ready: Callable[[], tuple[bool, str]]
    ) -> None:
        host, _ = split_endpoint(listen)
        if not is_loopback(host):
            raise NotLoopbackError(f"metrics_listen must be on loopback, and {listen} is not")
        self._metrics = metrics
        self._content_type = content_type
        self._ready = ready
        self._server = PlainServer(listen, self._answer, connections=_MAX_CONNECTIONS)

    async def start(self) -> str:
        """Listen; return the address with the real port. Raises OSError if it is in use."""
        return await self._server.start()

    async def stop(self) -> None:
        """Stop listening."""
        await self._server.stop()

    async def _answer(self, request: Request) -> Response:
        if request.path == "/metrics":
            return Response(HTTPStatus.OK, self._metrics(), self._content_type)
        if request.path == "/healthz":
            return Response(HTTPStatus.OK, b"ok\n")
        if request.path == "/readyz":
            ready, word = self._ready()
            status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
            return Response(status, f"{word}\n".encode())
        return Response(HTTPStatus.NOT_FOUND, b"/metrics, /healthz or /readyz\n")
