"""A PIN in memory: bytes that are wiped after use, and that no text, log or error shows.

Python copies what it likes: a `str` or `bytes` of a PIN cannot be wiped. So a PIN is read into a
`bytearray`, handed to the vendor's library as a pointer into it, and set to zero when it is no longer
needed. What cannot be wiped are the copies that libraries make (yubikit's APDUs, the vendor's own
memory) and what the kernel holds for a moment in a pipe, a terminal or a socket.
"""

from __future__ import annotations

import ctypes
import hmac
import secrets
from hashlib import blake2b
from typing import Final

MAX_PIN_BYTES: Final = 256
_MAX_REFUSED: Final = 16


class Secret:
    """Bytes that nobody prints. Takes over the `bytearray` that it is made of."""

    __slots__ = ("_data",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, data: bytearray) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Secret):
            return hmac.compare_digest(self._data, other._data)
        return isinstance(other, (bytes, bytearray)) and hmac.compare_digest(self._data, other)

    def __reduce__(self) -> str:
        message = "a secret is not pickled"
        raise TypeError(message)

    @property
    def data(self) -> bytearray:
        """The bytes themselves, for the call that needs them; not to be kept."""
        return self._data

    def pointer(self) -> ctypes.Array[ctypes.c_char]:
        """The bytes where they lie, for a C function that takes their number beside them."""
        return (ctypes.c_char * len(self._data)).from_buffer(self._data)

    def copy(self) -> Secret:
        """The same bytes at another place, to be wiped on their own."""
        return Secret(bytearray(self._data))

    def wipe(self) -> None:
        """Overwrite the bytes with zeros."""
        wipe(self._data)


def wipe(data: bytearray) -> None:
    """Overwrite bytes with zeros where they lie."""
    data[:] = bytes(len(data))


def one_line(buffer: bytearray, size: int) -> Secret:
    """The first `size` bytes of a buffer without their newline, as a secret; the buffer is wiped.

    Raises:
        ValueError: they are empty, more than `MAX_PIN_BYTES`, more than one line, or hold a zero byte.
    """
    try:
        end = size
        if end and buffer[end - 1] == 0x0A:
            end -= 1
        if end and buffer[end - 1] == 0x0D:
            end -= 1
        if not end:
            message = "is empty"
            raise ValueError(message)
        if end > MAX_PIN_BYTES or buffer.find(b"\n", 0, end) >= 0 or buffer.find(b"\0", 0, end) >= 0:
            message = f"holds no single line of at most {MAX_PIN_BYTES} bytes"
            raise ValueError(message)
        return Secret(buffer[:end])
    finally:
        wipe(buffer)


class RefusedPins:
    """The PINs that a token refused during the life of this process, so that none is tried twice.

    Only keyed hashes are kept, in memory; the key is random and ends with the process. Nothing derived
    from a PIN reaches the disk (ADR 0010).
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._hashes: list[bytes] = []

    def __contains__(self, pin: Secret) -> bool:
        return self._hash(pin) in self._hashes

    def add(self, pin: Secret) -> None:
        """Remember one that was refused."""
        self._hashes = [*self._hashes, self._hash(pin)][-_MAX_REFUSED:]

    def forget(self) -> None:
        """The token's PIN was changed: what was wrong may be right now."""
        self._hashes.clear()

    def _hash(self, pin: Secret) -> bytes:
        return blake2b(pin.data, key=self._key, digest_size=32).digest()
