"""Keys as the rules see them: names, versions, who holds them.

`keys/release` is a key; `keys/release/versions/1` is one of its versions, an immutable key pair. A
version is held by one token or by several: replicated partitions of an HSM hold the same pair each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from greatseal.algorithms import Algorithm
from greatseald.domain.errors import ArgumentInvalid

KEY_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
"""The bare name of a key."""

_NAME: Final = re.compile(rf"keys/({KEY_NAME.pattern})(?:/versions/([1-9][0-9]{{0,8}}))?")


class Holder(NamedTuple):
    """The object that is a key version in one token: the token's name and an RFC 7512 reference, or a YubiKey's slot."""

    token: str
    uri: str


@dataclass(frozen=True, slots=True)
class KeySettings:
    """What the configuration says of a key: its policy, and the objects that are its first version.

    `holders` are the tokens that hold one and the same key pair; `algorithms` has at least one, the
    first being the default; `predicate_types` narrows the in-toto predicates it signs, and empty
    means any; `certificate_chain` holds DER certificates, leaf first; `witnesses` is how many must have
    cosigned a checkpoint over a signature before it is released.
    """

    name: str
    holders: tuple[Holder, ...]
    algorithms: tuple[Algorithm, ...]
    predicate_types: tuple[str, ...] = ()
    certificate_chain: tuple[bytes, ...] = ()
    witnesses: int = 0

    @property
    def resource_name(self) -> str:
        """`keys/{key}`."""
        return f"keys/{self.name}"


def version_name(key: str, number: int) -> str:
    """`keys/{key}/versions/{n}`, from the bare name."""
    return f"keys/{key}/versions/{number}"


def parse_key_name(resource: str) -> tuple[str, int | None]:
    """Split `keys/{key}` or `keys/{key}/versions/{n}` into the key's name and the version.

    Raises:
        ArgumentInvalid: the text is neither.
    """
    match = _NAME.fullmatch(resource)
    if match is None:
        message = f"{resource[:80]!r} is not a key name: write keys/NAME or keys/NAME/versions/1"
        raise ArgumentInvalid(message, field="key")
    return match[1], int(match[2]) if match[2] else None
