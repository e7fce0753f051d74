"""The port to the disk reserve: whether there is room to begin anything new."""

from __future__ import annotations

from typing import Protocol


class Reserve(Protocol):
    """Watches the free space of the log's volume."""

    def shortage(self) -> str | None:
        """Return None while there is room, else a sentence naming the volume, what is free and what is reserved.

        Cheap enough for every request.
        """
        ...
