"""Publishing the log as tiles, and serving them: what `[log.tiles]` asks for."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING

import structlog

from greatseal.note import NoteSigner
from greatseald.adapters.authn.certificate import CertificateReader
from greatseald.adapters.tiles import TileDirectory
from greatseald.adapters.tiles_http import TilesServer
from greatseald.app.publishing import Publishing
from greatseald.config import read_log_key
from greatseald.domain.policy import READ_AUDIT

if TYPE_CHECKING:
    from greatseald.adapters.metrics_state import StateGauges
    from greatseald.app.access import Access
    from greatseald.app.audit import AuditLog
    from greatseald.config import LogSettings, ServerSettings, Settings, TilesSettings

_log = structlog.get_logger("greatseald.tiles")


def tile_directory(settings: LogSettings) -> TileDirectory | None:
    """Return the directory that the log is published to, where there is one. Raises FileProblem."""
    if settings.tiles is None:
        return None
    key = NoteSigner(settings.origin, read_log_key(settings.key_file)).verifier
    return TileDirectory(settings.tiles.directory, key)


class Tiles:
    """The publishing of one log and the server of what is published. Belongs to the event loop."""

    def __init__(self, publishing: Publishing, server: TilesServer | None, listen: str) -> None:
        self._server = server
        self._listen = listen
        self.publishing = publishing

    @classmethod
    def build(cls, settings: Settings, log: AuditLog, access: Access, gauges: StateGauges) -> Tiles | None:
        """Put the parts together; None where the log is not published.

        Raises:
            FileProblem: the log key cannot be read.
        """
        table, place = settings.log.tiles, tile_directory(settings.log)
        if table is None or place is None:
            return None
        publishing = Publishing(place=place, log=log, interval=table.interval)
        gauges.watch_value("greatseald_tiles_entries", lambda: publishing.published)
        gauges.watch_value("greatseald_tiles_timestamp_seconds", lambda: publishing.published_at)
        gauges.watch_value("greatseald_tiles_behind_entries", lambda: publishing.behind)
        gauges.watch_value("greatseald_tiles_failing", lambda: float(publishing.failing))
        gauges.watch_value("greatseald_tiles_disagree", lambda: float(bool(publishing.disagrees)))
        server = _server(table, settings.server, access) if table.listen else None
        return cls(publishing, server, table.listen)

    async def listen(self) -> str:
        """Begin to serve, where that is wanted; return the address, or nothing. Raises OSError if it is in use."""
        if self._server is None:
            return ""
        address = await self._server.start()
        _log.info("tiles_listening", address=address)
        return address

    async def stop(self) -> None:
        """Stop serving."""
        if self._server is not None:
            await self._server.stop()


def _server(table: TilesSettings, server: ServerSettings, access: Access) -> TilesServer:
    reader = CertificateReader(time.time)

    async def admit(certificate: bytes, peer: str) -> None:
        await access.require(reader.caller(certificate), peer, READ_AUDIT)

    return TilesServer(table.listen, table.directory, _tls(server) if table.tls else None, admit)


def _tls(server: ServerSettings) -> ssl.SSLContext:
    """TLS with the daemon's own certificate, for callers that `client_ca` vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(server.tls_cert, server.tls_key)
    context.load_verify_locations(server.client_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context
