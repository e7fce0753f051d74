"""What the process does to itself: no core dumps, no debugger, and a quick end."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
from typing import Final, NoReturn

import structlog

_PR_SET_DUMPABLE: Final = 4
_dying = threading.Lock()


def forbid_core_dumps() -> None:
    """Keep memory out of core files and away from other processes of the user (prctl(2), PR_SET_DUMPABLE)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        message = f"prctl(PR_SET_DUMPABLE, 0) failed: {os.strerror(ctypes.get_errno())}"
        raise OSError(message)


def die(message: str, *, exit_code: int = 1, error: BaseException | None = None) -> NoReturn:
    """End the process now: one line for people on stderr, then the details, and nothing else happens.

    Neither buffers nor clean-up handlers run: whatever is not durable yet must not look as if it were.
    Safe for threads; the first caller wins.
    """
    _dying.acquire()  # never released: nobody else gets a word in
    line = " ".join(message.split())
    os.write(2, f"greatseald: {line}\n".encode())
    if error is not None:
        try:
            structlog.get_logger("greatseald.daemon").critical("fatal", why=line, exc_info=error)
            sys.stderr.flush()
        except Exception:  # noqa: BLE001, S110 - the line above has said it
            pass
    os._exit(exit_code)
