"""Objects in a PKCS#11 token: what their attributes say, and which private key a reference means.

Works in a python-pkcs11 session (`opened` below) of a token host. What a module leaves out, pads or
repeats is tolerated here; a reference that fits several keys is an error that lists them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pkcs11
from pkcs11 import Attribute, ObjectClass

from greatseald.adapters.tokens.device import KeyUnusable
from greatseald.adapters.tokens.uris import PkcsUri, UriInvalid, parse_uri

if TYPE_CHECKING:
    from greatseald.adapters.tokens.pkcs11 import SlotToken

MAX_LISTED: Final = 20
"""How many tokens or objects an error lists."""


def attribute(item: Any, kind: Attribute) -> Any:
    """Return an attribute's value, None where the module has none: missing means unknown, not false."""
    try:
        return item[kind]
    except (
        pkcs11.AttributeTypeInvalid,
        pkcs11.AttributeSensitive,
        pkcs11.AttributeValueInvalid,
        pkcs11.FunctionFailed,
    ):
        return None
    except (NotImplementedError, UnicodeDecodeError, ValueError):  # python-pkcs11 cannot unpack what the module gave
        return None


def belongs(item: Any, identity: bytes | None) -> bool:
    """Whether an object can be of the private key with this id; a label alone joins only objects without one."""
    other = attribute(item, Attribute.ID)
    return not identity or not other or other == identity


def find_private_key(opened: Any, reference: str, token: SlotToken | None) -> Any:
    """Return the one private key of `token` that an RFC 7512 reference means.

    Raises:
        KeyUnusable: the reference is none, names another token, or fits no key or several; with what there is.
        pkcs11.PKCS11Error: the search failed.
    """
    try:
        uri = parse_uri(reference)
    except UriInvalid as error:
        raise KeyUnusable(str(error)) from error
    if uri.type not in (None, "private"):
        message = f"{reference} means no private key: leave `type` out, or write type=private"
        raise KeyUnusable(message)
    if token is not None and not token.fits(uri):
        message = f"{reference} names another token than the key's: this one is {token}"
        raise KeyUnusable(message)
    found = _search(opened, uri)
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(_describe(key) for key in found[:MAX_LISTED])
        message = f"{len(found)} private keys fit {reference}: {listed}: name the key's id as well (id=%01)"
        raise KeyUnusable(message)
    where = token.label if token is not None else ""
    message = f"no private key fits {reference} in token {where}; objects: {_present(opened)}"
    raise KeyUnusable(message)


def _search(opened: Any, uri: PkcsUri) -> list[Any]:
    """Private keys that fit a reference; labels are compared without padding where an exact search finds none."""
    template: dict[Attribute, Any] = {Attribute.CLASS: ObjectClass.PRIVATE_KEY}
    if uri.id is not None:
        template[Attribute.ID] = uri.id
    if uri.object is None:
        return list(opened.get_objects(template))
    found = list(opened.get_objects({**template, Attribute.LABEL: uri.object}))
    if found:
        return found
    found = [key for key in opened.get_objects(template) if _label(key) == uri.object]
    return found or _search_by_public_label(opened, template, uri.object)


def _search_by_public_label(opened: Any, template: dict[Attribute, Any], label: str) -> list[Any]:
    """Private keys whose certificate or public key has the label: some modules (NSS) leave it off the private key."""
    ids: list[bytes] = []
    for kind in (ObjectClass.CERTIFICATE, ObjectClass.PUBLIC_KEY):
        for item in opened.get_objects({Attribute.CLASS: kind, Attribute.LABEL: label}):
            identity = attribute(item, Attribute.ID)
            if identity and identity not in ids:
                ids.append(identity)
    return [
        key
        for identity in ids
        if template.get(Attribute.ID, identity) == identity
        for key in opened.get_objects({**template, Attribute.ID: identity})
        if not _label(key)
    ]


def _present(opened: Any) -> str:
    """The token's objects for people.

    Class by class: without one, modules also return objects of their own classes, which python-pkcs11 cannot name.
    """
    present = [
        _describe(item)
        for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY, ObjectClass.CERTIFICATE)
        for item in opened.get_objects({Attribute.CLASS: kind})
    ]
    more = f" and {len(present) - MAX_LISTED} more" if len(present) > MAX_LISTED else ""
    return (", ".join(present[:MAX_LISTED]) or "none") + more


def _label(item: Any) -> str:
    return str(attribute(item, Attribute.LABEL) or "").strip(" \0")


def _describe(item: Any) -> str:
    identity = attribute(item, Attribute.ID) or b""
    kind = attribute(item, Attribute.CLASS)
    return f"{_label(item)!r} (id={identity.hex() or 'none'}, {getattr(kind, 'name', str(kind)).lower()})"
