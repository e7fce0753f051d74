"""The entries of the audit log: what each kind holds and its exact bytes.

An entry is compact UTF-8 JSON with sorted keys. The fields of every struct here stand in sorted
order, so that the encoder writes them so; a test holds that against `json.dumps(sort_keys=True)`.
Fields at their default are left out. The format is docs/audit-format.md; whoever verifies uses
`greatseal.receipt`, never this module.

Hexadecimal is lower case; `ts` is RFC 3339 in UTC with microseconds; `inst` is the boot's UUID.

    entry = encode(Denied(...))        # b'{"cli":{...},"inst":"…", … }', at most 16 KiB
"""

from __future__ import annotations

import base64
import secrets
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


class IntentForm:
    """Intents that differ in digest, request id and time only: the same bytes as `encode`, ten times as fast.

    Only fields whose syntax is known go into the blanks (hexadecimal, a UUID, a time of `timestamp`):
    they need no escaping, so that filling in is no way to inject JSON.
    """

    def __init__(self, intent: Intent) -> None:
        """Take everything but `req`, `tbs` and `ts` from `intent`.

        Raises:
            RequestTooLarge: the entries would be over 16 KiB.
        """
        self._form = _form(msgspec.structs.replace(intent, req=_BLANKS[0], tbs=_BLANKS[1], ts=_BLANKS[2]))

    def fill(self, request_id: str, tbs: bytes, ts: str) -> bytes:
        """Return the exact bytes of one intent. `tbs` is the digest itself."""
        return self._form % (request_id.encode(), tbs.hex().encode(), ts.encode())


class OutcomeForm:
    """Outcomes `signed` of one key, as `IntentForm`: they differ in duration, sequence, intent, signature, digest and time."""

    def __init__(self, outcome: Outcome) -> None:
        """Take everything but those from `outcome`, whose `hsm` must be set."""
        blank = msgspec.structs.replace(
            outcome,
            dur_us=_BLANK_NUMBERS[0],
            hsm=msgspec.structs.replace(outcome.hsm, seq=_BLANK_NUMBERS[1]) if outcome.hsm else None,
            intent=IntentRef(index=_BLANK_NUMBERS[2], leaf_hash=_BLANKS[0]),
            sig=_BLANKS[1],
            tbs=_BLANKS[2],
            ts=_BLANKS[3],
        )
        self._form = _form(blank)

    def fill(
        self, dur_us: int, seq: int, intent: int, leaf_hash: bytes, signature: bytes, tbs: bytes, ts: str
    ) -> bytes:
        """Return the exact bytes of one outcome. `leaf_hash`, `signature` and `tbs` are raw; `seq` is above 0."""
        return self._form % (
            dur_us,
            seq,
            intent,
            leaf_hash.hex().encode(),
            base64.b64encode(signature),
            tbs.hex().encode(),
            ts.encode(),
        )


_SPARE_BYTES: Final = 512
"""What the blanks of a form take at most when filled in."""

# Random, so that no text that a caller chose can look like a blank.
_BLANKS: Final = tuple(f"{secrets.token_hex(12)}{number}" for number in range(4))
_BLANK_NUMBERS: Final = tuple((1 << 62) + 4 * secrets.randbits(58) + number for number in range(3))


def _form(entry: Entry) -> bytes:
    data = encode(entry)
    if len(data) + _SPARE_BYTES > MAX_ENTRY_BYTES:
        message = f"the audit entries of this request would take more than {MAX_ENTRY_BYTES} bytes: shorten its names"
        raise RequestTooLarge(message)
    data = data.replace(b"%", b"%%")
    for blank in _BLANKS:
        data = data.replace(blank.encode(), b"%b")
    for number in _BLANK_NUMBERS:
        data = data.replace(str(number).encode(), b"%d")
    return data


def timestamp(unix_seconds: float) -> str:
    """RFC 3339 in UTC with microseconds."""
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="microseconds")[:-6] + "Z"
