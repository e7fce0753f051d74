"""The shape of the configuration: one frozen model for each table.

A model checks what can be seen in one value. What needs a second table or a file is `checks`.
Paths are absolute once read; relative ones mean the directory of the configuration file. Durations
are in seconds, sizes in bytes.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from greatseal.algorithms import Algorithm
from greatseal.cosignature import WitnessKey
from greatseal.verification import NoteInvalid
from greatseald.domain.keys import Holder, KeySettings
from greatseald.domain.policy import ACTIONS, AllowRule, DenyRule, Rules
from greatseald.domain.tokens import TokenSettings

MIB: Final = 1024 * 1024
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_ORIGIN: Final = re.compile(r"[A-Za-z0-9.-]+(?::[0-9]+)?(?:/[A-Za-z0-9._~-]+)+")
_WITNESSED: Final = re.compile(r"witnessed\(([1-9][0-9]?)\)")
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


def _name(text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise ValueError("must be 1 to 63 of a-z 0-9 . _ - and begin and end with a letter or digit")
    return text


def _endpoint(text: str) -> str:
    split_endpoint(text)
    return text


def _optional_endpoint(text: str) -> str:
    return _endpoint(text) if text else text


def _loopback_endpoint(text: str) -> str:
    if text and not is_loopback(split_endpoint(text)[0]):
        raise ValueError("must be on loopback, such as 127.0.0.1:9464: metrics and health carry no authentication")
    return text


def _origin(text: str) -> str:
    if _ORIGIN.fullmatch(text) is None:
        raise ValueError(
            "must be HOST/NAME as in a C2SP checkpoint, such as seal.example.org/log, without scheme, spaces or plus"
        )
    return text


def _store_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme == "sqlite":
        if parts.netloc or not parts.path.startswith("/") or parts.path == "/":
            raise ValueError("must be sqlite:///ABSOLUTE/PATH, with three slashes")
    elif parts.scheme not in {"postgresql", "postgres"}:
        raise ValueError("must begin with sqlite:/// or postgresql://")
    return text


def _web_url(text: str) -> str:
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


def _peer_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/") and not parts.path.endswith("/"):
        return text
    if parts.scheme == "file":
        raise ValueError("must be file:///ABSOLUTE/PATH, with three slashes")
    return _web_url(text)


def _witness_vkey(text: str) -> str:
    try:
        WitnessKey.parse(text)
    except NoteInvalid as error:
        raise ValueError(f"is no witness's verifier key, NAME+KEYID+BASE64 of type 0x04: {error.message}") from error
    return text.strip()


def _release(text: str) -> str:
    if text != "durable" and _WITNESSED.fullmatch(text) is None:
        raise ValueError(f"is {text[:40]!r}, and must be 'durable', or 'witnessed(K)' with K from 1 to 99")
    return text


def _credential(text: str) -> str:
    if text and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254}", text) is None:
        raise ValueError("must be the plain name of a credential, not a path")
    return text


def _key_uri(text: str) -> str:
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


def _object_uri(text: str) -> str:
    """A key's reference: an RFC 7512 URI, or the slot of a YubiKey, which its token's adapter parses."""
    return text if text.lower().startswith("piv:") else _key_uri(text)


def _token_type(text: str) -> str:
    if text != "pkcs11":
        raise ValueError(f"is {text[:60]!r}, and must be 'pkcs11' or 'yubikey-piv'")
    return text


def _yubikey_serial(text: str) -> str:
    if re.fullmatch(r"[1-9][0-9]{0,9}", text) is None:
        raise ValueError(
            "must be the number printed on the YubiKey, without leading zeroes, as a string: `greatseald yubikey list` shows it"
        )
    return text


def _action(text: str) -> str:
    if text not in ACTIONS:
        raise ValueError(f"is {text[:40]!r}, which is no action: known are {', '.join(ACTIONS)}")
    return text


def _serial(text: str) -> str:
    plain = text.replace(":", "").lower().removeprefix("0x").lstrip("0")
    if text and re.fullmatch(r"[0-9a-f]{1,40}", plain) is None:
        raise ValueError(
            "must be a certificate's serial number in hexadecimal, as `openssl x509 -noout -serial` prints it"
        )
    return plain


def _sha256(text: str) -> str:
    plain = text.replace(":", "").lower()
    if text and re.fullmatch(r"[0-9a-f]{64}", plain) is None:
        raise ValueError("must be 64 hexadecimal digits: the SHA-256 of the certificate's public key (SPKI, DER)")
    return plain


def _resolved(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        if not value or "\0" in value:
            raise ValueError("must be a path")
        base: Path = (info.context or {})["base"]
        return base / Path(value).expanduser()
    return value


FilePath = Annotated[Path, BeforeValidator(_resolved)]
Name = Annotated[str, AfterValidator(_name)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class Table(BaseModel):
    """A table of the file: immutable, unknown keys refused, nothing converted silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ServerSettings(Table):
    """`[server]`: the network door and its limits."""

    listen: Annotated[str, AfterValidator(_endpoint)]
    tls_cert: FilePath
    tls_key: FilePath
    client_ca: FilePath
    metrics_listen: Annotated[str, AfterValidator(_loopback_endpoint)] = ""
    admin_socket: FilePath = Field(default="run/admin.sock", validate_default=True)
    max_concurrent_calls: Annotated[int, Field(ge=1, le=100_000)] = 512
    max_waiting_items: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    max_message_bytes: Annotated[int, Field(ge=64 * 1024, le=256 * MIB)] = 16 * MIB
    default_deadline: Seconds = 30.0
    drain_timeout: Seconds = 20.0
    handshake_timeout: Seconds = 5.0
    max_connection_age: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    max_connection_age_grace: Annotated[float, Field(ge=1, le=3600)] = 30.0
    reflection: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def run_dir(self) -> Path:
        """The directory of the admin socket, which also holds the `address` file."""
        return self.admin_socket.parent


