"""Parsers between an operator and a token host: pinentry's answers, requests over the host's socket, the journal of acts."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

from targets import JSON_WORDS, target, told

from greatseald.adapters.tokens.operator_acts import MAX_ACTS, ActJournal, ActsUnusable
from greatseald.adapters.tokens.operator_protocol import (
    MAX_SECRETS,
    OperatorProtocolError,
    receive_answer,
    receive_request,
    send_answer,
    send_request,
)
from greatseald.adapters.tokens.pinentry import AssuanAnswer, PinentryFailed
from greatseald.adapters.tokens.secret import MAX_PIN_BYTES

_DIRECTORY = tempfile.TemporaryDirectory(
    prefix="greatseal-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
)


@target("assuan", b"D ", b"OK\n", b"ERR 83886179 ", b"S ", b"# ", b"INQUIRE ", b"%25", b"%0A", b"\r\n")
def pinentry_answer(data: bytes) -> None:
    """What a pinentry program says; where it is cut into pieces makes no difference."""
    whole = _answer(data, len(data) or 1)
    assert whole == _answer(data, 1 + len(data) // 3) == _answer(data, 7)


def _answer(data: bytes, piece: int) -> tuple[bool, tuple[int, str] | None, bytes] | None:
    """Whether it is done, its error and its data; None where it is refused."""
    answer = AssuanAnswer()
    try:
        for start in range(0, len(data), piece):
            part = bytearray(data[start : start + piece])
            answer.feed(part, len(part))
    except PinentryFailed as error:
        told(error)
        return None
    secret = bytes(answer.secret().data)
    assert len(secret) <= MAX_PIN_BYTES
    assert not (secret and not data.count(b"D "))
    answer.wipe()
    assert not any(answer.secret().data)
    return answer.done, answer.error, secret


@target("operator", b"\x00\x0b\x95\x01\xa4soft\xa6unlock\xc2\x90", b"\x91\x04", b"\xff\xff", b"\xcd\x01\x01")
def operators_request(data: bytes) -> None:
    """A request with its secrets, and an answer."""
    for receive in (_request, _reply):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(5)
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            try:
                receive(ours)
            except OperatorProtocolError as error:
                told(error)


def _request(sock: socket.socket) -> None:
    request, secrets = receive_request(sock)
    assert len(secrets) <= MAX_SECRETS
    assert [len(secret) for secret in secrets] == request.secrets
    assert all(0 < len(secret) <= MAX_PIN_BYTES for secret in secrets)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_request(theirs, request, secrets)
        again, same = receive_request(ours)
        assert again == request
        assert same == secrets


def _reply(sock: socket.socket) -> None:
    answer = receive_answer(sock)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_answer(theirs, answer)
        assert receive_answer(ours) == answer


@target("operator-acts", *JSON_WORDS, b'[["', b'","unlock",0,"', b"interrupted")
def acts_of_operators(data: bytes) -> None:
    """The journal that another host left: readable, or refused; what is added to it stands in it."""
    path = Path(_DIRECTORY.name) / "operator-acts"
    path.write_bytes(data)
    try:
        journal = ActJournal(path.parent, "soft")
    except ActsUnusable as error:
        told(error)
        return
    before = journal.waiting
    assert len(before) <= MAX_ACTS
    if len(before) < MAX_ACTS:
        act = journal.begin("unlock", 0)
        journal.end(act, "unlocked")
        assert ActJournal(path.parent, "soft").waiting == [*before, act._replace(result="unlocked")]
        journal.noted([act.id])
