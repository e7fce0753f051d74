"""Foreign text on its way to a person: what a terminal would obey is taken out, what is long is cut."""

from __future__ import annotations

import re
from typing import Final

MAX_CHARS: Final = 2000

# All controls but tab and newline, the C1 range, and what changes the direction or the lines of text.
_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def clean(text: str, limit: int = MAX_CHARS) -> str:
    """Return text without control and direction-changing characters, at most `limit` characters."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text[:limit])


def one_line(text: str, limit: int = MAX_CHARS) -> str:
    """Return text as `clean` does, on one line."""
    return clean(text, limit).replace("\n", " ").replace("\t", " ")
