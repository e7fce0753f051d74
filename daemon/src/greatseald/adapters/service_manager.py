"""What the process tells its service manager, as in sd_notify(3): a datagram to `$NOTIFY_SOCKET`.

    notify("READY=1", "STATUS=listening on 127.0.0.1:8443")

Without a service manager nothing happens. A message that cannot be sent is dropped: the service
manager's own time limits show that it is missing.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress


def notify(*lines: str) -> bool:
    """Send assignments such as `READY=1`; return whether they were sent."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.sendto("\n".join(line.replace("\n", " ") for line in lines).encode(), address)
        return True
    return False


def reloading() -> None:
    """Say that a reload begins; `notify("READY=1")` says that it has ended."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
