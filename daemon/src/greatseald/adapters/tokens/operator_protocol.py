"""What an operator's command and a token's host say to each other over the host's own socket.

One request and one answer for each connection; nothing here passes through the front.

    command                                          host
    u16 length, Request (msgpack), the secrets  ──▶
                                                ◀──  u16 length, Answer (msgpack)

Secrets (PINs, a PUK) stand behind the request as raw bytes, so that each is received into memory that
can be wiped; the request names their lengths. Lengths are big-endian, a message has at most
`MAX_MESSAGE_BYTES`, a request at most `MAX_SECRETS` secrets.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from greatseald.adapters.tokens.secret import MAX_PIN_BYTES, Secret, wipe

VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 8192
MAX_SECRETS: Final = 2
_LENGTH: Final = struct.Struct(">H")
_Message = TypeVar("_Message")

STATUS, UNLOCK, LOCK, CHANGE_PIN, UNBLOCK = "status", "unlock", "lock", "change-pin", "unblock"


class OperatorProtocolError(Exception):
    """The other side does not speak this protocol, or has gone."""


class Request(msgspec.Struct, frozen=True, array_like=True):
    """What an operator asks for. `secrets` are the lengths of those that follow."""

    version: int
    token: str
    action: str
    final_try: bool = False
    secrets: list[int] = []


class TokenStatus(msgspec.Struct, frozen=True, array_like=True):
    """How a token's host stands.

    `state` is ready, locked (for an operator), closed (by the latch) or held (by a command); `pin` where the PIN comes from: operator, file, credential or
    none. `tries` and `unblocking_tries` in words, empty where nothing is known; `counter` and `unblocking_counter` are
    full, low, final try, locked or empty. Lengths are bytes, 0 where the token tells none.
    """

    state: str
    pin: str
    detail: str = ""
    counter: str = ""
    tries: str = ""
    unblocking_counter: str = ""
    unblocking_tries: str = ""
    unblocks_with: str = ""
    least_bytes: int = 0
    most_bytes: int = 0
    pin_pad: bool = False
    last_attempt: str = ""
    acts_waiting: int = 0


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """How it went. `result` is done, refused (the token refused a PIN), forbidden (it was not tried), failed or usage."""

    result: str
    message: str
    status: TokenStatus | None = None


def send_request(sock: socket.socket, request: Request, secrets: Sequence[Secret]) -> None:
    """Send a request with its secrets, which are the caller's to wipe.

    Raises:
        OSError: the host is gone.
    """
    body = msgspec.msgpack.encode(msgspec.structs.replace(request, secrets=[len(secret) for secret in secrets]))
    sock.sendall(_LENGTH.pack(len(body)) + body)
    for secret in secrets:
        sock.sendall(secret.data)


def receive_request(sock: socket.socket) -> tuple[Request, list[Secret]]:
    """Receive a request with its secrets.

    Raises:
        OperatorProtocolError: it is none, or not whole.
    """
    request = _receive(sock, Request)
    if len(request.secrets) > MAX_SECRETS or not all(0 < length <= MAX_PIN_BYTES for length in request.secrets):
        message = f"a request has at most {MAX_SECRETS} secrets of 1 to {MAX_PIN_BYTES} bytes"
        raise OperatorProtocolError(message)
    secrets: list[Secret] = []
    try:
        for length in request.secrets:
            secrets.append(Secret(bytearray(length)))
            _fill(sock, secrets[-1].data)
    except OperatorProtocolError:
        for secret in secrets:
            secret.wipe()
        raise
    return request, secrets


def send_answer(sock: socket.socket, answer: Answer) -> None:
    """Send the answer.

    Raises:
        OSError: the command is gone.
    """
    body = msgspec.msgpack.encode(answer)
    if len(body) > MAX_MESSAGE_BYTES:
        body = msgspec.msgpack.encode(Answer(answer.result, answer.message[:1000]))
    sock.sendall(_LENGTH.pack(len(body)) + body)


def receive_answer(sock: socket.socket) -> Answer:
    """Receive the answer.

    Raises:
        OperatorProtocolError: there is none.
    """
    return _receive(sock, Answer)


def _receive(sock: socket.socket, kind: type[_Message]) -> _Message:
    head = bytearray(_LENGTH.size)
    _fill(sock, head)
    (length,) = _LENGTH.unpack(head)
    if not 0 < length <= MAX_MESSAGE_BYTES:
        message = f"a message of {length} bytes: 1 to {MAX_MESSAGE_BYTES} are allowed"
        raise OperatorProtocolError(message)
    body = bytearray(length)
    _fill(sock, body)
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = "not a message of this protocol"
        raise OperatorProtocolError(message) from error


def _fill(sock: socket.socket, target: bytearray) -> None:
    """Receive exactly as many bytes as `target` has."""
    view = memoryview(target)
    received = 0
    while received < len(target):
        try:
            count = sock.recv_into(view[received:])
        except OSError as error:
            wipe(target)
            message = f"the other side does not answer: {error.strerror or error}"
            raise OperatorProtocolError(message) from error
        if not count:
            wipe(target)
            message = "the other side hung up"
            raise OperatorProtocolError(message)
        received += count
