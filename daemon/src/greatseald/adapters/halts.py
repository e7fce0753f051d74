"""The halted keys in a small file beside the anchor, so that a restart does not put them back to work.

    {"keys":{"release":"its token returned a signature that does not verify with its public key"}}

No file means that no key is halted. A file that cannot be read, or is something else, halts the
daemon's start: which keys it held back is not known.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import msgspec

from greatseald.adapters.durable import write_durably
from greatseald.ports.halts import HaltsUnusable

_MAX_BYTES: Final = 1024 * 1024
_MAX_WHY: Final = 512


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: dict[str, str]


class FileHalts:
    """`ports.halts.Halts` over one file of mode 0600."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.Lock()

    def read(self) -> dict[str, str]:
        with self._guard:
            return self._read()

    def add(self, key: str, why: str) -> None:
        with self._guard:
            halted = self._read()
            if key not in halted:
                self._write(halted | {key: why[:_MAX_WHY]})

    def remove(self, key: str) -> None:
        with self._guard:
            halted = self._read()
            if halted.pop(key, None) is not None:
                self._write(halted)

    def _read(self) -> dict[str, str]:
        try:
            with self._path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise HaltsUnusable(f"the list of halted keys {self._path} cannot be read: {error.strerror}") from error
        try:
            return msgspec.json.decode(data, type=_File).keys
        except msgspec.DecodeError as error:
            raise HaltsUnusable(
                f"{self._path} is no list of halted keys: {error}. Look in the log for the `admin` entries `key`, and "
                'move the file away, or write it anew as {"keys":{"NAME":"why"}}, before you start again'
            ) from error

    def _write(self, halted: dict[str, str]) -> None:
        try:
            write_durably(self._path, msgspec.json.encode(_File(halted)) + b"\n")
        except OSError as error:
            raise HaltsUnusable(f"the list of halted keys {self._path} cannot be written: {error.strerror}") from error
