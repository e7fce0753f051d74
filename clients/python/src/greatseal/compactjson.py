"""JSON as encoders write it, decoded as strictly as `strictjson` does and several times faster.

Where a decoded value, encoded again, gives the same bytes, the bytes had no key twice, no NaN, no
number out of range, no half of a surrogate pair and no second spelling of anything: each of them would
come out otherwise, or not at all. All other texts are left to `strictjson`, which reads them or says
what is wrong. For whoever reads many: a log's entries are compact.

    value = decode(data, max_bytes=16384, what="the entry")       # raises JSONInvalid, as strictjson.decode
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from greatseal import strictjson

_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode


def decode(data: bytes, *, max_bytes: int, what: str) -> Any:
    """Return the value of a JSON text in UTF-8, as `strictjson.decode` does.

    Raises:
        JSONInvalid: what that raises.
    """
    if len(data) <= max_bytes:
        try:
            value = _decode(data)
            if _encode(value) == data:
                return value
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # said better, or found to be right, by the other
    return strictjson.decode(data, max_bytes=max_bytes, what=what)
