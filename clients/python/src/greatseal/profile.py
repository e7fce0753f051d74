"""The client's profile: where the daemon is and what proves who we are.

    # client.toml
    address = "signer.example:7443"        # or address_file, which wins where that file exists
    ca_cert = "pki/ca.pem"                 # who may have issued the daemon's certificate
    client_cert = "pki/pipeline.pem"       # ours, with its chain, and
    client_key = "pki/pipeline.key"        # its key: refused where group or world can read it
    server_name = "localhost"              # the name expected in the daemon's certificate, if not the address's
    log_key = "log/log.vkey"               # the log's verifier key, a path or the line itself
    checkpoint_file = "checkpoint"         # remember the log here, refuse one that went back
    timeout = 30                           # seconds that a call may take

Every value also comes from `GREATSEAL_<NAME>` in the environment, which wins over the file, and
from an argument, which wins over both. Paths in the file are relative to the file, others to the
working directory. A name that is not in this list is an error, so that no misspelt one is ignored.

    profile = load("client.toml", {"timeout": 5})
"""

from __future__ import annotations

import math
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from greatseal.errors import DaemonNotRunning, ProfileError, VerificationFailed

if TYPE_CHECKING:
    from greatseal.note import VerifierKey

DEFAULT_TIMEOUT: Final = 30.0
MAX_TIMEOUT: Final = 3600.0
PREFIX: Final = "GREATSEAL_"
_MAX_FILE_BYTES: Final = 1 << 20
_PATHS: Final = frozenset({"address_file", "ca_cert", "client_cert", "client_key", "checkpoint_file"})
_VKEY_PARTS: Final = 3


@dataclass(frozen=True, slots=True)
class Profile:
    """One daemon and our identity towards it. No secret is held here, only the paths of secrets.

    Attributes:
        address: `host:port`; empty where `address_file` says it.
        address_file: a file whose first line is the address, such as the daemon's `run/address`.
        ca_cert: PEM certificates that may have issued the daemon's.
        client_cert: our certificate and its chain, PEM.
        client_key: its private key, PEM, readable by its owner alone.
        server_name: the name expected in the daemon's certificate; empty for that of the address.
        log_key: the log's verifier key (`origin+hash+key`); empty where unknown.
        checkpoint_file: where the last checkpoint is remembered; None for nowhere.
        timeout: seconds that a call may take, retries included.
        source: the profile's file, for messages; None where there is none.
    """

    address: str = ""
    address_file: Path | None = None
    ca_cert: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    server_name: str = ""
    log_key: str = ""
    checkpoint_file: Path | None = None
    timeout: float = DEFAULT_TIMEOUT
    source: Path | None = None

    def where(self) -> str:
        """Name the profile for a message."""
        return f"profile {self.source}" if self.source else "the client's settings"

    def target(self) -> str:
        """Return `host:port`, read from `address_file` where that exists.

        Raises:
            ProfileError: there is none, or it is not of this form.
        """
        if self.address_file is not None:
            try:
                text = _read(self.address_file, "address_file", self.where()).decode("utf-8", "replace")
            except _Missing:
                if not self.address or self.address.endswith(":0"):
                    message = (
                        f"{self.where()}: address_file {self.address_file} does not exist: "
                        "the daemon that writes it is not running"
                    )
                    raise DaemonNotRunning(message) from None
            else:
                return _address(text.strip(), f"address_file {self.address_file}")
        if not self.address:
            message = f"{self.where()}: address: is missing; set it there, by --address or by {PREFIX}ADDRESS"
            raise ProfileError(message)
        return _address(self.address, f"{self.where()}: address")

    def credentials(self) -> tuple[bytes, bytes, bytes]:
        """Return CA certificates, our private key and our certificate chain, PEM each.

        Raises:
            ProfileError: one is missing, unreadable, not PEM, or a key that others can read.
        """
        return (
            self._pem("ca_cert", self.ca_cert, b"CERTIFICATE"),
            self._pem("client_key", self.client_key, b"PRIVATE KEY", secret=True),
            self._pem("client_cert", self.client_cert, b"CERTIFICATE"),
        )

    def _pem(self, key: str, path: Path | None, label: bytes, *, secret: bool = False) -> bytes:
        where = self.where()
        if path is None:
            message = f"{where}: {key}: is missing; set it there, by {PREFIX}{key.upper()} or by an option"
            raise ProfileError(message)
        try:
            data = _read(path, key, where, secret=secret)
        except _Missing:
            message = f"{where}: {key}: {path} does not exist"
            raise ProfileError(message) from None
        if b"-----BEGIN " not in data or label not in data:
            message = f"{where}: {key}: {path} holds no PEM {label.decode().lower()}"
            raise ProfileError(message)
        return data


