"""The frames between a front and a token host: u32 big-endian length, then one msgpack message.

The same over an inherited socketpair and over an AF_UNIX path. Messages are typed structs, never
pickled objects; a frame is at most `MAX_FRAME_BYTES`, and whoever meets a longer or an undecodable
one closes the connection. The first message of each side is a hello that carries `VERSION`.

    front                                host
    Hello(version, settings | None) ──▶
                                    ◀── Ready(version, info, …) | NotReady(…)
                                    ◀── Ready(…)         (after a NotReady that is locked: an operator unlocked it)
    FindKey(id, uri)                ──▶
                                    ◀── Key(id, …) | KeyRefused(id, …)
    Sign(id, uri, algorithm, ops)   ──▶
                                    ◀── Results(id, …)   (several, until every operation is answered)
                                    ◀── OperatorActs(acts)  (what operators did; Ready comes once they are noted)
    ActsNoted(ids)                  ──▶
                                    ◀── TouchWait(what)  (a person has to touch the device, or has)
    Ping(id)                        ──▶
                                    ◀── Pong(id)
    Stop()                          ──▶                  (the host finishes what it has, then ends)
                                    ◀── NotReady(…)      (at any time: it has to give up; then end of file)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from greatseald.domain.tokens import TokenSettings
from greatseald.ports.tokens import NotSigned, Operation, OperatorAct, Signed

VERSION: Final = 3
MAX_MESSAGE_BYTES: Final = 17 * 1024 * 1024
"""The longest message that travels whole, for Ed25519: the largest statement with what DSSE puts before it."""
MAX_FRAME_BYTES: Final = MAX_MESSAGE_BYTES + 1024 * 1024
MAX_OPERATIONS: Final = 4096
"""Operations in one Sign frame: each of about 150 bytes, so far under a frame where they carry no message."""
_LENGTH: Final = struct.Struct(">I")


class FrameInvalid(Exception):
    """The other side sent something that is no frame of this protocol."""


class _Message(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """A message: an array whose first element is the struct's name."""


class HostSettings(msgspec.Struct, frozen=True, array_like=True):
    """`TokenSettings` as it travels to a spawned host; `environment` travels in the process's own."""

    name: str
    uri: str
    module: str
    state_dir: str
    init_args: str
    pin_file: str
    pin_credential: str
    sessions: int
    operation_timeout: float
    lockout: str
    kind: str = "pkcs11"
    serial: str = ""
    touch_timeout: float = 0.0
    attestation_roots: tuple[str, ...] = ()
    by_operator: bool = False
    unlock_socket: str = ""
    maintenance: bool = False
    """Log in for nobody and serve operators alone: the host of a command that works while no daemon runs."""


class Hello(_Message, frozen=True):
    """The front's first message. `settings` is None towards a host that has its own; then `token` is checked."""

    version: int
    token: str
    settings: HostSettings | None


class FindKey(_Message, frozen=True):
    """Ask for the private key that `uri` means."""

    id: int
    uri: str


class Sign(_Message, frozen=True):
    """Ask for signatures. A position is an index into `operations`."""

    id: int
    uri: str
    algorithm: str
    operations: list[Operation]


class Ping(_Message, frozen=True):
    """Ask for a sign of life."""

    id: int


class Stop(_Message, frozen=True):
    """Finish what was asked for, then end."""


class ActsNoted(_Message, frozen=True):
    """These acts of operators are in the log."""

    ids: list[str]


class OperatorActs(_Message, frozen=True):
    """What operators did and the host has not been told is in the log; every one is told until it is."""

    acts: list[OperatorAct]


class Ready(_Message, frozen=True):
    """The host's first message once the token is logged in. `algorithms` are those it lists mechanisms for; `notes` are for people."""

    version: int
    pid: int
    serial: str
    label: str
    manufacturer: str
    model: str
    firmware: str
    sequence: int
    sessions: int
    algorithms: list[str]
    notes: list[str]


class NotReady(_Message, frozen=True):
    """The token cannot be used, or no more; `locked` says that an operator is needed."""

    version: int
    locked: bool
    detail: str


class Key(_Message, frozen=True):
    """The key of a FindKey."""

    id: int
    spki: bytes
    algorithms: list[str]
    attestation: list[bytes] = []
    custody: str = ""


class KeyRefused(_Message, frozen=True):
    """No key for a FindKey."""

    id: int
    detail: str
    locked: bool


