"""The published tiles over HTTP, read-only: `/checkpoint`, `/tile/<L>/<N>[.p/<W>]`, `/tile/entries/<N>[.p/<W>]`.

A path is taken apart into numbers and made again from them, so that it can name nothing but a tile. Tiles
never change and may be cached for ever, the checkpoint for a few seconds (C2SP tlog-tiles). Entries name
who had what signed: on loopback every local user may read them, elsewhere TLS demands a certificate and
`admit` decides.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import ssl
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final

from greatseal.errors import VerificationFailed
from greatseal.note import MAX_NOTE_BYTES
from greatseal.tilefiles import TileFiles
from greatseal.tiles import MAX_BUNDLE_BYTES, WIDTH, tile_path
from greatseal.tilewriter import CHECKPOINT
from greatseald.adapters.plain_http import PlainServer, Request, Response
from greatseald.domain.errors import GreatsealError, Refusal

_MAX_CONNECTIONS: Final = 64
_TILE: Final = re.compile(
    r"/tile/(entries|[0-9]|[1-5][0-9]|6[0-3])/((?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?"
)
_BYTES: Final = "application/octet-stream"
_FOREVER: Final = "max-age=31536000, immutable"
_SHORT: Final = "max-age=5"

Admit = Callable[[bytes, str], Awaitable[None]]


class TilesServer:
    """Serves one directory.

    Args:
        listen: `host:port`.
        directory: what `TileDirectory` writes.
        tls: demands client certificates; None on loopback.
        admit: raises a `Refusal` for a certificate (PEM) that may not read, given with the peer's address.
    """

    def __init__(self, listen: str, directory: Path, tls: ssl.SSLContext | None, admit: Admit) -> None:
        self._files = TileFiles(directory)
        self._admit = admit if tls is not None else None
        # What a certificate was needed for is no business of a shared cache.
        self._scope = "private" if tls is not None else "public"
        self._server = PlainServer(listen, self._answer, connections=_MAX_CONNECTIONS, keep_alive=True, tls=tls)

    async def start(self) -> str:
        """Listen; return the address with the real port. Raises OSError if it is in use."""
        return await self._server.start()

    async def stop(self) -> None:
        """Stop listening and end what is under way."""
        await self._server.stop()

    async def _answer(self, request: Request) -> Response:
        if self._admit is not None:
            try:
                await self._admit(_pem(request.certificate), request.peer)
            except GreatsealError as error:
                status = HTTPStatus.FORBIDDEN if isinstance(error, Refusal) else HTTPStatus.SERVICE_UNAVAILABLE
                return Response(status, f"{error.message}\n".encode())
        name = _name(request.path)
        if name is None:
            return Response(
                HTTPStatus.NOT_FOUND, b"/checkpoint, /tile/L/N or /tile/entries/N, as in c2sp.org/tlog-tiles\n"
            )
        data = await asyncio.to_thread(self._read, name)
        if data is None:
            return Response(HTTPStatus.NOT_FOUND, b"not published, or another width of it is\n")
        is_tile = name != CHECKPOINT
        tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        headers = {"Cache-Control": f"{self._scope}, {_FOREVER if is_tile else _SHORT}", "ETag": tag}
        content_type = _BYTES if is_tile else "text/plain; charset=utf-8"
        known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
        if tag in known or "*" in known:
            return Response(HTTPStatus.NOT_MODIFIED, b"", content_type, headers)
        return Response(HTTPStatus.OK, data, content_type, headers)

    def _read(self, name: str) -> bytes | None:
        try:
            data = self._files.read(name, MAX_BUNDLE_BYTES if name != CHECKPOINT else MAX_NOTE_BYTES)
        except (OSError, VerificationFailed):
            return None
        return data


def _name(path: str) -> str | None:
    """The file that a path means; None where it means none."""
    if path == f"/{CHECKPOINT}":
        return CHECKPOINT
    match = _TILE.fullmatch(path)
    if match is None:
        return None
    number = int(match[2].replace("x", "").replace("/", ""))
    name = tile_path(match[1], number, int(match[3]) if match[3] else WIDTH)
    # One path for each tile: x000/001 is none, nor is a width of 256.
    return name if f"/{name}" == path else None


def _pem(certificate: bytes) -> bytes:
    body = base64.encodebytes(certificate)
    return b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"
