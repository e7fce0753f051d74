"""One bounded HTTP exchange with somebody outside: witnesses, timestamp authorities, mirrors.

Everything ends within the time-out, whatever the other side does: a timer shuts the connection of one that dribbles.
No redirect is followed, no proxy is used, no answer over the limit is read.

    status, kind, body = Endpoint(url, tls_context(ca), timeout=5).post("/add-checkpoint", body, "text/plain", 65536)
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from greatseald.ports.sightings import OutsideUnreachable

_TOLD: Final = 200


class Answer(NamedTuple):
    """Status, content type without parameters, and body."""

    status: int
    content_type: str
    body: bytes

    def told(self) -> str:
        """The body's beginning, for a message."""
        text = self.body[:_TOLD].decode("utf-8", "replace")
        return "".join(char if char.isprintable() else " " for char in text).strip()


class Endpoint:
    """One URL. Thread-safe: each exchange has a connection of its own."""

    def __init__(self, url: str, ca: Path | None, timeout: float) -> None:
        """Speak to `url`, whose certificate leads to `ca` (PEM) or, without one, to what the system trusts.

        Raises:
            OSError: `ca` cannot be used.
        """
        parts = urlsplit(url)
        self.name = url
        self._host = parts.hostname or ""
        self._port = parts.port
        self._path = parts.path
        self._timeout = timeout
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = ssl.create_default_context(cafile=str(ca) if ca else None)
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2

    def post(self, path: str, body: bytes, content_type: str, limit: int) -> Answer:
        """Post a body to the URL with `path` behind it; read an answer of at most `limit` bytes.

        Raises:
            OutsideUnreachable: there was none in time.
        """
        return self._exchange("POST", path, body, {"Content-Type": content_type}, limit)

    def get(self, limit: int) -> Answer:
        """Get what stands at the URL. Raises OutsideUnreachable."""
        return self._exchange("GET", "", None, {}, limit)

    def _exchange(self, method: str, path: str, body: bytes | None, headers: dict[str, str], limit: int) -> Answer:
        connection: http.client.HTTPConnection
        if self._tls is not None:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=self._tls)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        over = threading.Event()
        timer = threading.Timer(self._timeout, _cut, (connection, over))
        timer.daemon = True
        timer.start()
        try:
            target = self._path.rstrip("/") + path if path else self._path
            connection.request(method, target or "/", body, headers)
            response = connection.getresponse()
            data = response.read(limit + 1)
        except ssl.SSLCertVerificationError as error:
            raise OutsideUnreachable(f"{self.name}: its certificate is not trusted: {error.verify_message}") from error
        except (OSError, http.client.HTTPException) as error:
            why = f"no answer within {self._timeout:g} s" if over.is_set() else str(error) or type(error).__name__
            raise OutsideUnreachable(f"{self.name}: {why}") from error
        finally:
            timer.cancel()
            connection.close()
        if over.is_set():  # what was read may be the beginning of more
            raise OutsideUnreachable(f"{self.name}: no answer within {self._timeout:g} s")
        if len(data) > limit:
            raise OutsideUnreachable(f"{self.name} answered with more than {limit} bytes")
        return Answer(response.status, response.headers.get_content_type(), data)


def _cut(connection: http.client.HTTPConnection, over: threading.Event) -> None:
    over.set()
    sock: socket.socket | None = connection.sock
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
