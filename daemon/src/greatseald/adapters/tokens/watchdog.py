"""Ends the host's process when a call of the vendor's module does not return.

Calls run without the GIL, so this thread runs while they hang. A module that hangs while it holds
the GIL (in its loader) is ended from outside, by whoever started the process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final

from greatseald.adapters.tokens.frames import VERSION, NotReady

EXIT_GAVE_UP: Final = 3
EXIT_HUNG: Final = 4


class Watchdog:
    """Ends the process when a C call takes longer than the token's `operation_timeout`."""

    def __init__(self, name: str, timeout: float, last_words: Callable[[NotReady], None]) -> None:
        self._name = name
        self._timeout = timeout
        self._last_words = last_words
        self._running: dict[int, tuple[float, float]] = {}

    def start(self) -> None:
        """Start watching."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def begin(self, number: int, now: float, limit: float | None = None) -> None:
        """A call of thread `number` began; it may take `limit` seconds, or the token's timeout."""
        self._running[number] = (now, limit or self._timeout)

    def end(self, number: int) -> None:
        """It returned."""
        self._running.pop(number, None)

    def watch(self, number: int, limit: float | None = None) -> _Watched:
        """Watch what happens within a `with` block, for at most `limit` seconds instead of the timeout."""
        return _Watched(self, number, limit)

    def _run(self) -> None:
        while True:
            time.sleep(min(1.0, self._timeout / 8))
            now = time.monotonic()
            for began, limit in list(self._running.values()):
                if now - began > limit:
                    self.die(
                        f"token {self._name}: a call of its module did not return within operation_timeout, {limit:g} s",
                        EXIT_HUNG,
                    )

    def die(self, detail: str, code: int = EXIT_GAVE_UP) -> None:
        """Say why, as far as anybody listens, and end the process without waiting for any thread."""
        try:
            self._last_words(NotReady(VERSION, False, detail))
        finally:
            os._exit(code)


class _Watched:
    def __init__(self, watchdog: Watchdog, number: int, limit: float | None) -> None:
        self._watchdog = watchdog
        self._number = number
        self._limit = limit

    def __enter__(self) -> None:
        self._watchdog.begin(self._number, time.monotonic(), self._limit)

    def __exit__(self, *_: object) -> None:
        self._watchdog.end(self._number)
