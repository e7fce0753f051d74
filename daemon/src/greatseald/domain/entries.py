"""The entries of the audit log: what each kind holds and its exact bytes.

An entry is compact UTF-8 JSON with sorted keys. The fields of every struct here stand in sorted
order, so that the encoder writes them so; a test holds that against `json.dumps(sort_keys=True)`.
Fields at their default are left out. The format is docs/audit-format.md; whoever verifies uses
`greatseal.receipt`, never this module.

Hexadecimal is lower case; `ts` is RFC 3339 in UTC with microseconds; `inst` is the boot's UUID.

    entry = encode(Denied(...))        # b'{"cli":{...},"inst":"…", … }', at most 16 KiB
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from greatseald.domain.errors import RequestTooLarge

ENTRY_VERSION: Final = 1
MAX_ENTRY_BYTES: Final = 16 * 1024


class _Part(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Immutable, defaults left out, no reference cycles."""


class Client(_Part, frozen=True, kw_only=True):
    """The caller and its certificate."""

    cert_sha256: str
    id: str
    issuer: str
    serial: str


class KeyVersion(_Part, frozen=True, kw_only=True):
    """A key version: `keys/{key}`, its public key's SHA-256, its number."""

    name: str
    spki_sha256: str = ""
    version: int = 0


class KeyRef(_Part, frozen=True, kw_only=True):
    """The public key that an outcome is of."""

    spki_sha256: str


class Policy(_Part, frozen=True, kw_only=True):
    """What decided: the ids of the deciding rules and the SHA-256 of the whole set."""

    ids: tuple[str, ...] = ()
    set: str


class Subject(_Part, frozen=True, kw_only=True):
    """What is signed: how many subjects, the first one's digest and name."""

    count: int
    digest: str = ""
    name: str = ""


class IntentRef(_Part, frozen=True, kw_only=True):
    """The intent that an outcome closes."""

    index: int
    leaf_hash: str


class Hsm(_Part, frozen=True, kw_only=True):
    """The token that signed: firmware, the number in its host's ledger, serial number."""

    fw: str = ""
    seq: int = 0
    serial: str = ""


class Intent(_Part, frozen=True, kw_only=True):
    """Committed before the token is called.

    `tbs` is the exact digest given to the token, `mdig` the SHA-256 of the payload (absent where
    blind), `mech` the algorithm, `pred` the predicate type, `att` the attempt from 1.
    """

    att: int
    blind: bool
    cli: Client
    inst: str
    key: KeyVersion
    log: str
    mdig: str = ""
    mech: str
    peer: str
    pol: Policy
    pred: str = ""
    ptype: str = ""
    req: str
    subj: Subject | None = None
    t: str = msgspec.field(default_factory=lambda: "intent")
    tbs: str
    ts: str
    v: int = msgspec.field(default_factory=lambda: ENTRY_VERSION)


class Outcome(_Part, frozen=True, kw_only=True):
    """Committed before the signature is released; closes exactly one intent.

    `res` is signed, failed (it certainly did not sign), unknown (it may have) or aborted (it was
    never asked); `ckr` the PKCS#11 return value where there was one; `sig` base64, only where
    signed and verified; `why` a word for people where not; `dur_us` from intent to outcome.
    """

    ckr: int = 0
    dur_us: int
    hsm: Hsm | None = None
    inst: str
    intent: IntentRef
    key: KeyRef
    log: str
    res: str
    sig: str = ""
    t: str = msgspec.field(default_factory=lambda: "outcome")
    tbs: str
    ts: str
    v: int = msgspec.field(default_factory=lambda: ENTRY_VERSION)
    why: str = ""


class Denied(_Part, frozen=True, kw_only=True):
    """A caller that was known was refused. `reason` is an ErrorReason; `more` counts denials like
    this one that were not logged one by one since the last.
    """

    act: str
    cli: Client
    inst: str
    key: KeyVersion | None = None
    log: str
    mdig: str = ""
    more: int = 0
    peer: str
    pol: Policy
    ptype: str = ""
    reason: str
    req: str = ""
    t: str = msgspec.field(default_factory=lambda: "denied")
    ts: str
    v: int = msgspec.field(default_factory=lambda: ENTRY_VERSION)


class Admin(_Part, frozen=True, kw_only=True):
    """Something about the daemon itself. `what` is start, stop, reload, key, token; `info` says more."""

    info: dict[str, Any]
    inst: str
    log: str
    t: str = msgspec.field(default_factory=lambda: "admin")
    ts: str
    v: int = msgspec.field(default_factory=lambda: ENTRY_VERSION)
    what: str


Entry = Intent | Outcome | Denied | Admin

_encoder = msgspec.json.Encoder(order="sorted")
_plain_encoder = msgspec.json.Encoder()


def encode(entry: Entry) -> bytes:
    """Return the entry's exact bytes.

    Raises:
        RequestTooLarge: they are over 16 KiB.
    """
    data = (_encoder if isinstance(entry, Admin) else _plain_encoder).encode(entry)
    if len(data) > MAX_ENTRY_BYTES:
        message = f"the audit entry of this request would take {len(data)} bytes, and {MAX_ENTRY_BYTES} is the limit: shorten its names"
        raise RequestTooLarge(message)
    return data


def timestamp(unix_seconds: float) -> str:
    """RFC 3339 in UTC with microseconds."""
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
