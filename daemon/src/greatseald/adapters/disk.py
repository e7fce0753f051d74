"""The disk reserve: room that is kept so that what was begun can still be recorded.

    free space (as an unprivileged user sees it)          reserve file (preallocated)
    |<------ must stay above reserve_bytes ------>|       |<---- reserve_bytes ---->|

- While free + reserve file < twice `reserve_bytes`, there is a shortage: nothing new may begin; what
  is under way is still recorded, and reads go on.
- When free space falls below half of `reserve_bytes`, somebody else is filling the volume: the
  reserve file is removed, so that outcomes and recovery find room all the same.
- When there is room for both again, the file is made anew.

The sum does not change when the file is removed or made, so the answer does not flap. statvfs is
asked at most once a second.

    reserve = DiskReserve("/var/lib/greatseal/log.db", 64 << 20)
    reserve.shortage()        # None, or a sentence for the refusal
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

_CACHE_SECONDS: Final = 1.0


class DiskReserve:
    """The `Reserve` port over the volume of one database file. Thread-safe."""

    def __init__(self, database: str, reserve_bytes: int, now: Callable[[], float] = time.monotonic) -> None:
        """Watch the volume of `database`; 0 bytes of reserve watch nothing. `now` gives seconds."""
        self.path = Path(f"{database}.reserve")
        self._bytes = reserve_bytes
        self._now = now
        self._guard = threading.Lock()
        self._asked = float("-inf")
        self._shortage: str | None = None

    def shortage(self) -> str | None:
        # Whoever comes while another thread looks takes the last answer instead of waiting.
        if self._now() - self._asked >= _CACHE_SECONDS and self._guard.acquire(blocking=False):
            try:
                self._look()
                self._asked = self._now()
            finally:
                self._guard.release()
        return self._shortage

    def free(self) -> int:
        """Free bytes of the volume, as an unprivileged user sees it. Raises OSError."""
        volume = os.statvfs(self.path.parent)
        return volume.f_bavail * volume.f_frsize

    def _look(self) -> None:
        if self._bytes <= 0:
            return
        try:
            free, held = self._measure()
            if held and free < self._bytes // 2:
                self.path.unlink(missing_ok=True)
                free, held = self._measure()
            elif not held and free >= 2 * self._bytes + self._bytes // 4:
                self._make()
                free, held = self._measure()
        except OSError as error:
            self._shortage = f"the free space of {self.path.parent} cannot be determined: {error.strerror}"
            return
        if free + held >= 2 * self._bytes:
            self._shortage = None
            return
        missing = 2 * self._bytes - free - held
        self._shortage = (
            f"the volume of {self.path.parent} has {_mib(free)} free, and [log] reserve_bytes keeps "
            f"{_mib(self._bytes)} for what is under way and as much in {self.path.name}; free {_mib(missing)} or more"
        )

    def _measure(self) -> tuple[int, int]:
        """Return free bytes and the bytes that the reserve file really occupies."""
        volume = os.statvfs(self.path.parent)
        try:
            held = self.path.stat().st_blocks * 512
        except FileNotFoundError:
            held = 0
        return volume.f_bavail * volume.f_frsize, min(held, self._bytes)

    def _make(self) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, self._bytes)
        except OSError:
            # Somebody was faster than we: half a reserve is none.
            with suppress(FileNotFoundError):
                self.path.unlink()
            raise
        finally:
            os.close(fd)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
