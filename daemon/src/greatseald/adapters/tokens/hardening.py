"""What a token host does to itself before it reads a PIN.

No core dump and no debugger of the same user (PR_SET_DUMPABLE 0, RLIMIT_CORE 0), memory kept out
of swap where that is allowed, and no life after its parent.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_MCL_CURRENT_FUTURE_ONFAULT: Final = 1 | 2 | 4
_CAP_IPC_LOCK: Final = 14


def harden() -> None:
    """Forbid core dumps and debuggers, lock memory where nothing can run out of it by that.

    Raises:
        OSError: the kernel refused to make the process undumpable.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")
    if _may_lock_everything():
        # A refusal leaves the process as it was: PINs may then reach swap, as docs say.
        libc.mlockall(_MCL_CURRENT_FUTURE_ONFAULT)


def _may_lock_everything() -> bool:
    """Whether locked memory is unlimited for this process: with a limit, later allocations would fail."""
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        return True
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> _CAP_IPC_LOCK & 1)
    return False


def die_with_parent(parent: int) -> None:
    """Be killed when the process `parent` ends; ends at once if it has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def ignore_terminal_signals() -> None:
    """Leave the decision to stop to the parent: a service manager or terminal signals the whole group."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
