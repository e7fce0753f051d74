"""The server's certificates, read again while the daemon runs.

gRPC asks for the configuration at every handshake, on its own thread. The files' inodes, sizes and
times are looked at once a second at most; new files are taken only if key, chain and CAs parse and
fit together, otherwise the old ones stay in force and the log says why.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, cast

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from greatseald.config import FileProblem, ServerSettings, read_tls

_log = structlog.get_logger("greatseald.tls")
_LOOK_SECONDS: Final = 1.0
_MAX_NAME: Final = 200


class _Paths(NamedTuple):
    cert: Path
    key: Path
    client_ca: Path


class ServerCertificates:
    """The certificates in force. Safe for threads."""

    def __init__(self, settings: ServerSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the files. Raises FileProblem if they cannot be used."""
        self._clock = clock
        self._lock = threading.Lock()
        self._paths = _paths(settings)
        self._seen = _identify(self._paths)
        self._looked = clock()
        self._fresh: grpc.ServerCertificateConfiguration | None = None
        self._current, self._expiries = _read(self._paths)

    def expiries(self) -> list[tuple[tuple[str, str], float]]:
        """Return when the certificates in force expire: (`server` or `client_ca`, its name), Unix seconds."""
        return self._expiries

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials that demand a client certificate and ask here at each handshake."""
        # types-grpcio does not know that the fetcher may answer None, for "as before".
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", self._fetch)
        return grpc.dynamic_ssl_server_credentials(self._current, fetch, require_client_authentication=True)

    def reload(self, settings: ServerSettings) -> str:
        """Look at the files, named anew, now; return why they cannot be used, or nothing."""
        with self._lock:
            self._paths = _paths(settings)
            self._seen = _identify(self._paths)
            return self._take()

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        with self._lock:
            now = self._clock()
            if now - self._looked >= _LOOK_SECONDS:
                self._looked = now
                seen = _identify(self._paths)
                if seen != self._seen:
                    self._seen = seen
                    self._take()
            fresh, self._fresh = self._fresh, None
            return fresh

    def _take(self) -> str:
        try:
            self._current, self._expiries = _read(self._paths)
            self._fresh = self._current
        except FileProblem as problem:
            _log.error("certificates_unusable", why=str(problem), hint=problem.hint, kept="the certificates in force")
            return str(problem)
        _log.info("certificates_reloaded", cert=str(self._paths.cert), client_ca=str(self._paths.client_ca))
        return ""


def _paths(settings: ServerSettings) -> _Paths:
    return _Paths(settings.tls_cert, settings.tls_key, settings.client_ca)


def _identify(paths: _Paths) -> tuple[tuple[int, ...], ...]:
    """What changes when a file is replaced or rewritten; nothing for a file that is not there."""
    marks: list[tuple[int, ...]] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            marks.append(())
        else:
            marks.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode))
    return tuple(marks)


def _read(paths: _Paths) -> tuple[grpc.ServerCertificateConfiguration, list[tuple[tuple[str, str], float]]]:
    cert, key, client_ca = read_tls(paths.cert, paths.key, paths.client_ca)
    server = x509.load_pem_x509_certificates(cert)
    expiries = {("server", "server"): min(each.not_valid_after_utc for each in server).timestamp()}
    for each in x509.load_pem_x509_certificates(client_ca):
        # Two of one name, as while a CA is replaced, have the fingerprint in theirs.
        name = ("client_ca", each.subject.rfc4514_string()[:_MAX_NAME])
        if name in expiries:
            name = ("client_ca", f"{name[1]} {each.fingerprint(hashes.SHA256()).hex()[:16]}")
        expiries[name] = each.not_valid_after_utc.timestamp()
    current = grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)
    return current, list(expiries.items())