class StoreSettings(Table):
    """`[store]`: where the log is kept."""

    url: Annotated[str, AfterValidator(_store_url)]
    password_file: FilePath | None = None
    password_credential: Annotated[str, AfterValidator(_credential)] = ""
    connect_timeout: Seconds = 10.0
    statement_timeout: Annotated[float, Field(ge=0, le=3600)] = 30.0
    lock_timeout: Annotated[float, Field(ge=0, le=3600)] = 30.0
    idle_timeout: Seconds = 10.0
    readers: Annotated[int, Field(ge=1, le=64)] = 4
    wait_for_server: Annotated[float, Field(ge=0, le=3600)] = 30.0

    @property
    def has_password(self) -> bool:
        """Whether the URL holds a password, which makes the file a secret."""
        parts = urlsplit(self.url)
        return ":" in parts.netloc.rpartition("@")[0] or re.search(r"(?:^|&)(?:ssl)?password=", parts.query) is not None

    @property
    def safe_url(self) -> str:
        """The URL without user, password and parameters, for people and for the hash."""
        parts = urlsplit(self.url)
        # By hand: PostgreSQL takes several hosts, which are no port to urlsplit.
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @model_validator(mode="after")
    def _fits_its_scheme(self) -> Self:
        further = self.model_fields_set - {"url"}
        if urlsplit(self.url).scheme == "sqlite" and further:
            raise ValueError(
                f"has keys that are for PostgreSQL ({', '.join(sorted(further))}), and a url that begins with sqlite"
            )
        if sum((self.password_file is not None, bool(self.password_credential), self.has_password)) > 1:
            raise ValueError("names more than one password: use one of password_file, password_credential and the url")
        return self


class WitnessTable(Table):
    """One `[[log.witnesses]]`: another party that cosigns checkpoints (C2SP tlog-witness)."""

    vkey: Annotated[str, AfterValidator(_witness_vkey)]
    url: Annotated[str, AfterValidator(_web_url)]
    ca: FilePath | None = None
    timeout: Annotated[float, Field(gt=0, le=60)] = 5.0

    @property
    def key(self) -> WitnessKey:
        """The witness's key; its name is the witness's."""
        return WitnessKey.parse(self.vkey)


class TimestampTable(Table):
    """One `[[log.timestamps]]`: an RFC 3161 authority that says when checkpoints existed."""

    name: Name
    url: Annotated[str, AfterValidator(_web_url)]
    roots: FilePath
    ca: FilePath | None = None
    interval: Annotated[float, Field(ge=1, le=31_536_000)] = 3600.0
    timeout: Annotated[float, Field(gt=0, le=60)] = 10.0


