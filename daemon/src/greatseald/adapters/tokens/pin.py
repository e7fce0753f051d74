"""Where the PIN comes from: a file that only its owner can read, or a service manager's credential.

Only the token host reads it. It never stands in argv, in the environment, in a log or in an error.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

from greatseald.domain.tokens import TokenSettings

MAX_PIN_BYTES: Final = 256
_CREDENTIAL_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,255}")


class PinUnavailable(Exception):
    """The PIN cannot be read, or must not be used as it lies there; the message says what to do."""


def pin_source(settings: TokenSettings) -> str:
    """Where the PIN lies, for messages."""
    if settings.pin_file is not None:
        return str(settings.pin_file)
    return f"credential {settings.pin_credential}" if settings.pin_credential else "no PIN source"


def read_pin(settings: TokenSettings) -> bytes | None:
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


def _read(token: str, path: Path, owner: int | None) -> bytes:
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
        data = os.read(descriptor, MAX_PIN_BYTES + 3)
    finally:
        os.close(descriptor)
    pin = data.removesuffix(b"\n").removesuffix(b"\r")
    if not pin:
        message = f"token {token}: PIN file {path} is empty"
        raise PinUnavailable(message)
    if len(pin) > MAX_PIN_BYTES or b"\n" in pin or b"\0" in pin:
        message = f"token {token}: PIN file {path} holds no single line of at most {MAX_PIN_BYTES} bytes"
        raise PinUnavailable(message)
    return pin
