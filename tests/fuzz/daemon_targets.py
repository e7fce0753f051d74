"""Parsers of the daemon: frames, ledger, anchor, URIs, page tokens, configuration, requests."""

from __future__ import annotations

import hashlib
import struct
import tempfile
from pathlib import Path

import config_site
from google.protobuf.message import DecodeError
from targets import TOML_WORDS, target, told

from greatseal.v1 import audit_pb2, signing_pb2
from greatseald.adapters import plain_http, tiles_http
from greatseald.adapters.anchor import FileAnchor, _Slot, _text
from greatseald.adapters.tokens import frames
from greatseald.adapters.tokens.ledger import (
    HEADER,
    RECORD_BYTES,
    Ledger,
    LedgerBroken,
    LedgerUnwritable,
    read_ledger,
)
from greatseald.adapters.tokens.uris import UriInvalid, parse_uri
from greatseald.app.admission import DigestRequest, StatementRequest
from greatseald.config import ConfigError, load, load_token
from greatseald.domain.errors import GreatsealError
from greatseald.domain.keys import parse_key_name
from greatseald.ports.anchor import Anchored, AnchorError
from greatseald.ports.tokens import Operation
from greatseald.rpc import audit as audit_rpc
from greatseald.rpc import conversion
from greatseald.rpc.errors import status_of

_DIRECTORY = tempfile.TemporaryDirectory(
    prefix="greatseal-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
)


