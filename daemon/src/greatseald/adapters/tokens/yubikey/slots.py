"""How the configuration names a key in a YubiKey: by its PIV slot.

    parse_slot("piv:slot=9c")      # 0x9c

Slots are those of NIST SP 800-73-4: 9a, 9c, 9d, 9e and the twenty retired ones, 82 to 95. F9, whose
key attests the others, signs nothing else.
"""

from __future__ import annotations

import re
from typing import Final

SCHEME: Final = "piv:"
KEY_SLOTS: Final = (0x9A, 0x9C, 0x9D, 0x9E, *range(0x82, 0x96))
_SLOT: Final = re.compile(r"(?:piv:)?slot=(?:0x)?([0-9a-f]{2})", re.IGNORECASE)


class SlotInvalid(ValueError):
    """The text names no slot that a key can be in; the message says what to write."""


def parse_slot(text: str) -> int:
    """The number of the slot that `piv:slot=9c` means.

    Raises:
        SlotInvalid: it means none.
    """
    match = _SLOT.fullmatch(text) if text.lower().startswith(SCHEME) else None
    if match is None:
        message = f"{text[:80]!r} names no key of a YubiKey: write piv:slot=9a, 9c, 9d, 9e, or 82 to 95"
        raise SlotInvalid(message)
    return check_slot(int(match[1], 16))


def check_slot(slot: int) -> int:
    """The slot, if a signing key can be in it.

    Raises:
        SlotInvalid: it is F9, or none at all.
    """
    if slot == 0xF9:
        message = "slot f9 holds the key that attests the others, and signs nothing else"
        raise SlotInvalid(message)
    if slot not in KEY_SLOTS:
        message = f"{slot:02x} is no slot for a key: 9a, 9c, 9d, 9e, or 82 to 95"
        raise SlotInvalid(message)
    return slot
