"""The port to the memory of halted keys: what must hold across restarts until an operator lifts it."""

from __future__ import annotations

from typing import Protocol


class HaltsUnusable(Exception):
    """The memory of halted keys cannot be read or written; the message names it and what to do."""


class Halts(Protocol):
    """The halted keys by their bare names. Safe for threads; every change is durable when it returns."""

    def read(self) -> dict[str, str]:
        """Return why each halted key was halted, by its bare name.

        Raises:
            HaltsUnusable: it cannot be read, so nothing may be signed: which keys are halted is not known.
        """
        ...

    def add(self, key: str, why: str) -> None:
        """Remember that a key is halted; an earlier reason stays.

        Raises:
            HaltsUnusable: it cannot be written.
        """
        ...

    def remove(self, key: str) -> None:
        """Forget that a key was halted.

        Raises:
            HaltsUnusable: it cannot be written; the key stays halted.
        """
        ...