class PeerTable(Table):
    """One `[[log.peers]]`: a front or a mirror whose newest checkpoint is compared with ours."""

    name: Name
    address: str = ""
    url: str = ""
    ca: FilePath | None = None
    client_cert: FilePath | None = None
    client_key: FilePath | None = None
    server_name: str = ""
    timeout: Annotated[float, Field(gt=0, le=60)] = 5.0

    @model_validator(mode="after")
    def _is_reached_in_one_way(self) -> Self:
        if bool(self.address) == bool(self.url):
            raise ValueError("needs one of address (a daemon, host:port) and url (a checkpoint file), and not both")
        if self.address:
            split_endpoint(self.address)
            if self.ca is None or self.client_cert is None or self.client_key is None:
                raise ValueError("has an address, and so needs ca, client_cert and client_key as a client does")
        else:
            _peer_url(self.url)
            if self.client_cert is not None or self.client_key is not None or self.server_name:
                raise ValueError("has a url, for which client_cert, client_key and server_name mean nothing")
        return self


class TilesSettings(Table):
    """`[log.tiles]`: where the log is published as C2SP tiles, and who may fetch them."""

    directory: FilePath
    interval: Annotated[float, Field(ge=0.1, le=86_400)] = 10.0
    listen: Annotated[str, AfterValidator(_optional_endpoint)] = ""
    tls: bool = False

    @model_validator(mode="after")
    def _safe_to_serve(self) -> Self:
        if self.tls and not self.listen:
            raise ValueError("has tls and no listen: nothing is served")
        if self.listen and not self.tls and not is_loopback(split_endpoint(self.listen)[0]):
            raise ValueError("listens beyond loopback without tls = true: entries name who had what signed")
        return self


class LogSettings(Table):
    """`[log]`: the transparency log's name, keys and anchors."""

    origin: Annotated[str, AfterValidator(_origin)]
    key_file: FilePath
    anchor: FilePath
    head_mac_key_file: FilePath
    reserve_bytes: Annotated[int, Field(ge=0, le=1 << 50)] = 256 * MIB
    request_retention_days: Annotated[int, Field(ge=1, le=36_500)] = 30
    witness_interval: Annotated[float, Field(ge=0.1, le=86_400)] = 10.0
    peer_interval: Annotated[float, Field(ge=0.1, le=86_400)] = 60.0
    witnesses: Annotated[tuple[WitnessTable, ...], Field(strict=False, max_length=32)] = ()
    timestamps: Annotated[tuple[TimestampTable, ...], Field(strict=False, max_length=8)] = ()
    peers: Annotated[tuple[PeerTable, ...], Field(strict=False, max_length=32)] = ()
    index: bool = True
    tiles: TilesSettings | None = None

    @property
    def halted_keys(self) -> Path:
        """The file beside the anchor that remembers which keys were halted."""
        return self.anchor.with_name(self.anchor.name + ".halted")

    @property
    def sightings(self) -> Path:
        """The file beside the anchor that remembers what witnesses and peers have seen of the log."""
        return self.anchor.with_name(self.anchor.name + ".seen")

    @property
    def stamps(self) -> Path:
        """The file beside the anchor that keeps the timestamps."""
        return self.anchor.with_name(self.anchor.name + ".timestamps")

    @property
    def withdrawn_tokens(self) -> Path:
        """The file beside the anchor that remembers which tokens are out of service."""
        return self.anchor.with_name(self.anchor.name + ".withdrawn")


class HostedTable(Table):
    """What every `[[tokens]]` has, whatever kind of token it is: its name, PIN and host."""

    name: Name
    environment: dict[str, str] = Field(default_factory=dict)
    pin_file: FilePath | None = None
    pin_credential: str = ""
    unlock: Literal["", "operator"] = ""
    unlock_socket: FilePath | None = None
    operation_timeout: Annotated[float, Field(gt=0, le=600)] = 30.0
    host_socket: FilePath | None = None
    state_dir: FilePath | None = None

    @property
    def resolved_state_dir(self) -> Path:
        """The state directory, once the paths were resolved."""
        if self.state_dir is None:
            message = f"the state directory of token {self.name} was not resolved"
            raise ValueError(message)
        return self.state_dir

    @model_validator(mode="before")
    @classmethod
    def _empty_means_absent(cls, values: Any) -> Any:
        if isinstance(values, dict):
            optional = ("host_socket", "management_key_file", "pin_file", "state_dir", "unlock_socket")
            return {key: value for key, value in values.items() if key not in optional or value != ""}
        return values


