r"""What witnesses and peers have seen of the log, in a small file beside the anchor.

    {"heads":{"witness.example/w1":"greatseal.local/log\n1234\n…"},"against":{}}

A head is a signed note: the log's own signature, and of a witness its cosignature. So the file is an anchor itself:
a log that is older than a head in it is refused without asking anybody. `against` is why an anchor disagreed, so
that a restart while it cannot be reached does not go on as if nothing had been.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import msgspec

from greatseald.adapters.durable import write_durably
from greatseald.ports.sightings import Seen, SightingsUnusable

_MAX_BYTES: Final = 1024 * 1024
_MAX_WHY: Final = 1024


class _File(msgspec.Struct, forbid_unknown_fields=True):
    heads: dict[str, str] = {}
    against: dict[str, str] = {}


class FileSightings:
    """`ports.sightings.Sightings` over one file of mode 0600."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.Lock()

    @property
    def name(self) -> str:
        return str(self._path)

    def read(self) -> Seen:
        with self._guard:
            found = self._read()
            return Seen(found.heads, found.against)

    def remember(self, anchor: str, note: str) -> None:
        with self._guard:
            found = self._read()
            if found.heads.get(anchor) != note or anchor in found.against:
                found.heads[anchor] = note
                found.against.pop(anchor, None)
                self._write(found)

    def dispute(self, anchor: str, why: str) -> None:
        with self._guard:
            found = self._read()
            if found.against.get(anchor) != why[:_MAX_WHY]:
                found.against[anchor] = why[:_MAX_WHY]
                self._write(found)

    def _read(self) -> _File:
        try:
            with self._path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return _File()
        except OSError as error:
            raise SightingsUnusable(
                f"what witnesses and peers have seen cannot be read from {self._path}: {error.strerror}"
            ) from error
        try:
            return msgspec.json.decode(data, type=_File)
        except msgspec.DecodeError as error:
            raise SightingsUnusable(
                f"{self._path} is not what Greatseal wrote there: {error}. Find out who changed it; then move it away, "
                "and the witnesses and peers themselves are asked at the next start"
            ) from error

    def _write(self, found: _File) -> None:
        try:
            write_durably(self._path, msgspec.json.encode(found) + b"\n")
        except OSError as error:
            raise SightingsUnusable(
                f"what witnesses and peers have seen cannot be written to {self._path}: {error.strerror}"
            ) from error
