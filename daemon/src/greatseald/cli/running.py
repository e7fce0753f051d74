"""`greatseald reload` and `greatseald key release`: what an operator asks of a daemon that runs, over its admin socket."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from greatseald.cli.exits import UNAVAILABLE, UNEXPECTED, USAGE, CommandFailed, emit, say
from greatseald.cli.reading import load_settings
from greatseald.config import ConfigError, load
from greatseald.rpc import admin_client

_EXITS: Final = {
    "INVALID_ARGUMENT": USAGE,
    "NOT_FOUND": USAGE,
    "UNAVAILABLE": UNAVAILABLE,
    "FAILED_PRECONDITION": UNAVAILABLE,
    "DEADLINE_EXCEEDED": UNAVAILABLE,
}
_Answer = TypeVar("_Answer")


def reload(config: Path, *, as_json: bool) -> None:
    """Have the daemon read its configuration again.

    Raises:
        CommandFailed: the file has problems (2), or no daemon listens or it cannot record the reload (5).
    """
    notes = _ask(config, "reload", admin_client.reload)
    if as_json:
        emit({"notes": notes})
        return
    for note in notes:
        say(note)


def release_key(config: Path, name: str, *, reason: str, as_json: bool) -> None:
    """Have the daemon put a halted key back to work.

    Raises:
        CommandFailed: there is no such key or it is not halted (2), or no daemon, token or log can be used (5).
    """
    released = _ask(config, "release the key", lambda socket: admin_client.release_key(socket, name, reason))
    name = name.removeprefix("keys/")
    if as_json:
        emit({"key": f"keys/{name}", "halted": released.halted, "spki_sha256": released.spki_sha256})
        return
    say(f"keys/{name} signs again, with the public key {released.spki_sha256} (SHA-256).")
    say(f"It had been halted: {released.halted}. The release stands in the log.")


def reindex(config: Path, *, as_json: bool) -> None:
    """Have the daemon build its search index anew; without one, remove the index, and the next start builds it.

    Raises:
        CommandFailed: the configuration cannot be used or keeps no index (2), or the file cannot be removed (5).
    """
    from greatseald.bootstrap.compose import index_file

    settings = load_settings(config)
    try:
        entries = admin_client.reindex(settings.server.admin_socket)
        if entries is None:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{index_file(settings)}{suffix}").unlink(missing_ok=True)
    except admin_client.AdminRefused as refused:
        raise CommandFailed(_EXITS.get(refused.code, UNEXPECTED), f"nothing is built: {refused}") from refused
    except OSError as error:
        raise CommandFailed(UNAVAILABLE, f"the index cannot be removed: {error.strerror}") from error
    if as_json:
        emit({"entries": entries})
    elif entries is None:
        say("No daemon runs: the index was removed, and the next start builds it.")
    else:
        say(f"The index is being built from {entries} entries; searches read the log until it is there.")


def _ask(config: Path, what: str, ask: Callable[[Path], _Answer | None]) -> _Answer:
    try:
        socket = _admin_socket(config)
        answer = ask(socket)
    except admin_client.AdminRefused as refused:
        raise CommandFailed(_EXITS.get(refused.code, UNEXPECTED), f"the daemon did not {what}: {refused}") from refused
    if answer is None:
        raise CommandFailed(
            UNAVAILABLE,
            f"no daemon listens on {socket}: start it (`greatseald serve`), or run this as the daemon's user or root",
        )
    return answer


def _admin_socket(config: Path) -> Path:
    try:
        return load(config, os.environ).server.admin_socket
    except ConfigError as error:
        problems = "\n".join(f"  {problem}" for problem in error.problems)
        raise CommandFailed(
            USAGE, f"the configuration cannot be used, and a running daemon keeps its old one:\n{problems}"
        ) from error
