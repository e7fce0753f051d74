"""RFC 7512 URIs: how the configuration names tokens and the objects in them.

    parse_uri("pkcs11:token=greatseal;object=release")   # PkcsUri(token="greatseal", object="release", …)

Only attributes that this daemon honours are accepted: one that was silently ignored would make a
reference mean more than its author wrote. PINs and module paths never stand in a URI.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

MAX_URI_LENGTH: Final = 2048
_SCHEME: Final = "pkcs11:"
# RFC 7512 section 2.3: pk11-pchar without percent escapes; the query part allows "/" and "?" as well, which we never need.
_PLAIN: Final = re.compile(r"[A-Za-z0-9\-._~:\[\]@!$'()*+,=&]*")
_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_TEXT_ATTRIBUTES: Final = ("token", "serial", "manufacturer", "model", "object", "type")
_PIN_ATTRIBUTES: Final = ("pin-value", "pin-source")
_MODULE_ATTRIBUTES: Final = ("module-path", "module-name")
_TYPES: Final = ("private", "public", "cert", "secret-key", "data")


class UriInvalid(ValueError):
    """The text is no PKCS#11 URI that this daemon can honour; the message says what and what to write."""


@dataclass(frozen=True, slots=True)
class PkcsUri:
    """The attributes of a PKCS#11 URI; None where the URI does not name one.

    `id` is CKA_ID as bytes; `slot_id` a slot number; the rest are UTF-8 text.
    """

    token: str | None = None
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    slot_id: int | None = None
    object: str | None = None
    id: bytes | None = None
    type: str | None = None

    @property
    def names_token(self) -> bool:
        """Whether any attribute narrows the token."""
        return any(
            value is not None for value in (self.token, self.serial, self.manufacturer, self.model, self.slot_id)
        )

    @property
    def names_object(self) -> bool:
        """Whether the URI names an object by label or id."""
        return self.object is not None or self.id is not None

    def __str__(self) -> str:
        """The URI again, for messages: text as quoted for URIs, ids as hexadecimal escapes."""
        named = [
            (name, quote(value, safe="")) for name in _TEXT_ATTRIBUTES if (value := getattr(self, name)) is not None
        ]
        if self.slot_id is not None:
            named.append(("slot-id", str(self.slot_id)))
        if self.id is not None:
            named.append(("id", "".join(f"%{byte:02x}" for byte in self.id)))
        return _SCHEME + ";".join(f"{name}={value}" for name, value in named)


def parse_uri(text: str) -> PkcsUri:
    """Parse an RFC 7512 URI.

    Raises:
        UriInvalid: malformed, an attribute twice, one that is not honoured, or a PIN in it.
    """
    if len(text) > MAX_URI_LENGTH:
        message = f"PKCS#11 URI of {len(text)} characters: at most {MAX_URI_LENGTH} are accepted"
        raise UriInvalid(message)
    if not text.lower().startswith(_SCHEME):
        message = "not a PKCS#11 URI: it starts with pkcs11: as in pkcs11:token=NAME or pkcs11:object=LABEL"
        raise UriInvalid(message)
    path, _, query = text[len(_SCHEME) :].partition("?")
    for part in query.split("&") if query else ():
        _refuse_query(part.partition("=")[0])
    found: dict[str, bytes] = {}
    for part in path.split(";") if path else ():
        name, separator, value = part.partition("=")
        if name in _PIN_ATTRIBUTES or name in _MODULE_ATTRIBUTES:
            _refuse_query(name)
        if not separator or name not in (*_TEXT_ATTRIBUTES, "id", "slot-id"):
            message = (
                f"PKCS#11 URI: attribute {name[:40]!r} is not one of "
                f"{', '.join((*_TEXT_ATTRIBUTES, 'id', 'slot-id'))}, each as name=value, separated by ';'"
            )
            raise UriInvalid(message)
        if name in found:
            message = f"PKCS#11 URI: attribute {name} stands twice"
            raise UriInvalid(message)
        found[name] = _decode(name, value)
    texts = {name: _text(name, found[name]) for name in _TEXT_ATTRIBUTES if name in found}
    if texts.get("type", "private") not in _TYPES:
        message = f"PKCS#11 URI: type is one of {', '.join(_TYPES)}"
        raise UriInvalid(message)
    return PkcsUri(slot_id=_slot_id(found.get("slot-id")), id=found.get("id"), **texts)


def _refuse_query(name: str) -> None:
    """Raise for a query attribute: none is honoured, and a PIN is never repeated in the message."""
    if name in _PIN_ATTRIBUTES:
        message = f"PKCS#11 URI: {name} is refused, PINs never stand in a URI: use pin_file or pin_credential"
    elif name in _MODULE_ATTRIBUTES:
        message = f"PKCS#11 URI: {name} is refused: the configuration names the module with `module`"
    else:
        message = f"PKCS#11 URI: query attribute {name[:40]!r} is not honoured"
    raise UriInvalid(message)


def _decode(name: str, value: str) -> bytes:
    """Percent-decode one value; every character that is not escaped has to be one RFC 7512 allows bare."""
    out = bytearray()
    position = 0
    while position < len(value):
        if value[position] == "%":
            if not _ESCAPE.match(value, position):
                message = f"PKCS#11 URI: attribute {name} has a '%' that two hexadecimal digits do not follow"
                raise UriInvalid(message)
            out.append(int(value[position + 1 : position + 3], 16))
            position += 3
            continue
        if not _PLAIN.fullmatch(value[position]):
            message = f"PKCS#11 URI: attribute {name} holds {value[position]!r}, which has to be percent-encoded"
            raise UriInvalid(message)
        out += value[position].encode("ascii")
        position += 1
    return bytes(out)


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"PKCS#11 URI: attribute {name} is not UTF-8 when decoded"
        raise UriInvalid(message) from error


def _slot_id(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not re.fullmatch(rb"[0-9]{1,20}", value):
        message = "PKCS#11 URI: slot-id is a decimal number"
        raise UriInvalid(message)
    return int(value)
