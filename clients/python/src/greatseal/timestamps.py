"""RFC 3161 timestamps over checkpoints: an authority's word that a checkpoint existed at a time.

What is stamped is the signed note of a checkpoint as the log wrote it, without cosignatures; the token's message
imprint is its SHA-256. So `openssl ts -verify -data checkpoint -in token.tsr -CAfile root.pem` checks one, too.

They are kept and exported as JSON Lines, each with `authority`, `checkpoint` and `response` (base64 of the DER):

    for stamped in read_timestamps(path):
        print(verify(stamped, log_key, roots).time)

Sources: RFC 3161; the token's CMS signature is checked by rfc3161-client.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from greatseal.checkpoint import Checkpoint, open_checkpoint
from greatseal.note import MAX_NOTE_BYTES, VerifierKey
from greatseal.strictjson import JSONInvalid, decode
from greatseal.verification import TimestampInvalid

MAX_RESPONSE_BYTES: Final = 64 * 1024
_MAX_LINE: Final = 2 * MAX_NOTE_BYTES
_MAX_NAME: Final = 256


@dataclass(frozen=True, slots=True)
class Stamped:
    """One timestamp, not yet verified: who gave it, the checkpoint's note, and the TimeStampResp (RFC 3161, 2.4.2; DER)."""

    authority: str
    checkpoint: str
    response: bytes

    def line(self) -> str:
        """One line of JSON, newline included."""
        response = base64.b64encode(self.response).decode("ascii")
        document = {"authority": self.authority, "checkpoint": self.checkpoint, "response": response}
        return json.dumps(document, separators=(",", ":"), ensure_ascii=True) + "\n"


@dataclass(frozen=True, slots=True)
class VerifiedTimestamp:
    """A checkpoint and when, by an authority's clock, it existed at the latest."""

    checkpoint: Checkpoint
    time: datetime


def verify(stamped: Stamped, log_key: VerifierKey, roots: Sequence[x509.Certificate]) -> VerifiedTimestamp:
    """Verify that a log's checkpoint was stamped by an authority under one of `roots`.

    Raises:
        TimestampInvalid: the token is malformed, of something else, or by nobody that leads to a root.
        NoteInvalid, CheckpointInvalid: what was stamped is no checkpoint of this log.
    """
    checkpoint = open_checkpoint(stamped.checkpoint, log_key)
    return VerifiedTimestamp(checkpoint, verify_response(stamped.response, stamped.checkpoint.encode(), roots))


def verify_response(
    response: bytes, data: bytes, roots: Sequence[x509.Certificate], nonce: int | None = None
) -> datetime:
    """Verify a TimeStampResp over `data` and return its time, UTC.

    `nonce` is the request's, where the request is at hand. The authority's certificates must have been valid at that
    time; whether they were revoked since is not looked up.

    Raises:
        TimestampInvalid: it is malformed, refused, of other data or another request, or by nobody that leads to a root.
    """
    from rfc3161_client import VerificationError, VerifierBuilder, decode_timestamp_response

    if len(response) > MAX_RESPONSE_BYTES:
        message = f"a timestamp of {len(response)} bytes is over the limit of {MAX_RESPONSE_BYTES}"
        raise TimestampInvalid(message)
    try:
        decoded = decode_timestamp_response(response)
        VerifierBuilder(roots=list(roots), nonce=nonce).build().verify_message(decoded, data)
        time = decoded.tst_info.gen_time
    except VerificationError as error:
        message = f"the timestamp is not of this checkpoint by an authority that is trusted: {error}"
        raise TimestampInvalid(message) from error
    except Exception as error:  # foreign DER, read by a library that names no errors
        message = f"the timestamp is malformed: {type(error).__name__}: {str(error)[:200]}"
        raise TimestampInvalid(message) from error
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def read_timestamps(path: Path) -> Iterator[Stamped]:
    """Read a file of JSON Lines, verifying nothing but its form.

    Raises:
        TimestampInvalid: a line is none; the message has its number.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE + 1):
            number += 1
            try:
                yield parse_line(line)
            except TimestampInvalid as error:
                message = f"line {number} of {path} is no timestamp: {error.message}"
                raise TimestampInvalid(message) from error


def parse_line(line: bytes) -> Stamped:
    """Read one line, verifying nothing but its form.

    Raises:
        TimestampInvalid: it is malformed or over the bounds.
    """
    try:
        document = decode(line, max_bytes=_MAX_LINE, what="the line")
    except JSONInvalid as error:
        raise TimestampInvalid(error.message) from error
    if (
        not isinstance(document, dict)
        or document.keys() != {"authority", "checkpoint", "response"}
        or not all(isinstance(value, str) for value in document.values())
    ):
        message = "it is not an object with the texts authority, checkpoint and response"
        raise TimestampInvalid(message)
    authority, checkpoint, encoded = document["authority"], document["checkpoint"], document["response"]
    try:
        response = base64.b64decode(encoded.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        message = "its response is not base64"
        raise TimestampInvalid(message) from error
    if len(authority) > _MAX_NAME or len(checkpoint) > MAX_NOTE_BYTES or len(response) > MAX_RESPONSE_BYTES:
        message = "it is over the bounds of a timestamp"
        raise TimestampInvalid(message)
    return Stamped(authority, checkpoint, response)


def read_roots(paths: Iterable[Path]) -> list[x509.Certificate]:
    """Read the certificates of trusted authorities' roots, PEM files.

    Raises:
        TimestampInvalid: a file holds none.
        OSError: it cannot be read.
    """
    roots: list[x509.Certificate] = []
    for path in paths:
        with path.open("rb") as file:
            data = file.read(1 << 20)
        try:
            roots += x509.load_pem_x509_certificates(data)
        except ValueError as error:
            message = f"{path} holds no PEM certificate"
            raise TimestampInvalid(message) from error
    return roots
