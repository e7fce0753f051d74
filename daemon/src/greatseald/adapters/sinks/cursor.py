"""A sink's cursor in a file: one decimal number and a newline, replaced durably."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from greatseald.adapters.durable import write_durably
from greatseald.ports.sinks import SinkError

_TEXT: Final = re.compile(rb"(0|[1-9][0-9]{0,18})\n")


class FileCursor:
    """Remembers how far a sink is in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int:
        """Return the first index that was not delivered; 0 if there is no file.

        Raises:
            SinkError: the file cannot be read, or holds something else.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise SinkError(f"the cursor {self._path} cannot be read: {error.strerror}") from error
        match = _TEXT.fullmatch(data)
        if match is None:
            raise SinkError(f"{self._path} is no cursor of an outbox: remove it to deliver from the beginning")
        return int(match[1])

    def write(self, index: int) -> None:
        """Remember `index`, durably.

        Raises:
            SinkError: the file cannot be written.
        """
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(self._path, b"%d\n" % index)
        except OSError as error:
            raise SinkError(f"the cursor {self._path} cannot be written: {error.strerror}") from error
