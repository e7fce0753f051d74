"""Keys as the rules see them: names, algorithms, references to objects in tokens.

`keys/release` is a key; `keys/release/versions/1` is one of its versions, an immutable key pair.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from greatseal.algorithms import Algorithm
from greatseald.domain.errors import ArgumentInvalid

_NAME: Final = re.compile(r"keys/([a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?)(?:/versions/([1-9][0-9]{0,8}))?")


@dataclass(frozen=True, slots=True)
class KeySettings:
    """What the configuration says of a key.

    `uri` is an RFC 7512 reference to the object within `token`; `algorithms` has at least one, the
    first being the default; `predicate_types` narrows the in-toto predicates it signs, and empty
    means any; `certificate_chain` holds DER certificates, leaf first; `witnesses` is how many must have
    cosigned a checkpoint over a signature before it is released.
    """

    name: str
    token: str
    uri: str
    algorithms: tuple[Algorithm, ...]
    predicate_types: tuple[str, ...] = ()
    certificate_chain: tuple[bytes, ...] = ()
    witnesses: int = 0

    @property
    def resource_name(self) -> str:
        """`keys/{key}`."""
        return f"keys/{self.name}"

    @property
    def version_name(self) -> str:
        """`keys/{key}/versions/1`: a configured key has exactly one version."""
        return f"keys/{self.name}/versions/1"


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
