"""The messages of C2SP tlog-witness: the body of `POST <prefix>/add-checkpoint`, written and read.

    old 20852014
    PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
    …one hash a line: the consistency proof from the old size to the checkpoint's

    example.com/behind-the-sofa
    20852163
    …the checkpoint, a signed note

A witness answers 200 with its cosignature lines, 409 with the size that it cosigned last where `old` is
another one (or where the same size has another root), 422 where the proof does not verify, 404 for a log that it
does not know, 403 where no key that it trusts signed, 400 for anything else that is wrong.

Source: c2sp.org/tlog-witness.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Final

from greatseal.checkpoint import HASH_BYTES, MAX_TREE_SIZE
from greatseal.tlog import MAX_PROOF_HASHES
from greatseal.verification import ProofInvalid

PATH: Final = "add-checkpoint"
SIZE_TYPE: Final = "text/x.tlog.size"
MAX_REQUEST_BYTES: Final = 64 * 1024
"""A proof has at most 63 lines of 45 bytes; the rest is room for a checkpoint with hundreds of signatures."""

_OLD: Final = re.compile(r"old (0|[1-9][0-9]{0,18})")
_SIZE: Final = re.compile(rb"(0|[1-9][0-9]{0,18})\n")


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """One request: the size that the witness cosigned last, the consistency proof from it, and the checkpoint's note."""

    old_size: int
    proof: tuple[bytes, ...]
    note: str

    def body(self) -> bytes:
        """The request's exact bytes."""
        hashes = "".join(f"{base64.b64encode(each).decode('ascii')}\n" for each in self.proof)
        return f"old {self.old_size}\n{hashes}\n{self.note}".encode()


def parse_request(body: bytes) -> AddCheckpoint:
    """Read a request's body, verifying nothing but its form; the note's form is not looked at.

    Raises:
        ProofInvalid: it is malformed or over 64 KiB.
    """
    if len(body) > MAX_REQUEST_BYTES:
        raise ProofInvalid(f"a request of {len(body)} bytes is over the limit of {MAX_REQUEST_BYTES}")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise ProofInvalid("the request is not UTF-8") from error
    head, separator, note = text.partition("\n\n")
    lines = head.split("\n")
    match = _OLD.fullmatch(lines[0])
    if match is None or int(match[1]) > MAX_TREE_SIZE or not separator or not note:
        raise ProofInvalid("a request begins with the line 'old <size>' and ends with a checkpoint after an empty line")
    if len(lines) - 1 > MAX_PROOF_HASHES:
        raise ProofInvalid(f"the request has {len(lines) - 1} hashes, and {MAX_PROOF_HASHES} is the limit")
    return AddCheckpoint(int(match[1]), tuple(map(_hash, lines[1:])), note)


def parse_size(body: bytes) -> int:
    """Read the body of a 409: a size and a newline.

    Raises:
        ProofInvalid: it is something else.
    """
    match = _SIZE.fullmatch(body)
    if match is None or int(match[1]) > MAX_TREE_SIZE:
        raise ProofInvalid("the witness answered 409 with something else than a size")
    return int(match[1])


def _hash(line: str) -> bytes:
    try:
        data = base64.b64decode(line.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ProofInvalid("a hash of the request is not base64") from error
    if len(data) != HASH_BYTES or base64.b64encode(data).decode("ascii") != line:
        raise ProofInvalid("a hash of the request is not the canonical base64 of 32 bytes")
    return data
