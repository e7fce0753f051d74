"""From an `[[outbox]]` table to a sink: the scheme of its target decides. Nothing is admitted that is not in this table."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

from greatseald.adapters.sinks.file import FileSink
from greatseald.adapters.sinks.formats import jsonl_format, ocsf_format
from greatseald.adapters.sinks.http import HttpSink
from greatseald.adapters.sinks.syslog import SyslogSink
from greatseald.config import read_header

if TYPE_CHECKING:
    from greatseald.config import OutboxTable
    from greatseald.ports.sinks import Format, Sink

FORMATS: Final[dict[str, Callable[[str], Format]]] = {"jsonl": jsonl_format, "ocsf": ocsf_format}


def open_sink(table: OutboxTable, origin: str) -> Sink:
    """Return the sink of a table; connections are made when something is delivered.

    Raises:
        FileProblem: a file that it names cannot be used.
        ssl.SSLError: a certificate or key that it names is none.
    """
    url = urlsplit(table.target)
    return _SINKS[url.scheme](table, url, origin)


def _file(_table: OutboxTable, url: SplitResult, _origin: str) -> Sink:
    return FileSink(Path(url.path))


def _syslog(table: OutboxTable, url: SplitResult, origin: str) -> Sink:
    tls = _tls(table) if url.scheme == "syslog+tls" else None
    return SyslogSink(url.hostname or "", url.port or (6514 if tls else 601), origin, tls)


def _http(table: OutboxTable, url: SplitResult, _origin: str) -> Sink:
    headers = [read_header(table.header_file)] if table.header_file is not None else []
    return HttpSink(url, _tls(table) if url.scheme == "https" else None, headers)


_SINKS: Final[dict[str, Callable[[OutboxTable, SplitResult, str], Sink]]] = {
    "file": _file,
    "syslog+tcp": _syslog,
    "syslog+tls": _syslog,
    "http": _http,
    "https": _http,
}


def _tls(table: OutboxTable) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(table.ca) if table.ca else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if table.client_cert is not None and table.client_key is not None:
        context.load_cert_chain(table.client_cert, table.client_key)
    return context
