"""Peers of the log: other daemons over gRPC, and checkpoints that lie in a file or at a URL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from greatseal.errors import GreatsealError
from greatseal.note import MAX_NOTE_BYTES
from greatseald.adapters.web import Endpoint
from greatseald.ports.sightings import OutsideUnreachable

if TYPE_CHECKING:
    from greatseal.profile import Profile
    from greatseald.config import PeerTable
    from greatseald.ports.sightings import Peer

_MAX_TOLD: Final = 300


def open_peer(table: PeerTable, log_key: str) -> Peer:
    """Return the peer of a table; `log_key` is the log's verifier key line.

    Raises:
        OSError: `ca` cannot be used.
    """
    if table.address:
        from greatseal.profile import Profile

        return DaemonPeer(
            table.name,
            Profile(
                address=table.address,
                ca_cert=table.ca,
                client_cert=table.client_cert,
                client_key=table.client_key,
                server_name=table.server_name,
                log_key=log_key,
                timeout=table.timeout,
            ),
        )
    parts = urlsplit(table.url)
    if parts.scheme == "file":
        return FilePeer(table.name, Path(unquote(parts.path)))
    return WebPeer(table.name, table.url, table.ca, table.timeout)


class DaemonPeer:
    """Another daemon, asked as any client asks; its rules must allow our certificate `readAudit`."""

    def __init__(self, name: str, profile: Profile) -> None:
        self.name = name
        self._profile = profile

    def note(self) -> str:
        from greatseal.client import Client

        try:
            with Client(self._profile) as client:
                return client.audit.checkpoint().note
        except GreatsealError as error:
            raise OutsideUnreachable(f"peer {self.name}: {error.message[:_MAX_TOLD]}") from error


class WebPeer:
    """A checkpoint at a URL, such as that of an exported log that is served."""

    def __init__(self, name: str, url: str, ca: Path | None, timeout: float) -> None:
        """Read from `url`. Raises OSError if `ca` cannot be used."""
        self.name = name
        self._endpoint = Endpoint(url, ca, timeout)

    def note(self) -> str:
        answer = self._endpoint.get(MAX_NOTE_BYTES)
        if answer.status != 200:
            raise OutsideUnreachable(f"peer {self.name} answered {answer.status}: {answer.told()}")
        return _text(self.name, answer.body)


class FilePeer:
    """A checkpoint in a file, such as that of an export on another volume."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._path = path

    def note(self) -> str:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_NOTE_BYTES + 1)
        except OSError as error:
            raise OutsideUnreachable(f"peer {self.name}: {self._path} cannot be read: {error.strerror}") from error
        return _text(self.name, data)


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise OutsideUnreachable(f"peer {name} has something else than a checkpoint") from error
