r"""Cosignatures of witnesses on checkpoints: C2SP tlog-cosignature, Ed25519 (signature type 0x04).

A witness is another party that saw the log grow and never fork. Its line stands beside the log's own:

    — witness.example/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZC…

The 72 bytes behind the key id are a POSIX time (8 bytes, big-endian) and an Ed25519 signature over
"cosignature/v1\ntime <seconds>\n" and the checkpoint's text. That text is all it says: a cosignature
moved to another checkpoint does not verify.

    key = WitnessKey.parse(vkey_line)
    require_quorum(note, [key], 1)                       # raises unless it cosigned
    line = WitnessSigner("witness.example/w1", private_key).cosign(text, now)

Source: c2sp.org/tlog-cosignature.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from greatseal.note import NoteSignature, VerifierKey, parse_note, signature_line
from greatseal.verification import NoteInvalid, NoteUnverified, QuorumMissing

_TIME: Final = struct.Struct(">Q")
_SIGNATURE_BYTES: Final = _TIME.size + 64
_MAX_TIME: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class WitnessKey(VerifierKey):
    """A witness's name and Ed25519 public key (32 bytes), written as a verifier key line of type 0x04."""

    SIGNATURE_TYPE: ClassVar[int] = 0x04

    def verify(self, text: str, signature: bytes) -> None:
        """Verify a cosignature (72 bytes) over a checkpoint's text.

        Raises:
            NoteUnverified: it is not by this witness over this text.
        """
        if len(signature) != _SIGNATURE_BYTES or time_of(signature) > _MAX_TIME:
            message = f"the cosignature that claims to be by {self.name} is not a time and a signature of 64 bytes"
            raise NoteUnverified(message)
        try:
            self._loaded.verify(signature[_TIME.size :], _signed(text, time_of(signature)))
        except InvalidSignature as error:
            message = f"the cosignature that claims to be by {self.name} is not, or is of another checkpoint"
            raise NoteUnverified(message) from error


class WitnessSigner:
    """Cosigns checkpoints with one named Ed25519 key, which serves nothing else: the signature does not cover the name."""

    def __init__(self, name: str, private_key: Ed25519PrivateKey) -> None:
        self._key = private_key
        self.verifier = WitnessKey(name, private_key.public_key().public_bytes_raw())

    @classmethod
    def from_pem(cls, name: str, pem: bytes) -> WitnessSigner:
        """Read an unencrypted PKCS#8 Ed25519 private key.

        Raises:
            NoteInvalid: the text is none. The message never quotes it.
        """
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            message = "the witness key is not an unencrypted PEM private key"
            raise NoteInvalid(message) from error
        if not isinstance(key, Ed25519PrivateKey):
            message = f"the witness key is not an Ed25519 key but {type(key).__name__}"
            raise NoteInvalid(message)
        return cls(name, key)

    def cosign(self, text: str, now: int) -> str:
        """Return the cosignature line, newline included, of a checkpoint's text at `now` (POSIX seconds)."""
        signature = _TIME.pack(now) + self._key.sign(_signed(text, now))
        return signature_line(NoteSignature(self.verifier.name, self.verifier.key_id, signature))


def time_of(signature: bytes) -> int:
    """Return when a cosignature (72 bytes) says it was made, POSIX seconds."""
    seconds: int = _TIME.unpack_from(signature)[0]
    return seconds


def cosigned_by(note: str | bytes, keys: Iterable[WitnessKey]) -> dict[str, int]:
    """Return the names of those witnesses that cosigned a checkpoint, and when (POSIX seconds).

    Lines of other keys are ignored. Two names with one public key are one witness, and count once.

    Raises:
        NoteInvalid: the note is malformed.
        NoteUnverified: a line that names one of the witnesses is wrong.
    """
    parsed = parse_note(note)
    found: dict[str, int] = {}
    counted: set[bytes] = set()
    for key in keys:
        key_id = key.key_id
        for each in parsed.signatures:
            if each.name == key.name and each.key_id == key_id:
                key.verify(parsed.text, each.signature)
                if key.public_key not in counted:
                    counted.add(key.public_key)
                    found[key.name] = time_of(each.signature)
    return found


def require_quorum(note: str | bytes, keys: Sequence[WitnessKey], quorum: int) -> dict[str, int]:
    """Return as `cosigned_by` does, where at least `quorum` of the witnesses cosigned.

    Raises:
        NoteInvalid, NoteUnverified: as `cosigned_by`.
        QuorumMissing: fewer did.
    """
    found = cosigned_by(note, keys)
    if len(found) < quorum:
        who = f": {', '.join(sorted(found))}" if found else ""
        message = (
            f"the checkpoint is cosigned by {len(found)} of the {len(keys)} witnesses{who}, and {quorum} are wanted"
        )
        raise QuorumMissing(message)
    return found


def _signed(text: str, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()
