"""C2SP checkpoints: a log's name, size and root hash, signed as a note.

    greatseal.local/log
    20852163
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

    — greatseal.local/log Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeO…

Greatseal writes no extension lines, and refuses checkpoints that have some: nobody can audit them.

    checkpoint = open_checkpoint(note, VerifierKey.parse(vkey_line))

Source: c2sp.org/tlog-checkpoint, v1.0.0.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from greatseal.note import NoteSigner, VerifierKey, open_note, parse_note
from greatseal.verification import CheckpointInvalid

HASH_BYTES: Final = 32
MAX_TREE_SIZE: Final = 2**63 - 1
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

_SIZE: Final = re.compile("0|[1-9][0-9]{0,18}")
_LINES: Final = 3


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head of a named log: `size` entries under `root` (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The three lines that are signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode('ascii')}\n"

    def sign(self, signer: NoteSigner) -> str:
        """The checkpoint as a note signed with the log's key."""
        return signer.sign(self.text())


def parse_text(text: str) -> Checkpoint:
    """Read a checkpoint's text, verifying nothing but its form.

    Raises:
        CheckpointInvalid: other than three lines, a size that is no plain decimal below 2^63, a root
            of other than 32 bytes, or an empty tree with a root of its own.
    """
    lines = text.split("\n")
    if len(lines) != _LINES + 1 or lines[_LINES]:
        message = "a checkpoint of Greatseal has three lines: origin, size, root"
        raise CheckpointInvalid(message)
    origin, size_text, root_text, _ = lines
    if not origin:
        message = "the checkpoint names no origin"
        raise CheckpointInvalid(message)
    if not _SIZE.fullmatch(size_text) or int(size_text) > MAX_TREE_SIZE:
        message = f"the checkpoint's size {size_text[:24]!r} is not a decimal number below 2^63"
        raise CheckpointInvalid(message)
    size = int(size_text)
    try:
        root = base64.b64decode(root_text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        message = "the checkpoint's root is not base64"
        raise CheckpointInvalid(message) from error
    if len(root) != HASH_BYTES or base64.b64encode(root).decode("ascii") != root_text:
        message = "the checkpoint's root is not the canonical base64 of 32 bytes"
        raise CheckpointInvalid(message)
    if size == 0 and root != EMPTY_ROOT:
        message = "the checkpoint is of an empty tree and has another root than the empty tree's"
        raise CheckpointInvalid(message)
    return Checkpoint(origin, size, root)


def open_checkpoint(note: str | bytes, key: VerifierKey, origin: str | None = None) -> Checkpoint:
    """Return the checkpoint of a note that the log's key signed.

    `origin` is the log that is expected; the key's own name where None.

    Raises:
        NoteInvalid: the note is malformed.
        NoteUnverified: the key did not sign it.
        CheckpointInvalid: its text is no checkpoint, or one of another log.
    """
    checkpoint = parse_text(open_note(note, key))
    expected = key.name if origin is None else origin
    if checkpoint.origin != expected:
        message = f"the checkpoint is of the log {checkpoint.origin[:120]!r}, and {expected!r} was expected"
        raise CheckpointInvalid(message)
    return checkpoint


def read_unverified(note: str | bytes) -> Checkpoint:
    """Return the checkpoint of a note without verifying any signature: for display, never for trust.

    Raises:
        NoteInvalid: the note is malformed.
        CheckpointInvalid: its text is no checkpoint.
    """
    return parse_text(parse_note(note).text)
