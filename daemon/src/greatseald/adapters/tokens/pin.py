"""Where the PIN comes from: a file that only its owner can read, or a service manager's credential.

Only the token host reads it. It never stands in argv, in the environment, in a log or in an error. A
new one replaces it in an order that never leaves a token whose PIN nobody knows:

    stage_pin(path, new)   the new PIN lies durably in PATH.new, before the token is told of it
    (the token takes it)
    settle_pin(path)       PATH.new becomes PATH, durably

Cut off in between, the two files hold the only two PINs that it can be.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

from greatseald.adapters.durable import fsync_directory, write_durably
from greatseald.adapters.tokens.secret import MAX_PIN_BYTES, Secret, one_line, wipe
from greatseald.domain.tokens import TokenSettings

_CREDENTIAL_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,255}")


class PinUnavailable(Exception):
    """The PIN cannot be read, or must not be used as it lies there; the message says what to do."""


def pin_source(settings: TokenSettings) -> str:
    """Where the PIN lies, for messages."""
    if settings.by_operator:
        return "the operator's hands"
    if settings.pin_file is not None:
        return str(settings.pin_file)
    return f"credential {settings.pin_credential}" if settings.pin_credential else "no PIN source"


def read_pin(settings: TokenSettings) -> Secret | None:
    """The PIN without its trailing newline, at most `MAX_PIN_BYTES`; None where none is configured.

    Raises:
        PinUnavailable: missing, unreadable, readable by others, someone else's, empty or too long.
    """
    if settings.pin_file is not None and settings.pin_credential:
        message = f"token {settings.name}: pin_file and pin_credential are both set: choose one"
        raise PinUnavailable(message)
    if settings.pin_file is not None:
        return _read(settings.name, settings.pin_file, owner=os.geteuid())
    if settings.pin_credential:
        directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
        if not directory:
            message = (
                f"token {settings.name}: pin_credential {settings.pin_credential} needs a host started by the service "
                "manager with LoadCredential= or LoadCredentialEncrypted= (CREDENTIALS_DIRECTORY is not set)"
            )
            raise PinUnavailable(message)
        if not _CREDENTIAL_NAME.fullmatch(settings.pin_credential) or settings.pin_credential.startswith("."):
            message = f"token {settings.name}: pin_credential is a plain name, not a path"
            raise PinUnavailable(message)
        return _read(settings.name, Path(directory) / settings.pin_credential, owner=None)
    return None


def _read(token: str, path: Path, owner: int | None) -> Secret:
    """Read a PIN file; `owner` is the user it has to belong to (root always may), None for the service manager's."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        message = f"token {token}: PIN file {path} cannot be opened: {error.strerror}"
        raise PinUnavailable(message) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            message = f"token {token}: PIN file {path} is not a regular file"
            raise PinUnavailable(message)
        if status.st_mode & 0o077 and owner is not None:
            message = f"token {token}: PIN file {path} can be read by others: chmod 600 it, and change the PIN"
            raise PinUnavailable(message)
        if owner is not None and status.st_uid not in (owner, 0):
            message = f"token {token}: PIN file {path} belongs to another user: chown it to the token host's"
            raise PinUnavailable(message)
        buffer = bytearray(MAX_PIN_BYTES + 3)
        size = os.readv(descriptor, [buffer])
    finally:
        os.close(descriptor)
    try:
        return one_line(buffer, size)
    except ValueError as error:
        message = f"token {token}: PIN file {path} {error}"
        raise PinUnavailable(message) from error


def staged_path(path: Path) -> Path:
    """Where a new PIN lies until the token has taken it."""
    return path.with_name(f"{path.name}.new")


def stage_pin(path: Path, pin: Secret) -> None:
    """Put a new PIN durably beside the old one, mode 0600.

    Raises:
        PinUnavailable: it cannot be written, or a change that was cut off left one there.
    """
    staged = staged_path(path)
    if staged.exists():
        message = (
            f"{staged} is there, of a change that was cut off: the PIN is in it or in {path}. Find out which (one try with "
            f"the vendor's tool), put it into {path}, and remove {staged}"
        )
        raise PinUnavailable(message)
    line = pin.data + b"\n"
    try:
        write_durably(staged, line)
    except OSError as error:
        message = f"the new PIN cannot be written to {staged}, so the old one stays: {error.strerror}"
        raise PinUnavailable(message) from error
    finally:
        wipe(line)


def settle_pin(path: Path) -> None:
    """Have the new PIN take the old one's place.

    Raises:
        PinUnavailable: it cannot; the message says where the PIN is.
    """
    staged = staged_path(path)
    try:
        staged.replace(path)
        fsync_directory(path.parent)
    except OSError as error:
        message = f"the token has the new PIN, which lies in {staged}: move it to {path} ({error.strerror})"
        raise PinUnavailable(message) from error


def drop_staged_pin(path: Path) -> None:
    """The token kept its old PIN: the new one is not needed.

    Raises:
        PinUnavailable: it cannot be removed.
    """
    staged = staged_path(path)
    try:
        staged.unlink(missing_ok=True)
        fsync_directory(path.parent)
    except OSError as error:
        message = f"the token kept its old PIN; remove {staged}, which it never took ({error.strerror})"
        raise PinUnavailable(message) from error
