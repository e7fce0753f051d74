"""The shape of the configuration: one frozen model for each table.

A model checks what can be seen in one value. What needs a second table or a file is `checks`.
Paths are absolute once read; relative ones mean the directory of the configuration file. Durations
are in seconds, sizes in bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from greatseal.algorithms import Algorithm
from greatseald.config.log_tables import LogSettings
from greatseald.config.values import (
    MIB,
    WITNESSED,
    FilePath,
    Name,
    Names,
    Seconds,
    Table,
    certificate_serial,
    credential_name,
    endpoint,
    is_loopback,
    known_action,
    loopback_endpoint,
    object_uri,
    plain_name,
    release_rule,
    spki_digest,
    store_url,
    token_type,
    token_uri,
    yubikey_serial,
)
from greatseald.domain.keys import Holder, KeySettings
from greatseald.domain.policy import AllowRule, DenyRule, Rules
from greatseald.domain.tokens import TokenSettings


class ServerSettings(Table):
    """`[server]`: the network door and its limits."""

    listen: Annotated[str, AfterValidator(endpoint)]
    tls_cert: FilePath
    tls_key: FilePath
    client_ca: FilePath
    metrics_listen: Annotated[str, AfterValidator(loopback_endpoint)] = ""
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

    url: Annotated[str, AfterValidator(store_url)]
    password_file: FilePath | None = None
    password_credential: Annotated[str, AfterValidator(credential_name)] = ""
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

    type: Annotated[str, AfterValidator(token_type)]
    uri: Annotated[str, AfterValidator(token_uri)]
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
    serial: Annotated[str, AfterValidator(yubikey_serial)]
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
    uri: Annotated[str, AfterValidator(object_uri)]


class KeyTable(Table):
    """One `[[keys]]`: a named key and the object behind it, in one token or, the same pair, in several."""

    name: Name
    token: Annotated[str, AfterValidator(lambda text: plain_name(text) if text else text)] = ""
    uri: Annotated[str, AfterValidator(lambda text: object_uri(text) if text else text)] = ""
    holders: Annotated[tuple[HolderTable, ...], Field(strict=False, max_length=64)] = ()
    algorithms: Annotated[
        tuple[Annotated[Algorithm, Field(strict=False)], ...], Field(strict=False, min_length=1, max_length=16)
    ]
    certificate_chain: FilePath | None = None
    predicate_types: Names = ()
    release: Annotated[str, AfterValidator(release_rule)] = "durable"

    @property
    def witnesses(self) -> int:
        """How many witnesses must have cosigned before a signature of this key leaves."""
        match = WITNESSED.fullmatch(self.release)
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
    actions: Annotated[tuple[Annotated[str, AfterValidator(known_action)], ...], Field(strict=False, min_length=1)]
    keys: Names = ()
    payload_types: Names = ()


class DenyTable(Table):
    """One `[[deny]]`: a certificate by serial number or by public key."""

    serial: Annotated[str, AfterValidator(certificate_serial)] = ""
    spki_sha256: Annotated[str, AfterValidator(spki_digest)] = ""
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