Setting = str | float | os.PathLike[str] | None
"""What a key of a profile may be given as."""

NAMES: Final = tuple(field.name for field in fields(Profile) if field.name != "source")
"""The keys of a profile, in the order of the docs."""


def load(
    path: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Setting] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
) -> Profile:
    """Read a profile: the file's values, over them the environment's, over them the arguments'.

    Args:
        path: the TOML file; by default `GREATSEAL_PROFILE`, and no file where that is unset.
        overrides: any of a profile's keys; None leaves it alone.
        environment: by default the process's own.

    Raises:
        ProfileError: the file is missing or malformed, a key unknown, a value of the wrong kind.
    """
    environment = os.environ if environment is None else environment
    chosen = path if path is not None else environment.get(f"{PREFIX}PROFILE") or None
    source = Path(chosen) if chosen is not None else None
    values: dict[str, object] = {}
    if source is not None:
        where = f"profile {source}"
        for key, value in _table(source).items():
            if key not in NAMES:
                message = f"{where}: {key}: no such key; the keys are {', '.join(NAMES)}"
                raise ProfileError(message)
            values[key] = _value(key, value, f"{where}: {key}", source.parent)
    from_environment = {
        key: environment[PREFIX + key.upper()] for key in NAMES if environment.get(PREFIX + key.upper())
    }
    _overlay(values, {key: (text, f"environment: {PREFIX}{key.upper()}") for key, text in from_environment.items()})
    overrides = overrides or {}
    for key in overrides:
        if key not in NAMES:
            message = f"no such setting: {key}; the settings are {', '.join(NAMES)}"
            raise ProfileError(message)
    given = {key: value for key, value in overrides.items() if value is not None}
    _overlay(values, {key: (_plain(value), f"argument: {key}") for key, value in given.items()})
    fitting: dict[str, Any] = dict(values)  # _value made each of its field's kind
    profile = Profile(**fitting, source=source)
    if profile.checkpoint_file is not None and not profile.log_key:
        message = (
            f"{profile.where()}: checkpoint_file: needs log_key as well, "
            f"for a checkpoint whose signature cannot be checked is not worth remembering"
        )
        raise ProfileError(message)
    return profile


def _overlay(values: dict[str, object], layer: Mapping[str, tuple[object, str]]) -> None:
    """Put a layer of values, each with its place for messages, over those below it."""
    if "address" in layer:
        # address_file wins over the address beside it, not over one that was given over both.
        values.pop("address_file", None)
    for key, (value, where) in layer.items():
        values[key] = _value(key, value, where, Path())


def _plain(value: Setting) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class _Missing(Exception):
    """A file does not exist."""


def _table(source: Path) -> dict[str, object]:
    where = f"profile {source}"
    try:
        return tomllib.loads(_read(source, "", where).decode())
    except _Missing:
        message = f"{where}: does not exist; `greatseald init DIR` makes one as DIR/client.toml"
        raise ProfileError(message) from None
    except RecursionError:
        message = f"{where}: is nested too deeply"
        raise ProfileError(message) from None
    except ValueError as error:  # not UTF-8, not TOML, or a number of thousands of digits
        message = f"{where}: is not TOML: {error}"
        raise ProfileError(message) from None


