"""Who may do what: allow and deny tables, denied by default.

    rules = Rules(allow=(AllowRule("spiffe://example.org/ci", ("sign",), ("release",), ("application/vnd.in-toto+json",)),))
    rules.decide(caller, "sign", "release", "application/vnd.in-toto+json")      # ("allow[0]",)

An empty tuple of ids is a refusal. A deny rule beats every allow rule. In `keys` and
`payload_types`, `*` stands for any; in `client` nothing does.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from greatseald.domain.identity import Caller

SIGN: Final = "sign"
SIGN_BLIND: Final = "signBlind"
READ_KEYS: Final = "readKeys"
READ_AUDIT: Final = "readAudit"
READ_TOKENS: Final = "readTokens"
DRAIN: Final = "drainToken"
QUARANTINE: Final = "quarantineToken"
RESUME: Final = "resumeToken"
REFLECT: Final = "reflect"

ACTIONS: Final = (
    SIGN,
    SIGN_BLIND,
    READ_KEYS,
    READ_AUDIT,
    READ_TOKENS,
    DRAIN,
    QUARANTINE,
    RESUME,
    REFLECT,
)
"""The actions that a rule can allow."""

ANY: Final = "*"

KEY_ACTIONS: Final = frozenset({SIGN, SIGN_BLIND, READ_KEYS})
"""Those of them that are allowed key by key."""


@dataclass(frozen=True, slots=True)
class AllowRule:
    """Allows `client`, an exact identity, the `actions` on the `keys`; `sign` only of the `payload_types`."""

    client: str
    actions: tuple[str, ...]
    keys: tuple[str, ...] = ()
    payload_types: tuple[str, ...] = ()

    def allows(self, action: str, key: str, payload_type: str) -> bool:
        """Whether this rule allows its client the action on the key with the payload type."""
        if action not in self.actions:
            return False
        if action in KEY_ACTIONS and key not in self.keys and ANY not in self.keys:
            return False
        return action != SIGN or payload_type in self.payload_types or ANY in self.payload_types


@dataclass(frozen=True, slots=True)
class DenyRule:
    """Denies every call of a certificate, by serial number or by SHA-256 of its public key (hexadecimal, lower case)."""

    serial: str = ""
    spki_sha256: str = ""

    def matches(self, caller: Caller) -> bool:
        """Whether this rule denies the caller."""
        return (self.serial != "" and self.serial == caller.serial) or (
            self.spki_sha256 != "" and self.spki_sha256 == caller.spki_sha256
        )


@dataclass(frozen=True)
class Rules:
    """The whole set, immutable: a reload replaces it."""

    allow: tuple[AllowRule, ...] = ()
    deny: tuple[DenyRule, ...] = ()
    digest: str = field(init=False)
    """SHA-256 of the set, hexadecimal, as it stands in the audit log."""

    def __post_init__(self) -> None:
        """Index the rules by client and hash the set."""
        plain = {
            "allow": [[rule.client, rule.actions, rule.keys, rule.payload_types] for rule in self.allow],
            "deny": [[rule.serial, rule.spki_sha256] for rule in self.deny],
        }
        text = json.dumps(plain, separators=(",", ":"), sort_keys=True)
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest())
        by_client: dict[str, list[tuple[str, AllowRule]]] = {}
        for number, rule in enumerate(self.allow):
            by_client.setdefault(rule.client, []).append((f"allow[{number}]", rule))
        object.__setattr__(self, "_by_client", by_client)

    def denied_by(self, caller: Caller) -> str | None:
        """Return the id of the deny rule that matches the caller's certificate, or None."""
        for number, rule in enumerate(self.deny):
            if rule.matches(caller):
                return f"deny[{number}]"
        return None

    def decide(self, caller: Caller, action: str, key: str = "", payload_type: str = "") -> tuple[str, ...]:
        """Return the ids of the rules that allow this; none means that it is denied.

        `key` is the key's bare name. The deny table is `denied_by`, asked on every call.
        """
        return tuple(name for name, rule in self.rules_of(caller) if rule.allows(action, key, payload_type))

    def rules_of(self, caller: Caller) -> list[tuple[str, AllowRule]]:
        """Return the allow rules of a caller with their ids."""
        index: dict[str, list[tuple[str, AllowRule]]] = self.__dict__["_by_client"]
        return index.get(caller.id, [])
