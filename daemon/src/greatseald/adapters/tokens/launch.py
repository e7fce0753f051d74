"""Starting a token host's process: a fresh interpreter, never a fork, with one inherited socket.

Nothing secret is in its argv or environment. Its environment is a minimal one plus what the
configuration gives to this token alone.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_KEPT: Final = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "CREDENTIALS_DIRECTORY")


def host_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a token's host."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    if "PYTHONPATH" in kept:  # the host works in another directory
        kept["PYTHONPATH"] = os.pathsep.join(
            str(Path(part).absolute()) for part in kept["PYTHONPATH"].split(os.pathsep)
        )
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **kept, **extra}


def launch_host(
    environment: Mapping[str, str], listener: socket.socket | None = None, front_uid: int = -1
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a host; returns its process and our end of the socketpair.

    It must be called from a thread that lives as long as the host is to: the host is killed when
    that thread ends.

    Raises:
        OSError: the process or the socketpair cannot be made.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    command = [sys.executable, "-P", "-m", "greatseald.adapters.tokens.host", "--parent", str(os.getpid())]
    command += ["--fd", str(theirs.fileno())]
    descriptors = [theirs.fileno()]
    if listener is not None:
        command += ["--listen-fd", str(listener.fileno()), "--front-uid", str(front_uid)]
        descriptors.append(listener.fileno())
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=host_environment(environment),
            pass_fds=descriptors,
            start_new_session=True,
            cwd="/",
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, ours


def say(token: str, what: str) -> None:
    """One line on stderr, where a unit's service manager keeps it."""
    sys.stderr.write(f"token host {token}: {what}\n")
    sys.stderr.flush()