def _value(key: str, value: object, where: str, base: Path) -> object:
    """Return the value as the field's kind; relative paths against `base`."""
    if key == "timeout":
        return _timeout(value, where)
    if not isinstance(value, str):
        message = f"{where}: must be text, not {type(value).__name__}"
        raise ProfileError(message)
    if not value.strip() and key in {"address", "server_name", "log_key"}:
        return ""
    if "\0" in value or not value:
        message = f"{where}: is empty or holds a zero byte"
        raise ProfileError(message)
    if key in _PATHS:
        return base / _expanded(value, where)
    if key == "log_key":
        return _log_key(value, where, base)
    return value.strip()


def _expanded(text: str, where: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        message = f"{where}: {text[:120]!r} begins with a user of whom no home is known"
        raise ProfileError(message) from error


def _timeout(value: object, where: str) -> float:
    try:
        seconds = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT:
        message = f"{where}: must be a number of seconds above 0, at most {MAX_TIMEOUT:.0f}"
        raise ProfileError(message)
    return seconds


def _log_key(value: str, where: str, base: Path) -> str:
    """Return the verifier key's line; a value of its form is the line, anything else a path."""
    text = value.strip()
    if looks_like_vkey(text):
        return text
    path = base / _expanded(text, where)
    try:
        line = _read(path, "log_key", where).decode("utf-8", "replace").strip()
    except _Missing:
        message = f"{where}: {path} does not exist, and the value is not a verifier key either"
        raise ProfileError(message) from None
    if not looks_like_vkey(line):
        message = f"{where}: {path} holds no verifier key (one line: origin+hash+key)"
        raise ProfileError(message)
    return line


def looks_like_vkey(text: str) -> bool:
    """Whether text has the form of a C2SP verifier key, `origin+8 hex digits+base64`, rather than of a path."""
    parts = text.split("+", 2)
    if len(parts) != _VKEY_PARTS or "\n" in text:
        return False
    hexadecimal = parts[1]
    return len(hexadecimal) == 8 and all(c in "0123456789abcdef" for c in hexadecimal)


def read_log_key(value: str, *, name: str = "--log-key") -> str:
    """Return the verifier key that `value` is, or that the file it names holds.

    Raises:
        ProfileError: it is neither.
    """
    return _log_key(value, name, Path())


def log_key_of(line: str) -> VerifierKey:
    """Return the verifier key of its line.

    Raises:
        ProfileError: it is malformed.
    """
    from greatseal.note import VerifierKey  # cryptography: not for commands that need none

    try:
        return VerifierKey.parse(line)
    except VerificationFailed as error:
        message = f"log_key: {error.message}"
        raise ProfileError(message) from None


def _address(text: str, where: str) -> str:
    host, colon, port = text.rpartition(":")
    if (
        not colon
        or not host
        or not port.isascii()
        or not port.isdigit()
        or not 0 < int(port) < 1 << 16
        or any(c.isspace() for c in host)
    ):
        message = f"{where}: must be host:port, such as localhost:7443, not {text[:80]!r}"
        raise ProfileError(message)
    return text


def _read(path: Path, key: str, where: str, *, secret: bool = False) -> bytes:
    """Read a small regular file; a secret one only where nobody but its owner can read it."""
    label = f"{where}: {key}" if key else where
    try:
        # Without O_NONBLOCK a named pipe would hang the client here.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise _Missing from None
    except OSError as error:
        message = f"{label}: {path} cannot be read: {error.strerror}"
        raise ProfileError(message) from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            message = f"{label}: {path} is not a file"
            raise ProfileError(message)
        if secret and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            message = f"{label}: {path} is open to group or world (mode {status.st_mode & 0o777:04o}): chmod 600 it"
            raise ProfileError(message)
        data = file.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        message = f"{label}: {path} is over {_MAX_FILE_BYTES} bytes"
        raise ProfileError(message)
    return data
