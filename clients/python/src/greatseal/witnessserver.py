"""HTTP in front of a witness: `POST /add-checkpoint`, and nothing else.

Everything that a client may send is bounded: connections at once, seconds of one connection, bytes of a body.
Connections may be kept open, as C2SP tlog-witness wants it.

    server = WitnessServer(("127.0.0.1", 8450), witness, told=print)
    server.serve_forever()
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from greatseal.tlogwitness import MAX_REQUEST_BYTES, PATH
from greatseal.witness import Reply, Witness

_MAX_CONNECTIONS: Final = 64
_IDLE_SECONDS: Final = 10.0
_CONNECTION_SECONDS: Final = 60.0


class WitnessServer(ThreadingHTTPServer):
    """Serves one witness; plain HTTP, or TLS where a context is given. `told` takes one line for each decision."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        address: tuple[str, int],
        witness: Witness,
        *,
        tls: ssl.SSLContext | None = None,
        told: Callable[[str], None],
    ) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.witness = witness
        self.told = told
        self._tls = tls
        self._room = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection on a thread of its own, if there is room for one."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, no longer than it may last."""
        request.settimeout(_IDLE_SECONDS)
        ending = threading.Timer(_CONNECTION_SECONDS, _cut, (request,))
        ending.daemon = True
        ending.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            ending.cancel()
            self._room.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands where there is TLS, and serve. What a client breaks is its own affair."""
        with contextlib.suppress(OSError):
            if self._tls is None:
                super().finish_request(request, client_address)
                return
            with self._tls.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's method
        """Say that a request failed; the client has its 500 or a closed connection."""
        self.told("a request failed")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WitnessServer

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != f"/{PATH}":
            self._refuse(404, f"there is POST /{PATH} here, and nothing else")
        elif not length.isascii() or not length.isdigit() or len(length) > 9 or "Transfer-Encoding" in self.headers:
            self._refuse(411, "a request says its Content-Length")
        elif int(length) > MAX_REQUEST_BYTES:
            self._refuse(413, f"a request has at most {MAX_REQUEST_BYTES} bytes")
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                self._answer(body)

    def _answer(self, body: bytes) -> None:
        try:
            reply = self.server.witness.add_checkpoint(body)
        except OSError as error:
            self.server.told(f"nothing was cosigned, for the checkpoint cannot be kept: {error.strerror}")
            self._refuse(500, "the witness cannot keep the checkpoint, and cosigned nothing")
            return
        if reply.origin:
            what = "cosigned" if reply.status == 200 else f"refused ({reply.status})"
            self.server.told(f"{what} {reply.origin} of size {reply.size}")
        self._send(reply)

    def _refuse(self, status: int, message: str) -> None:
        self.close_connection = True  # what follows in the stream was not read
        self._send(Reply(status, "text/plain; charset=utf-8", f"{message}\n".encode()))

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply.body)

    def version_string(self) -> str:
        return "greatseal-witness"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Nothing: a line for each request would let anybody fill the disk."""


def _cut(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