@target("frames", b"\x00\x00\x00", b"\x94\xa4Sign", b"\xa7Results", b"\xa5Hello", b"\xa5Ready", b"\xc4\x20", b"\xcf")
def token_frames(data: bytes) -> None:
    """A stream of frames in both directions; where it is cut into pieces makes no difference."""
    whole = _bodies(data, len(data) or 1)
    assert whole == _bodies(data, 1 + len(data) // 3) == _bodies(data, 7)
    for body in whole:
        if body is None:
            continue
        for decode in (frames.decode_to_host, frames.decode_from_host):
            try:
                message = decode(body)
            except frames.FrameInvalid as error:
                told(error)
                continue
            again = frames.encode(message)
            assert struct.unpack(">I", again[:4]) == (len(again) - 4,)
            # By its bytes: NaN differs from itself.
            assert frames.encode(decode(again[4:])) == again


def _bodies(data: bytes, piece: int) -> list[bytes | None]:
    """Message bodies; None at the end where the stream is refused."""
    buffer, found = frames.FrameBuffer(), []
    for start in range(0, len(data), piece):
        try:
            found.extend(buffer.feed(data[start : start + piece]))
        except frames.FrameInvalid as error:
            told(error)
            return [*found, None]
    assert len(buffer._data) <= len(data)
    return found


@target(
    "http-request",
    b"GET ",
    b" HTTP/1.1\r\n",
    b"\r\n",
    b"/tile/",
    b"entries/",
    b"x001/",
    b".p/",
    b"/../",
    b"Content-Length: ",
)
def http_request(data: bytes) -> None:
    """A request's head, and which tile it means: none but one whose path is written in the one way that C2SP has."""
    request = plain_http._parse(data[:4096] + b"\r\n\r\n", "peer", b"")
    if request is None:
        return
    assert request.path.startswith("/")
    assert all("\r" not in value and "\n" not in value for value in request.headers.values())
    name = tiles_http._name(request.path)
    if name is not None:
        assert f"/{name}" == request.path
        assert ".." not in name
        assert name == "checkpoint" or name.startswith("tile/")


@target("ledger", HEADER, bytes(7), b"\x40")
def host_ledger(data: bytes) -> None:
    """A ledger file. Where the first byte is odd, the chain over the records is made to fit."""
    content = _chained(data[1:]) if data[:1] and data[0] & 1 else data
    path = Path(_DIRECTORY.name) / "ledger"
    path.write_bytes(content)
    try:
        before = list(read_ledger(path))
    except LedgerBroken as error:
        told(error)
        before = None
    try:
        ledger = Ledger(path)
    except (LedgerBroken, LedgerUnwritable) as error:
        told(error)
        return
    try:
        assert before is None or ledger.sequence == len(before)
        operation = Operation(2**63, b"\x11" * 32, b"\x22" * 32)
        known = ledger.has_signed(*operation[:2])
        assert ledger.append([operation]) == ledger.sequence
        assert ledger.has_signed(*operation[:2])
    finally:
        ledger.close()
    after = list(read_ledger(path))
    assert after[:-1] == (before if before is not None else [])
    assert (after[-1].intent_index, after[-1].leaf_hash, after[-1].digest) == operation[:3]
    assert known == any((each.intent_index, each.leaf_hash) == tuple(operation[:2]) for each in after[:-1])


def _chained(records: bytes) -> bytes:
    chain, out = hashlib.sha256(HEADER).digest(), bytearray(HEADER)
    for number in range(len(records) // 120):
        body = struct.pack(">Q", number + 1) + records[120 * number : 120 * number + 120]
        chain = hashlib.sha256(chain + body).digest()
        out += body + chain
    return bytes(out + records[::RECORD_BYTES])


@target("anchor", b"greatseal-anchor-v1 ", b"\nsize ", b"\nroot ", b"\ncheck ", b"9" * 19)
def released_anchor(data: bytes) -> None:
    """An anchor file. Where the first byte is odd, numbers from the input stand in two slots that are whole."""
    path = Path(_DIRECTORY.name) / "anchor"
    if data[:1] and data[0] & 1:
        path.write_bytes(_slot(data[1:9]) + _slot(data[9:17]))
    else:
        path.write_bytes(data[:4096].ljust(4096, b"\n") + data[4096:8192].ljust(4096, b"\n"))
    try:
        anchor = FileAnchor(str(path))
    except AnchorError as error:
        told(error)
        return
    head = Anchored(7, b"\x33" * 32)
    try:
        anchor.read()
        anchor.advance(head)
        assert anchor.read() == head
    finally:
        anchor.close()
    again = FileAnchor(str(path))
    try:
        assert again.read() == head, "the next start takes an older head for the newest"
    finally:
        again.close()


def _slot(data: bytes) -> bytes:
    number = int.from_bytes(data, "big") % 10**19
    return _text(_Slot(number, Anchored(number // 3, data.ljust(32, b"\0")))).ljust(4096, b"\n")


@target("uri", b"pkcs11:", b";object=", b"token=", b"id=%", b"slot-id=", b"?pin-value=", b"type=private", b"%00")
def pkcs11_uri(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    try:
        uri = parse_uri(text)
    except UriInvalid as error:
        told(error)
        return
    assert parse_uri(str(uri)) == uri
    assert str(uri).isascii()


@target("page-token", b"dXA6", b"a2V5czo", b"-_", b"=", b"+/")
def page_token(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    for kind in ("up", "keys"):
        try:
            position = conversion.read_page_token(kind, text)
            index = audit_rpc._index(position) if kind == "up" else 0
        except GreatsealError as error:
            status_of(error).SerializeToString()
            continue
        assert conversion.read_page_token(kind, conversion.write_page_token(kind, position)) == position
        assert 0 <= index < 2**64
    for read in (conversion.parse_entry_name, conversion.check_log, parse_key_name):
        try:
            read(text, "log") if read is not parse_key_name else parse_key_name(text)
        except GreatsealError as error:
            _wire_safe(error)


def _wire_safe(error: GreatsealError) -> None:
    told(error)
    status_of(error).SerializeToString()


@target("config", *TOML_WORDS, b"[server]\n", b"[[tokens]]\n", b"[[allow]]\n")
def configuration(data: bytes) -> None:
    path = config_site.prepared(Path(_DIRECTORY.name)) / "greatseald.toml"
    path.write_bytes(data)
    path.chmod(0o600)
    uris: list[str] = []
    try:
        settings = load(path, {}, lambda uri, _object: uris.append(uri))
    except ConfigError as error:
        problems = error.problems
        if not problems or not all(0 <= each.line <= data.count(b"\n") + 1 for each in problems):
            raise AssertionError("the problems have no line in the file") from error
        str(error).encode()
    else:
        assert load(path, {}) == settings
        assert all(load_token(path, token.name) == token for token in settings.tokens)
    try:
        load_token(path, "soft")
    except ConfigError as error:
        str(error).encode()


_REQUESTS = (
    signing_pb2.SignDigestRequest,
    signing_pb2.SignStatementRequest,
    signing_pb2.BatchSignRequest,
    audit_pb2.ListEntriesRequest,
)


@target("requests", b"\x0a\x0c", b"keys/scratch", b"\x12\x24", b"\x1a\x22\x0a\x20", b"\x20\x01")
def requests(data: bytes) -> None:
    """Messages as the gate takes them, up to the domain's own requests."""
    for kind in _REQUESTS:
        try:
            message = kind.FromString(data)
        except DecodeError:
            continue
        assert kind.FromString(message.SerializeToString()) is not None
        try:
            if isinstance(message, signing_pb2.SignDigestRequest):
                _check(conversion.digest_request(message))
            elif isinstance(message, signing_pb2.SignStatementRequest):
                _check(conversion.statement_request(message))
            elif isinstance(message, signing_pb2.BatchSignRequest):
                for item in message.items[:100]:
                    _check(conversion.batch_item(item))
            else:
                assert 0 <= conversion.page_size(message.page_size, 100, 1000) <= 1000
        except GreatsealError as error:
            _wire_safe(error)


def _check(item: DigestRequest | StatementRequest) -> None:
    if isinstance(item, DigestRequest):
        assert item.hash_name in {"", "sha256", "sha384", "sha512"}
    parse_key_name(item.key)
