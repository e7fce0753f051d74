"""A sink that speaks syslog: RFC 5424 messages with octet counting, over TCP (RFC 6587) or TLS (RFC 5425).

The protocol has no acknowledgement. A batch counts as delivered when the receiver's TCP has acknowledged
every byte of it and has not hung up: what a receiver loses between its socket and its disk nobody can
see. A batch on a connection that is cut is sent again, whole, on the next one.

    <109>1 2026-11-26T01:02:03.000004Z HOST greatseald PID outcome [greatseal@32473 index="41" log="…"] {…}
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import socket
import ssl
import struct
import termios
from collections.abc import Sequence
from typing import Final

from greatseald.ports.sinks import Record, SinkError

_FACILITY: Final = 13
"""log audit (RFC 5424, section 6.2.1)."""
_NOTICE, _WARNING = 5, 4
_ENTERPRISE: Final = 32473
"""The enterprise number that RFC 5612 reserves for documentation: Greatseal has none of its own."""
_CONNECT_SECONDS: Final = 10.0
_ACKNOWLEDGED_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.005


class SyslogSink:
    """Sends to one receiver over one connection at a time."""

    def __init__(self, host: str, port: int, origin: str, tls: ssl.SSLContext | None) -> None:
        """Send to `host`:`port`, over TLS where a context is given."""
        self._host = host
        self._port = port
        self._tls = tls
        self._name = f"syslog {'TLS' if tls else 'TCP'} {host}:{port}"
        self._hostname = re.sub(r"[^!-~]", "-", socket.gethostname())[:255] or "-"
        self._pid = os.getpid()
        self._log = re.sub(r'(["\\\]])', r"\\\1", origin)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def deliver(self, records: Sequence[Record]) -> None:
        """Send one message for each record and wait until the receiver's TCP has them all.

        Raises:
            SinkError: it cannot be reached, its certificate is not trusted, or the connection was cut.
        """
        data = b"".join(map(self._message, records))
        try:
            writer = await self._connected()
            writer.write(data)
            async with asyncio.timeout(_ACKNOWLEDGED_SECONDS):
                await writer.drain()
                await self._acknowledged(writer)
        except (OSError, ssl.SSLError, TimeoutError) as error:
            await self.close()
            raise SinkError(f"{self._name}: {_reason(error)}") from error

    async def close(self) -> None:
        """Close the connection, if there is one."""
        writer, self._writer, self._reader = self._writer, None, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()

    async def _connected(self) -> asyncio.StreamWriter:
        if self._writer is not None and self._hung_up():
            await self.close()
        if self._writer is None:
            async with asyncio.timeout(_CONNECT_SECONDS):
                self._reader, self._writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        return self._writer

    def _hung_up(self) -> bool:
        return self._reader is None or self._reader.at_eof() or self._reader.exception() is not None

    async def _acknowledged(self, writer: asyncio.StreamWriter) -> None:
        """Wait until nothing of what was written is unsent or unacknowledged (SIOCOUTQ, tcp(7))."""
        connection: socket.socket = writer.get_extra_info("socket")
        while True:
            if self._hung_up():
                raise ConnectionResetError("the receiver hung up")
            size = getattr(writer.transport, "get_write_buffer_size", lambda: 0)()
            (unacknowledged,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4))
            if not size and not unacknowledged:
                return
            await asyncio.sleep(_POLL_SECONDS)

    def _message(self, record: Record) -> bytes:
        priority = _FACILITY * 8 + (_WARNING if record.notable else _NOTICE)
        head = (
            f"<{priority}>1 {record.time} {self._hostname} greatseald {self._pid} entry "
            f'[greatseal@{_ENTERPRISE} index="{record.index}" log="{self._log}"] '
        )
        message = head.encode() + record.line
        return b"%d %b" % (len(message), message)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return str(error) or type(error).__name__
