"""The shape of `[log]`: the log itself, and the tables of those who anchor and publish it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from greatseal.cosignature import WitnessKey
from greatseald.config.values import (
    MIB,
    FilePath,
    Name,
    Table,
    is_loopback,
    log_origin,
    optional_endpoint,
    peer_url,
    split_endpoint,
    web_url,
    witness_vkey,
)


class WitnessTable(Table):
    """One `[[log.witnesses]]`: another party that cosigns checkpoints (C2SP tlog-witness)."""

    vkey: Annotated[str, AfterValidator(witness_vkey)]
    url: Annotated[str, AfterValidator(web_url)]
    ca: FilePath | None = None
    timeout: Annotated[float, Field(gt=0, le=60)] = 5.0

    @property
    def key(self) -> WitnessKey:
        """The witness's key; its name is the witness's."""
        return WitnessKey.parse(self.vkey)


class TimestampTable(Table):
    """One `[[log.timestamps]]`: an RFC 3161 authority that says when checkpoints existed."""

    name: Name
    url: Annotated[str, AfterValidator(web_url)]
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
            peer_url(self.url)
            if self.client_cert is not None or self.client_key is not None or self.server_name:
                raise ValueError("has a url, for which client_cert, client_key and server_name mean nothing")
        return self


class TilesSettings(Table):
    """`[log.tiles]`: where the log is published as C2SP tiles, and who may fetch them."""

    directory: FilePath
    interval: Annotated[float, Field(ge=0.1, le=86_400)] = 10.0
    listen: Annotated[str, AfterValidator(optional_endpoint)] = ""
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

    origin: Annotated[str, AfterValidator(log_origin)]
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
