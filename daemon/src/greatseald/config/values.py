"""What single values of the configuration have to be: checks, and the types of fields that several tables have.

Each check returns the value as it is used from then on, or raises ValueError with words that follow the name
of its key in a message: "must be ...".
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from greatseal.cosignature import WitnessKey
from greatseal.verification import NoteInvalid
from greatseald.domain.policy import ACTIONS

MIB: Final = 1024 * 1024
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_ORIGIN: Final = re.compile(r"[A-Za-z0-9.-]+(?::[0-9]+)?(?:/[A-Za-z0-9._~-]+)+")
WITNESSED: Final = re.compile(r"witnessed\(([1-9][0-9]?)\)")
_ENDPOINT: Final = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")


def split_endpoint(text: str) -> tuple[str, int]:
    """Split `HOST:PORT` or `[IPV6]:PORT` into the bare host and the port.

    Raises:
        ValueError: the text is neither.
    """
    match = _ENDPOINT.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:8443 or [::1]:8443")
    return match["six"] or match["host"], int(match["port"])


def is_loopback(host: str) -> bool:
    """Whether a host, as `split_endpoint` gives it, can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def plain_name(text: str) -> str:
    """A name of our own: of a token, key, outbox, peer. Raises ValueError."""
    if _NAME.fullmatch(text) is None:
        raise ValueError("must be 1 to 63 of a-z 0-9 . _ - and begin and end with a letter or digit")
    return text


def endpoint(text: str) -> str:
    """HOST:PORT. Raises ValueError."""
    split_endpoint(text)
    return text


def optional_endpoint(text: str) -> str:
    """HOST:PORT, or nothing. Raises ValueError."""
    return endpoint(text) if text else text


def loopback_endpoint(text: str) -> str:
    """HOST:PORT on loopback, or nothing. Raises ValueError."""
    if text and not is_loopback(split_endpoint(text)[0]):
        raise ValueError("must be on loopback, such as 127.0.0.1:9464: metrics and health carry no authentication")
    return text


def log_origin(text: str) -> str:
    """A log's name (C2SP tlog-checkpoint). Raises ValueError."""
    if _ORIGIN.fullmatch(text) is None:
        raise ValueError(
            "must be HOST/NAME as in a C2SP checkpoint, such as seal.example.org/log, without scheme, spaces or plus"
        )
    return text


def store_url(text: str) -> str:
    """Where the store is. Raises ValueError."""
    parts = urlsplit(text)
    if parts.scheme == "sqlite":
        if parts.netloc or not parts.path.startswith("/") or parts.path == "/":
            raise ValueError("must be sqlite:///ABSOLUTE/PATH, with three slashes")
    elif parts.scheme not in {"postgresql", "postgres"}:
        raise ValueError("must begin with sqlite:/// or postgresql://")
    return text


def web_url(text: str) -> str:
    """An address to post to or read from: https, or http within this machine."""
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError("has a port that is no number up to 65535") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise ValueError("must be https://HOST/PATH, or http:// on loopback")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must hold no user, password, query or fragment")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError("must be https:// for another machine")
    return text


def peer_url(text: str) -> str:
    """Where a peer's checkpoint is read: as `web_url`, or a file. Raises ValueError."""
    parts = urlsplit(text)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/") and not parts.path.endswith("/"):
        return text
    if parts.scheme == "file":
        raise ValueError("must be file:///ABSOLUTE/PATH, with three slashes")
    return web_url(text)


def witness_vkey(text: str) -> str:
    """A witness's verifier key (C2SP tlog-cosignature). Raises ValueError."""
    try:
        WitnessKey.parse(text)
    except NoteInvalid as error:
        raise ValueError(f"is no witness's verifier key, NAME+KEYID+BASE64 of type 0x04: {error.message}") from error
    return text.strip()


def release_rule(text: str) -> str:
    """When a signature leaves. Raises ValueError."""
    if text != "durable" and WITNESSED.fullmatch(text) is None:
        raise ValueError(f"is {text[:40]!r}, and must be 'durable', or 'witnessed(K)' with K from 1 to 99")
    return text


def credential_name(text: str) -> str:
    """The name of a systemd credential, or nothing. Raises ValueError."""
    if text and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254}", text) is None:
        raise ValueError("must be the plain name of a credential, not a path")
    return text


def token_uri(text: str) -> str:
    """An RFC 7512 URI without a PIN. Raises ValueError."""
    lowered = text.lower()
    if "pin-value" in lowered or "pin-source" in lowered:
        raise ValueError(
            "must not hold a PIN: remove pin-value and pin-source, and name a pin_file or pin_credential, or unlock, in [[tokens]]"
        )
    if not lowered.startswith("pkcs11:") or len(text) > 1024:
        raise ValueError(
            "must be an RFC 7512 URI of at most 1,024 characters, such as pkcs11:token=greatseal or pkcs11:object=release"
        )
    return text


def object_uri(text: str) -> str:
    """A key's reference: an RFC 7512 URI, or the slot of a YubiKey, which its token's adapter parses."""
    return text if text.lower().startswith("piv:") else token_uri(text)


def token_type(text: str) -> str:
    """The type of a PKCS#11 token; other types have tables of their own. Raises ValueError."""
    if text != "pkcs11":
        raise ValueError(f"is {text[:60]!r}, and must be 'pkcs11' or 'yubikey-piv'")
    return text


def yubikey_serial(text: str) -> str:
    """A YubiKey's serial number, decimal. Raises ValueError."""
    if re.fullmatch(r"[1-9][0-9]{0,9}", text) is None:
        raise ValueError(
            "must be the number printed on the YubiKey, without leading zeroes, as a string: `greatseald yubikey list` shows it"
        )
    return text


def known_action(text: str) -> str:
    """An action of the rules. Raises ValueError."""
    if text not in ACTIONS:
        raise ValueError(f"is {text[:40]!r}, which is no action: known are {', '.join(ACTIONS)}")
    return text


def certificate_serial(text: str) -> str:
    """A certificate's serial number, hexadecimal, without leading zeroes; or nothing. Raises ValueError."""
    plain = text.replace(":", "").lower().removeprefix("0x").lstrip("0")
    if text and re.fullmatch(r"[0-9a-f]{1,40}", plain) is None:
        raise ValueError(
            "must be a certificate's serial number in hexadecimal, as `openssl x509 -noout -serial` prints it"
        )
    return plain


def spki_digest(text: str) -> str:
    """The SHA-256 of a public key, hexadecimal; or nothing. Raises ValueError."""
    plain = text.replace(":", "").lower()
    if text and re.fullmatch(r"[0-9a-f]{64}", plain) is None:
        raise ValueError("must be 64 hexadecimal digits: the SHA-256 of the certificate's public key (SPKI, DER)")
    return plain


def resolved(value: Any, info: ValidationInfo) -> Any:
    """A path, absolute: a relative one means the configuration's directory. Raises ValueError."""
    if isinstance(value, str):
        if not value or "\0" in value:
            raise ValueError("must be a path")
        base: Path = (info.context or {})["base"]
        return base / Path(value).expanduser()
    return value


FilePath = Annotated[Path, BeforeValidator(resolved)]
Name = Annotated[str, AfterValidator(plain_name)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class Table(BaseModel):
    """A table of the file: immutable, unknown keys refused, nothing converted silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