class Results(_Message, frozen=True):
    """Some results of a Sign. `operation_seconds` is how long one operation takes now."""

    id: int
    signed: list[Signed]
    failed: list[NotSigned]
    operation_seconds: float


class TouchWait(_Message, frozen=True):
    """The device waits for a touch, for what `what` says; empty: it no longer does."""

    what: str


class Pong(_Message, frozen=True):
    """The sign of life."""

    id: int


ToHost = Hello | FindKey | Sign | Ping | Stop | ActsNoted
FromHost = Ready | NotReady | Key | KeyRefused | Results | TouchWait | Pong | OperatorActs

_encoder: Final = msgspec.msgpack.Encoder()
_to_host: Final[msgspec.msgpack.Decoder[ToHost]] = msgspec.msgpack.Decoder(ToHost)
_from_host: Final[msgspec.msgpack.Decoder[FromHost]] = msgspec.msgpack.Decoder(FromHost)
_NOT_A_MESSAGE: Final = "not a message of the token host protocol: {}"


def encode(message: ToHost | FromHost) -> bytes:
    """One frame, length and body.

    Raises:
        FrameInvalid: the message does not fit a frame.
    """
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        error = f"a message of {len(body)} bytes does not fit a frame of {MAX_FRAME_BYTES}"
        raise FrameInvalid(error)
    return _LENGTH.pack(len(body)) + body


class FrameBuffer:
    """Bytes of a stream in, message bodies out. Holds at most one frame and what was read behind it."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add what was read; yields each body that is complete.

        Raises:
            FrameInvalid: a frame claims to be empty or longer than `MAX_FRAME_BYTES`.
        """
        self._data += data
        start = 0
        available = len(self._data)
        try:
            while available - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._data, start)
                if not 0 < length <= MAX_FRAME_BYTES:
                    error = f"a frame of {length} bytes: 1 to {MAX_FRAME_BYTES} are allowed"
                    raise FrameInvalid(error)
                end = start + _LENGTH.size + length
                if end > available:
                    return
                body = bytes(self._data[start + _LENGTH.size : end])
                start = end
                yield body
        finally:
            del self._data[:start]


def decode_to_host(body: bytes) -> ToHost:
    """Decode what a front sent.

    Raises:
        FrameInvalid: not a message of this protocol.
    """
    try:
        return _to_host.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameInvalid(_NOT_A_MESSAGE.format(error)) from error


def decode_from_host(body: bytes) -> FromHost:
    """Decode what a host sent.

    Raises:
        FrameInvalid: not a message of this protocol.
    """
    try:
        return _from_host.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameInvalid(_NOT_A_MESSAGE.format(error)) from error


def to_host_settings(settings: TokenSettings, *, maintenance: bool = False) -> HostSettings:
    """The part of a token's settings that its host works by."""
    return HostSettings(
        name=settings.name,
        uri=settings.uri,
        module=str(settings.module),
        state_dir=str(settings.state_dir),
        init_args=settings.init_args,
        pin_file=str(settings.pin_file) if settings.pin_file else "",
        pin_credential=settings.pin_credential,
        sessions=settings.sessions,
        operation_timeout=settings.operation_timeout,
        lockout=settings.lockout,
        kind=settings.kind,
        serial=settings.serial,
        touch_timeout=settings.touch_timeout,
        attestation_roots=tuple(str(path) for path in settings.attestation_roots),
        by_operator=settings.by_operator,
        unlock_socket=str(settings.unlock_socket) if settings.unlock_socket else "",
        maintenance=maintenance,
    )


def from_host_settings(settings: HostSettings) -> TokenSettings:
    """The reverse of `to_host_settings`."""
    return TokenSettings(
        name=settings.name,
        uri=settings.uri,
        module=Path(settings.module),
        state_dir=Path(settings.state_dir),
        init_args=settings.init_args,
        pin_file=Path(settings.pin_file) if settings.pin_file else None,
        pin_credential=settings.pin_credential,
        sessions=settings.sessions,
        operation_timeout=settings.operation_timeout,
        lockout=settings.lockout,
        kind=settings.kind,
        serial=settings.serial,
        touch_timeout=settings.touch_timeout,
        attestation_roots=tuple(Path(path) for path in settings.attestation_roots),
        by_operator=settings.by_operator,
        unlock_socket=Path(settings.unlock_socket) if settings.unlock_socket else None,
    )
