"""A sink that posts batches to an HTTP endpoint: newline-delimited JSON, any 2xx answer takes the batch.

`X-Greatseal-First-Index` and `X-Greatseal-Last-Index` name what a batch holds, so that a receiver can remove
duplicates before it parses. Redirects are not followed: they would carry the credential elsewhere.
"""

from __future__ import annotations

import asyncio
import http.client
import ssl
from collections.abc import Sequence
from typing import Final
from urllib.parse import SplitResult

from greatseald.ports.sinks import Record, SinkError

_TIMEOUT_SECONDS: Final = 30.0
_MAX_ANSWER: Final = 4096


class HttpSink:
    """Posts to one URL, one connection for each batch."""

    def __init__(self, url: SplitResult, tls: ssl.SSLContext | None, headers: Sequence[tuple[str, str]]) -> None:
        """Post to `url`, over TLS where a context is given. `headers` may hold credentials and are never logged."""
        self._host = url.hostname or ""
        self._port = url.port
        self._target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        self._tls = tls
        self._headers = tuple(headers)
        self._name = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"

    async def deliver(self, records: Sequence[Record]) -> None:
        """Post the records.

        Raises:
            SinkError: it cannot be reached, its certificate is not trusted, or it answered something else than 2xx.
        """
        body = b"".join([record.line + b"\n" for record in records])
        headers = {
            "Content-Type": "application/x-ndjson",
            "X-Greatseal-First-Index": str(records[0].index),
            "X-Greatseal-Last-Index": str(records[-1].index),
            **dict(self._headers),
        }
        try:
            status, answer = await asyncio.to_thread(self._post, body, headers)
        except ssl.SSLCertVerificationError as error:
            raise SinkError(f"{self._name}: its certificate is not trusted: {error.verify_message}") from error
        except (OSError, http.client.HTTPException) as error:
            raise SinkError(f"{self._name}: {str(error) or type(error).__name__}") from error
        if not 200 <= status < 300:
            raise SinkError(f"{self._name} answered {status}: {answer}")

    def _post(self, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
        connection: http.client.HTTPConnection
        if self._tls is not None:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=_TIMEOUT_SECONDS, context=self._tls
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request("POST", self._target, body, headers)
            response = connection.getresponse()
            text = response.read(_MAX_ANSWER).decode("utf-8", "replace")
            return response.status, "".join(c if c.isprintable() else " " for c in text[:200])
        finally:
            connection.close()

    async def close(self) -> None:
        """Nothing is held open."""
