"""The halted keys in a small file beside the anchor, so that a restart does not put them back to work.

    {"keys":{"release":"its token returned a signature that does not verify with its public key"}}

No file means that no key is halted. A file that cannot be read, or is something else, halts the
daemon's start: which keys it held back is not known.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import msgspec

from greatseald.adapters.state_file import StateFile, StateFileUnusable
from greatseald.ports.halts import HaltsUnusable

if TYPE_CHECKING:
    from pathlib import Path

_MAX_WHY: Final = 512
_NOT_A_LIST: Final = (
    ". Look in the log for the `admin` entries `key`, and move the file away, or write it anew as "
    '{"keys":{"NAME":"why"}}, before you start again'
)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: dict[str, str]


class FileHalts:
    """`ports.halts.Halts` over one file of mode 0600."""

    def __init__(self, path: Path) -> None:
        self._file = StateFile(path, _File, "list of halted keys")
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
            found = self._file.read()
        except StateFileUnusable as error:
            raise HaltsUnusable(f"{error}{_NOT_A_LIST}") from error
        return found.keys if found is not None else {}

    def _write(self, halted: dict[str, str]) -> None:
        try:
            self._file.write(_File(halted))
        except StateFileUnusable as error:
            raise HaltsUnusable(str(error)) from error
