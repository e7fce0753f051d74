"""Which entries of the log are asked for, and whether an entry is one of them. Pure.

An outcome is judged together with its intent, for it names neither caller nor model. Entries are
bytes that the store gave back: one that cannot be read has no facts, and no condition holds for it.

    query = EntryQuery(caller="spiffe://greatseal.local/pipeline", results=frozenset({"failed"}))
    query.matches(read(outcome), read(intent))
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


class _Client(msgspec.Struct, gc=False):
    id: str = ""


class _Key(msgspec.Struct, gc=False):
    name: str = ""


class _Subject(msgspec.Struct, gc=False):
    digest: str = ""
    name: str = ""


class _IntentRef(msgspec.Struct, gc=False):
    index: int = -1


class Facts(msgspec.Struct, gc=False):
    """What an entry says of the things that can be asked for; as in `greatseald.domain.entries`."""

    t: str = ""
    ts: str = ""
    cli: _Client | None = None
    key: _Key | None = None
    subj: _Subject | None = None
    tbs: str = ""
    mdig: str = ""
    res: str = ""
    intent: _IntentRef | None = None


_decoder = msgspec.json.Decoder(Facts)
_NOTHING = Facts()


def read(data: bytes) -> Facts:
    """Return an entry's facts; none at all where it is not readable."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NOTHING


@dataclass(frozen=True, slots=True)
class EntryQuery:
    """Conditions that all hold; an empty one always does.

    Attributes:
        types: intent, outcome, denied, admin.
        results: signed, failed, unknown, aborted (of outcomes), denied.
        key: `keys/{key}`; this and the next two are prefixes where they end in an asterisk.
        caller: an identity.
        subject: the first subject's name.
        digest: the first hexadecimal digits, lower case, of `tbs`, `mdig` or the first subject's digest.
        since: as the entries' `ts`; at this time or later.
        until: before this time.
    """

    types: frozenset[str] = frozenset()
    results: frozenset[str] = frozenset()
    key: str = ""
    caller: str = ""
    subject: str = ""
    digest: str = ""
    since: str = ""
    until: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether every entry matches."""
        return self == _EVERYTHING

    @property
    def needs_intent(self) -> bool:
        """Whether an outcome cannot be judged without its intent."""
        return bool(self.key or self.caller or self.subject or self.digest)

    def may_match(self, facts: Facts) -> bool:
        """Whether the conditions hold that an entry answers alone."""
        if self.types and facts.t not in self.types:
            return False
        if self.results and (facts.res if facts.t == "outcome" else facts.t) not in self.results:
            return False
        # Text in one form of RFC 3339 sorts as the times do.
        return (not self.since or facts.ts >= self.since) and (not self.until or facts.ts < self.until)

    def matches(self, facts: Facts, intent: Facts | None) -> bool:
        """Whether all conditions hold. `intent` is an outcome's own, None for other entries."""
        if not self.may_match(facts):
            return False
        about = facts if intent is None else intent
        return (
            _like(self.key, about.key.name if about.key else "")
            and _like(self.caller, about.cli.id if about.cli else "")
            and _like(self.subject, about.subj.name if about.subj else "")
            and (
                not self.digest
                or facts.tbs.startswith(self.digest)
                or about.mdig.startswith(self.digest)
                or (about.subj is not None and about.subj.digest.startswith(self.digest))
            )
        )


def _like(pattern: str, text: str) -> bool:
    if pattern.endswith("*"):
        return bool(text) and text.startswith(pattern[:-1])
    return not pattern or text == pattern


_EVERYTHING = EntryQuery()