class TokenTable(HostedTable):
    """One `[[tokens]]` of type pkcs11: a token, the module that reaches it, and its host."""

    type: Annotated[str, AfterValidator(_token_type)]
    uri: Annotated[str, AfterValidator(_key_uri)]
    module: FilePath
    init_args: str = ""
    sessions: Annotated[int, Field(ge=1, le=256)] = 4
    lockout: Literal["", "none"] = ""

    def settings(self) -> TokenSettings:
        """The table as hosts and supervisors know it, once its paths were resolved."""
        return TokenSettings(
            name=self.name,
            uri=self.uri,
            module=self.module,
            state_dir=self.resolved_state_dir,
            init_args=self.init_args,
            environment=dict(self.environment),
            pin_file=self.pin_file,
            pin_credential=self.pin_credential,
            sessions=self.sessions,
            operation_timeout=self.operation_timeout,
            lockout=self.lockout,
            host_socket=self.host_socket,
            by_operator=self.unlock == "operator",
            unlock_socket=self.unlock_socket,
        )


class YubiKeyTable(HostedTable):
    """One `[[tokens]]` of type yubikey-piv: the PIV applet of the YubiKey with this serial number."""

    type: Literal["yubikey-piv"]
    serial: Annotated[str, AfterValidator(_yubikey_serial)]
    touch_timeout: Annotated[float, Field(ge=1, le=300)] = 15.0
    attestation_roots: Annotated[tuple[FilePath, ...], Field(strict=False)] = ()
    management_key_file: FilePath | None = None

    def settings(self) -> TokenSettings:
        """The table as hosts and supervisors know it, once its paths were resolved."""
        return TokenSettings(
            name=self.name,
            uri="",
            module=Path(),
            state_dir=self.resolved_state_dir,
            environment=dict(self.environment),
            pin_file=self.pin_file,
            pin_credential=self.pin_credential,
            sessions=1,
            operation_timeout=self.operation_timeout,
            host_socket=self.host_socket,
            by_operator=self.unlock == "operator",
            unlock_socket=self.unlock_socket,
            kind=self.type,
            serial=self.serial,
            touch_timeout=self.touch_timeout,
            attestation_roots=self.attestation_roots,
        )


class HolderTable(Table):
    """One `[[keys.holders]]`: a token that holds the key pair, and the object in it."""

    token: Name
    uri: Annotated[str, AfterValidator(_object_uri)]


class KeyTable(Table):
    """One `[[keys]]`: a named key and the object behind it, in one token or, the same pair, in several."""

    name: Name
    token: Annotated[str, AfterValidator(lambda text: _name(text) if text else text)] = ""
    uri: Annotated[str, AfterValidator(lambda text: _object_uri(text) if text else text)] = ""
    holders: Annotated[tuple[HolderTable, ...], Field(strict=False, max_length=64)] = ()
    algorithms: Annotated[
        tuple[Annotated[Algorithm, Field(strict=False)], ...], Field(strict=False, min_length=1, max_length=16)
    ]
    certificate_chain: FilePath | None = None
    predicate_types: Names = ()
    release: Annotated[str, AfterValidator(_release)] = "durable"

    @property
    def witnesses(self) -> int:
        """How many witnesses must have cosigned before a signature of this key leaves."""
        match = _WITNESSED.fullmatch(self.release)
        return int(match[1]) if match else 0

    @model_validator(mode="after")
    def _is_held(self) -> Self:
        if self.holders and (self.token or self.uri):
            raise ValueError("has token or uri beside [[keys.holders]]: write every token as a holder")
        if not self.holders and not (self.token and self.uri):
            raise ValueError("names no token and object: add token and uri, or a [[keys.holders]] table for each token")
        return self

    @property
    def held(self) -> tuple[Holder, ...]:
        """Every token with its object."""
        if self.holders:
            return tuple(Holder(each.token, each.uri) for each in self.holders)
        return (Holder(self.token, self.uri),)


class AllowTable(Table):
    """One `[[allow]]`."""

    client: Annotated[str, Field(min_length=1, max_length=2048)]
    actions: Annotated[tuple[Annotated[str, AfterValidator(_action)], ...], Field(strict=False, min_length=1)]
    keys: Names = ()
    payload_types: Names = ()


