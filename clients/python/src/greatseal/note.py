r"""C2SP signed notes: text signed by one or more named keys, and the keys' one-line form.

A note is text that ends in a newline, an empty line, and signature lines:

    — example.com/log Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeO…

Only Ed25519 (signature type 0x01) is signed and verified here; witnesses' lines (0x04) are in
`greatseal.cosignature`. Signature lines of unknown keys are ignored, so that witnesses may add theirs; a line that names the trusted key and does not verify
makes the whole note invalid. The bounds are those of golang.org/x/mod/sumdb/note: a million bytes,
100 signatures.

    signer = NoteSigner("greatseal.local/log", private_key)
    text = open_note(signer.sign("hello\n"), signer.verifier)

Source: c2sp.org/signed-note, v1.0.0.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from typing import ClassVar, Final, NamedTuple, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from greatseal.verification import NoteInvalid, NoteUnverified

MAX_NOTE_BYTES: Final = 1_000_000
MAX_SIGNATURES: Final = 100
MAX_VERIFIER_KEY_CHARS: Final = 1024

_KEY_ID_BYTES: Final = 4
_SIGNATURE_PREFIX: Final = "— "
_CONTROL: Final = re.compile("[\\x00-\\x09\\x0b-\\x1f]")


class NoteSignature(NamedTuple):
    """One signature line: the key's name, its 4-byte id, and the signature that follows the id."""

    name: str
    key_id: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A note taken apart and not verified. `text` ends in a newline."""

    text: str
    signatures: tuple[NoteSignature, ...]


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A named Ed25519 public key (32 bytes), written as one line: `<name>+<key id>+<base64>`.

    >>> VerifierKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW").name
    'PeterNeumann'
    """

    SIGNATURE_TYPE: ClassVar[int] = 0x01

    name: str
    public_key: bytes
    _loaded: Ed25519PublicKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_key_name(self.name)
        try:
            object.__setattr__(self, "_loaded", Ed25519PublicKey.from_public_bytes(self.public_key))
        except (ValueError, UnsupportedAlgorithm) as error:
            message = f"not an Ed25519 public key: {error}"
            raise NoteInvalid(message) from error

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read a verifier key line; space around it is ignored.

        Raises:
            NoteInvalid: malformed, of another signature type, or its key id is not that of the key.
        """
        if len(line) > MAX_VERIFIER_KEY_CHARS:
            message = f"a verifier key line of {len(line)} characters is over the limit of {MAX_VERIFIER_KEY_CHARS}"
            raise NoteInvalid(message)
        parts = line.strip().split("+", 2)
        if len(parts) != 3:
            message = "a verifier key line reads <name>+<8 hexadecimal digits>+<base64>"
            raise NoteInvalid(message)
        name, key_id, encoded = parts
        data = _decode(encoded, "the key of the verifier key line")
        if not data or data[0] != cls.SIGNATURE_TYPE:
            kind = f"0x{data[0]:02x}" if data else "none"
            message = f"the verifier key line has signature type {kind}, and 0x{cls.SIGNATURE_TYPE:02x} is wanted here"
            raise NoteInvalid(message)
        key = cls(name, data[1:])
        if key.key_id.hex() != key_id:
            message = f"the verifier key line says key id {key_id[:16]!r}, and its name and key have {key.key_id.hex()}"
            raise NoteInvalid(message)
        return key

    @property
    def key_id(self) -> bytes:
        """The 4 bytes that stand before signatures of this key: SHA-256(name ‖ LF ‖ type ‖ key)[:4]."""
        data = self.name.encode() + b"\n" + bytes([self.SIGNATURE_TYPE]) + self.public_key
        return hashlib.sha256(data).digest()[:_KEY_ID_BYTES]

    def line(self) -> str:
        """The verifier key line, without newline."""
        return f"{self.name}+{self.key_id.hex()}+{_encode(bytes([self.SIGNATURE_TYPE]) + self.public_key)}"

    def verify(self, text: str, signature: bytes) -> None:
        """Verify an Ed25519 signature (64 bytes) over the note's text.

        Raises:
            NoteUnverified: it is not by this key over this text.
        """
        try:
            self._loaded.verify(signature, text.encode())
        except InvalidSignature as error:
            message = f"the signature that claims to be by {self.name} is not"
            raise NoteUnverified(message) from error


class NoteSigner:
    """Signs notes with one named Ed25519 key.

    The key must serve nothing else: a note's text is whatever its author wants it to be.
    """

    def __init__(self, name: str, private_key: Ed25519PrivateKey) -> None:
        public = private_key.public_key().public_bytes_raw()
        self._key = private_key
        self._verifier = VerifierKey(name, public)
        self._key_id = self._verifier.key_id
        self._line_start = f"\n{_SIGNATURE_PREFIX}{name} "

    @classmethod
    def from_pem(cls, name: str, pem: bytes) -> NoteSigner:
        """Read an unencrypted PKCS#8 Ed25519 private key.

        Raises:
            NoteInvalid: the text is none. The message never quotes it.
        """
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            message = "the log key is not an unencrypted PEM private key"
            raise NoteInvalid(message) from error
        if not isinstance(key, Ed25519PrivateKey):
            message = f"the log key is not an Ed25519 key but {type(key).__name__}"
            raise NoteInvalid(message)
        return cls(name, key)

    @property
    def verifier(self) -> VerifierKey:
        """The public half, to be given to whoever verifies."""
        return self._verifier

    def sign(self, text: str) -> str:
        """Return `text`, which ends in a newline, as a note with this key's signature.

        Raises:
            NoteInvalid: the text cannot stand in a note.
        """
        _check_text(text)
        signature = self._key.sign(text.encode())
        return f"{text}{self._line_start}{_encode(self._key_id + signature)}\n"


def signature_line(signature: NoteSignature) -> str:
    """Return one signature line, newline included."""
    return f"{_SIGNATURE_PREFIX}{signature.name} {_encode(signature.key_id + signature.signature)}\n"


def parse_note(message: str | bytes) -> Note:
    """Take a signed note apart, verifying nothing.

    Raises:
        NoteInvalid: over a million bytes or 100 signatures, not UTF-8, control characters, no
            signature, or a malformed signature line.
    """
    data = _text(message)
    # The last empty line separates the text from the signatures; the text keeps its own newline.
    split = data.rfind("\n\n")
    if split < 0:
        problem = "no empty line separates text and signatures of the note"
        raise NoteInvalid(problem)
    text, signed = data[: split + 1], data[split + 2 :]
    if not signed.endswith("\n"):
        problem = "the note has no signature lines, or its last line does not end in a newline"
        raise NoteInvalid(problem)
    lines = signed[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        problem = f"the note has {len(lines)} signature lines, and {MAX_SIGNATURES} is the limit"
        raise NoteInvalid(problem)
    return Note(text, tuple(map(parse_signature_line, lines)))


def open_note(message: str | bytes, key: VerifierKey) -> str:
    """Return the text of a note that `key` signed.

    Every line that names the key must verify; lines of other keys are ignored.

    Raises:
        NoteInvalid: the note is malformed.
        NoteUnverified: the key did not sign it, or a line that names the key is wrong.
    """
    note = parse_note(message)
    key_id = key.key_id
    verified = False
    for each in note.signatures:
        if each.name == key.name and each.key_id == key_id:
            key.verify(note.text, each.signature)
            verified = True
    if not verified:
        problem = f"the note is not signed by {key.name} (key id {key_id.hex()})"
        raise NoteUnverified(problem)
    return note.text


def check_key_name(name: str) -> None:
    """Return if `name` can name a key: not empty, without space, plus sign or control character.

    Raises:
        NoteInvalid: it cannot.
    """
    if not name or "+" in name or any(map(str.isspace, name)) or _CONTROL.search(name) or not _is_utf8(name):
        problem = f"{name[:80]!r} cannot name a key: it is empty, or has a space, a plus sign or a control character"
        raise NoteInvalid(problem)


def parse_signature_line(line: str) -> NoteSignature:
    """Take one signature line apart, without its newline.

    Raises:
        NoteInvalid: it is malformed.
    """
    name, space, encoded = line.removeprefix(_SIGNATURE_PREFIX).partition(" ")
    if not line.startswith(_SIGNATURE_PREFIX) or not space:
        problem = "a signature line of the note does not read '— <name> <base64>'"
        raise NoteInvalid(problem)
    check_key_name(name)
    data = _decode(encoded, "a signature of the note")
    if len(data) <= _KEY_ID_BYTES:
        problem = f"a signature of the note has {len(data)} bytes, fewer than key id and signature take"
        raise NoteInvalid(problem)
    return NoteSignature(name, data[:_KEY_ID_BYTES], data[_KEY_ID_BYTES:])


def _text(message: str | bytes) -> str:
    if len(message) > MAX_NOTE_BYTES:
        problem = f"the note is longer than {MAX_NOTE_BYTES} bytes"
        raise NoteInvalid(problem)
    try:
        data = message.encode() if isinstance(message, str) else message
        text = data.decode()
    except UnicodeError as error:
        problem = "the note is not UTF-8"
        raise NoteInvalid(problem) from error
    if len(data) > MAX_NOTE_BYTES:
        problem = f"the note is longer than {MAX_NOTE_BYTES} bytes"
        raise NoteInvalid(problem)
    if _CONTROL.search(text):
        problem = "the note holds a control character"
        raise NoteInvalid(problem)
    return text


def _check_text(text: str) -> None:
    if not text.endswith("\n") or _CONTROL.search(text) or not _is_utf8(text):
        problem = "the text of a note ends in a newline, is UTF-8, and holds no other control character"
        raise NoteInvalid(problem)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decode(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        problem = f"{what} is not base64"
        raise NoteInvalid(problem) from error
    # One text for each value: the decoder itself accepts stray bits in the last character.
    if _encode(data) != text:
        problem = f"{what} is not canonical base64"
        raise NoteInvalid(problem)
    return data
