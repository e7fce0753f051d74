"""A small file of JSON with one value, replaced whole: what a daemon remembers beside its log.

    file = StateFile(Path("released.halted"), HaltedKeys, "list of halted keys")
    file.write(HaltedKeys({}))

No file means that nothing was remembered yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

import msgspec

from greatseald.adapters.durable import write_durably

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BYTES: Final = 1024 * 1024

T = TypeVar("T", bound=msgspec.Struct)


class StateFileUnusable(Exception):
    """The file cannot be read or written, or is none of its kind; the message names it and says why."""


class StateFile(Generic[T]):
    """One file of mode 0600. `what` names it in messages."""

    def __init__(self, path: Path, kind: type[T], what: str) -> None:
        self.path = path
        self._kind = kind
        self._what = what

    def read(self) -> T | None:
        """Return the value, None where there is no file.

        Raises:
            StateFileUnusable: it cannot be read, or is something else.
        """
        try:
            with self.path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateFileUnusable(f"the {self._what} {self.path} cannot be read: {error.strerror}") from error
        try:
            return msgspec.json.decode(data, type=self._kind)
        except msgspec.DecodeError as error:
            raise StateFileUnusable(f"{self.path} is no {self._what}: {error}") from error

    def write(self, value: T) -> None:
        """Replace the file, durably.

        Raises:
            StateFileUnusable: it cannot be written; the old one is as it was.
        """
        try:
            write_durably(self.path, msgspec.json.encode(value) + b"\n")
        except OSError as error:
            raise StateFileUnusable(f"the {self._what} {self.path} cannot be written: {error.strerror}") from error