class DenyTable(Table):
    """One `[[deny]]`: a certificate by serial number or by public key."""

    serial: Annotated[str, AfterValidator(_serial)] = ""
    spki_sha256: Annotated[str, AfterValidator(_sha256)] = ""
    comment: str = ""

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.serial and not self.spki_sha256:
            raise ValueError("denies nobody: it needs a serial or an spki_sha256")
        return self


def _target(text: str) -> str:
    parts = urlsplit(text)
    if parts.username or parts.password:
        raise ValueError("must hold no user and password: name a header_file")
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/") or parts.path.endswith("/"):
            raise ValueError("must be file:///ABSOLUTE/PATH, with three slashes")
        return text
    if parts.scheme not in {"syslog+tcp", "syslog+tls", "http", "https"} or not parts.hostname:
        raise ValueError("must begin with file:///, syslog+tcp://, syslog+tls:// or https://")
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError("has a port that is no number up to 65535") from error
    if port == 0:
        raise ValueError("has the port 0")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError("must be https:// for another machine: the log says who signs what, and names people")
    return text


class OutboxTable(Table):
    """One `[[outbox]]`: where the log's entries are delivered, for a SIEM."""

    name: Name
    target: Annotated[str, AfterValidator(_target)]
    format: Literal["jsonl", "ocsf"] = "jsonl"
    types: Annotated[tuple[Literal["intent", "outcome", "denied", "admin"], ...], Field(strict=False, min_length=1)] = (
        "intent",
        "outcome",
        "denied",
        "admin",
    )
    batch: Annotated[int, Field(ge=1, le=1000)] = 200
    ca: FilePath | None = None
    client_cert: FilePath | None = None
    client_key: FilePath | None = None
    header_file: FilePath | None = None
    cursor: FilePath | None = None


class Settings(Table):
    """The whole configuration, valid. `chains` holds the certificate chains by key name: DER, leaf first."""

    file: Path
    server: ServerSettings
    store: StoreSettings
    log: LogSettings
    tokens: tuple[TokenTable | YubiKeyTable, ...] = ()
    keys: tuple[KeyTable, ...] = ()
    allow: tuple[AllowTable, ...] = ()
    deny: tuple[DenyTable, ...] = ()
    outbox: tuple[OutboxTable, ...] = ()
    chains: dict[str, tuple[bytes, ...]] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def rules(self) -> Rules:
        """The allow and deny tables as the core decides by them."""
        return Rules(
            allow=tuple(AllowRule(rule.client, rule.actions, rule.keys, rule.payload_types) for rule in self.allow),
            deny=tuple(DenyRule(rule.serial, rule.spki_sha256) for rule in self.deny),
        )

    def key_settings(self) -> tuple[KeySettings, ...]:
        """The keys as the core knows them."""
        return tuple(
            KeySettings(
                name=key.name,
                holders=key.held,
                algorithms=key.algorithms,
                predicate_types=key.predicate_types,
                certificate_chain=self.chains.get(key.name, ()),
                witnesses=key.witnesses,
            )
            for key in self.keys
        )

    def token_settings(self) -> tuple[TokenSettings, ...]:
        """The tokens as their hosts and supervisors know them."""
        return tuple(token.settings() for token in self.tokens)

    def canonical(self) -> dict[str, Any]:
        """The effective configuration without anything that could be a secret."""
        plain = self.model_dump(mode="json", exclude={"file", "warnings", "chains"})
        plain["store"]["url"] = self.store.safe_url
        for token in plain["tokens"]:
            # Vendors' modules take passwords in both; a hash of a guessable value would give it away.
            token["environment"] = sorted(token["environment"])
            token["init_args"] = bool(token.get("init_args"))
        for outbox in plain["outbox"]:
            # What stands behind the question mark may be a credential.
            outbox["target"] = outbox["target"].partition("?")[0]
        plain["chains"] = {
            name: [hashlib.sha256(cert).hexdigest() for cert in chain] for name, chain in self.chains.items()
        }
        return plain

    def digest(self) -> str:
        """SHA-256 of `canonical()`, hexadecimal: what the `start` entry of the log says was in force."""
        text = json.dumps(self.canonical(), separators=(",", ":"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
