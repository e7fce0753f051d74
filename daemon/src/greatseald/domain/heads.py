"""Tree heads under a seal, so that a row we did not write is never extended.

Whoever can write to the database can write a head row; only the daemon can seal one. The key is 32
bytes that the database never sees.

A head has room for where the newest entry stands that gives authority, so that no database can hold one
back; until keys are managed through the API there is none. Heads of before that have another form, which is read for ever and never
written again.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import Final

MAC_KEY_BYTES: Final = 32
NO_AUTHORITY: Final = -1
"""In place of an index: the log has no entry that gives authority yet."""
_CONTEXT_OLD: Final = b"greatseal head v1\n"
_CONTEXT: Final = b"greatseal head v2\n"


class HeadForged(Exception):
    """The head row's MAC is wrong: it was edited, or sealed with another key."""


@dataclass(frozen=True, slots=True)
class HeadSeal:
    """Seals heads with HMAC-SHA256 over size and authority (8 bytes each, big-endian, authority plus one), root and frontier.

    Where the authority is None the head is of the old form: size, root and frontier.
    """

    key: bytes = field(repr=False)
    _keyed: hmac.HMAC = field(init=False, repr=False, compare=False)
    _keyed_old: hmac.HMAC = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Key the MACs once."""
        object.__setattr__(self, "_keyed_old", hmac.new(self.key, _CONTEXT_OLD, "sha256"))
        object.__setattr__(self, "_keyed", hmac.new(self.key, _CONTEXT, "sha256"))

    def mac(self, size: int, root: bytes, frontier: bytes, authority: int | None = None) -> bytes:
        """Return the 32 bytes that authenticate a head."""
        # A copy, and not hmac.digest(): that gives up the interpreter lock for a microsecond's work,
        # and the writer's thread would have to win it back from a busy event loop at every commit.
        if authority is None:
            keyed = self._keyed_old.copy()
            keyed.update(size.to_bytes(8, "big") + root + frontier)
        else:
            keyed = self._keyed.copy()
            keyed.update(size.to_bytes(8, "big") + (authority + 1).to_bytes(8, "big") + root + frontier)
        return keyed.digest()

    def check(self, size: int, root: bytes, frontier: bytes, mac: bytes, authority: int | None = None) -> None:
        """Raise HeadForged unless `mac` is this seal's for the head."""
        if authority is not None and not NO_AUTHORITY <= authority < size:
            message = f"the head row of the log (size {size}) names entry {authority}, which it does not have"
            raise HeadForged(message)
        if not hmac.compare_digest(self.mac(size, root, frontier, authority), mac):
            message = f"the head row of the log (size {size}) does not carry this daemon's MAC"
            raise HeadForged(message)
