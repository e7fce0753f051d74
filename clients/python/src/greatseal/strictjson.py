"""JSON from strangers, read strictly and within bounds.

Python's own decoder lets pass what another reader of the same bytes may understand otherwise:
duplicate keys, NaN and infinities, halves of surrogate pairs. Here all of these are errors that say
where, and bytes, values and depth are bounded before and while memory is spent.

    value = decode(data, max_bytes=1 << 20, what="the receipt")    # raises JSONInvalid, with .path
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

from greatseal.errors import VerificationFailed

MAX_DEPTH: Final = 64
MAX_VALUES: Final = 600_000
"""Most commas, brackets and braces in the text: an upper bound on its values, and so on memory."""

_MAX_PATH_CHARS: Final = 200


class JSONInvalid(VerificationFailed):
    """The bytes are not JSON as it should be. `path` says where, as in `predicate.resources[3].name`."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.problem = message
        self.path = path


class _Repeated(dict[str, Any]):
    """An object in which `key` stood twice; the search for the path finds it again."""

    key = ""


class _SuspectError(Exception):
    """The text holds something that is refused; where, only the search knows."""


def decode(data: bytes, *, max_bytes: int, what: str) -> Any:
    """Return the value of a JSON text in UTF-8. Depth is bounded by recursion only: see `check_tree`.

    Raises:
        JSONInvalid: over `max_bytes` or 600,000 values, not UTF-8, not JSON, an object with a key
            twice, a number that is infinite or absurdly long, or a text that is not Unicode.
    """
    if len(data) > max_bytes:
        raise JSONInvalid(f"{what} of {len(data)} bytes is over the limit of {max_bytes}")
    if len(data) > MAX_VALUES and data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_VALUES:
        raise JSONInvalid(f"{what} may hold more than {MAX_VALUES} values")
    try:
        text = data.decode()
        try:
            value = _refusing.decode(text)
        except _SuspectError:
            value = _marking.decode(text)
            check_tree(value, "", 1)
    except UnicodeDecodeError as error:
        raise JSONInvalid(f"{what} is not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise JSONInvalid(f"{what} is nested deeper than {MAX_DEPTH} levels") from error
    except json.JSONDecodeError as error:
        raise JSONInvalid(f"{what} is not JSON: {error.msg} at character {error.pos}") from error
    except ValueError as error:
        raise JSONInvalid(f"{what} holds a number that is too long") from error
    if b"\\u" in data:  # only an escape can write half of a surrogate pair
        check_tree(value, "", 1)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _SuspectError
    return value


def _marked_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    repeated = _Repeated(value)
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            repeated.key = key
            break
        seen.add(key)
    return repeated


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _SuspectError
    return value


# The first decoder stops at what is refused; the second lets it pass, marked, so that its path can be told.
_refusing: Final = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_number)
_marking: Final = json.JSONDecoder(object_pairs_hook=_marked_object)


def check_tree(value: object, path: str, depth: int) -> None:
    """Return if a decoded value, which stands at `path` and `depth`, has none of the faults above and at most 64 levels.

    Raises:
        JSONInvalid: it has; its path is that of the fault.
    """
    waiting: list[tuple[object, str, int]] = [(value, path, depth)]
    while waiting:
        item, where, level = waiting.pop()
        if isinstance(item, str):
            _check_text(item, where)
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise JSONInvalid("is not a finite number", printable(where))
        elif isinstance(item, (dict, list)):
            if level > MAX_DEPTH:
                raise JSONInvalid(f"is nested deeper than {MAX_DEPTH} levels", printable(where))
            if isinstance(item, _Repeated):
                raise JSONInvalid(f"the key {item.key[:80]!r} stands there twice", printable(where))
            if isinstance(item, list):
                waiting.extend((each, f"{where}[{place}]", level + 1) for place, each in enumerate(item))
            else:
                for key, each in item.items():
                    _check_text(key, where)
                    waiting.append((each, f"{where}.{key[:80]}" if where else key[:80], level + 1))


def printable(path: str) -> str:
    """A path as it may stand in a message: bounded, and Unicode whatever the keys in it are."""
    return path[:_MAX_PATH_CHARS].encode(errors="replace").decode()


def _check_text(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise JSONInvalid("holds a text that is not Unicode (half of a surrogate pair)", printable(path)) from error
