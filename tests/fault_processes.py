"""The processes of a daemon, as the system knows them."""

from __future__ import annotations

from pathlib import Path


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def token_hosts(daemon: int, shim: str = "") -> list[int]:
    """Children of the daemon that have a PKCS#11 module loaded; with `shim`, those whose environment names it."""
    hosts = []
    for pid in children(daemon):
        try:
            maps = Path(f"/proc/{pid}/maps").read_text()
            environment = Path(f"/proc/{pid}/environ").read_text()
        except OSError:  # it ended meanwhile
            continue
        if "libsofthsm2" in maps and shim in environment:
            hosts.append(pid)
    return hosts


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
