"""Tree heads under a seal, so that a row we did not write is never extended.

Whoever can write to the database can write a head row; only the daemon can seal one. The key is 32
bytes that the database never sees.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import Final

MAC_KEY_BYTES: Final = 32
_CONTEXT: Final = b"greatseal head v1\n"


class HeadForged(Exception):
    """The head row's MAC is wrong: it was edited, or sealed with another key."""


@dataclass(frozen=True, slots=True)
class HeadSeal:
    """Seals heads with HMAC-SHA256 over size (8 bytes, big-endian), root and frontier."""

    key: bytes = field(repr=False)
    _keyed: hmac.HMAC = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Key the MAC once."""
        object.__setattr__(self, "_keyed", hmac.new(self.key, _CONTEXT, "sha256"))

    def mac(self, size: int, root: bytes, frontier: bytes) -> bytes:
        """Return the 32 bytes that authenticate a head."""
        # A copy, and not hmac.digest(): that gives up the interpreter lock for a microsecond's work,
        # and the writer's thread would have to win it back from a busy event loop at every commit.
        keyed = self._keyed.copy()
        keyed.update(size.to_bytes(8, "big") + root + frontier)
        return keyed.digest()

    def check(self, size: int, root: bytes, frontier: bytes, mac: bytes) -> None:
        """Raise HeadForged unless `mac` is this seal's for the head."""
        if not hmac.compare_digest(self.mac(size, root, frontier), mac):
            message = f"the head row of the log (size {size}) does not carry this daemon's MAC"
            raise HeadForged(message)
