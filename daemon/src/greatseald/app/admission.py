"""From a request to something that can be signed: authorise, validate, and build the exact bytes.

The order is deliberate. What a caller may not do is refused before its payload is read and before it
can learn whether a key exists; what a token cannot do now is only noted, because a request that
was answered before is answered again without it.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from greatseal.dsse import pae
from greatseal.statement import parse_statement
from greatseal.verification import StatementInvalid as StatementMalformed
from greatseald.domain import entries as entry_format
from greatseald.domain.errors import (
    ArgumentInvalid,
    DigestInvalid,
    GreatsealError,
    PayloadTypeUnknown,
    PredicateTypeNotAllowed,
    StatementInvalid,
)
from greatseald.domain.keys import parse_key_name
from greatseald.domain.policy import SIGN, SIGN_BLIND
from greatseald.ports.store import RequestKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greatseal.algorithms import Algorithm
    from greatseal.statement import Statement
    from greatseald.app.access import Access
    from greatseald.app.keys import KeyRing, SigningKey
    from greatseald.domain.identity import Caller

IN_TOTO: Final = "application/vnd.in-toto+json"
"""The payload type that the daemon can read (in-toto Attestation Framework, Envelope layer)."""

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_MAX_CLAIM: Final = 256
_PARSE_ASIDE: Final = 32 * 1024
"""Statements above so many bytes are parsed off the event loop: 10,000 files take tens of milliseconds."""


@dataclass(frozen=True, slots=True)
class DigestRequest:
    """A digest to sign blind. `hash_name` is sha256, sha384 or sha512; claims are logged, never checked."""

    key: str
    request_id: str
    hash_name: str
    digest: bytes
    algorithm: Algorithm | None = None
    claimed_subject: str = ""
    claimed_payload_type: str = ""


@dataclass(frozen=True, slots=True)
class StatementRequest:
    """A payload to sign under DSSE."""

    key: str
    request_id: str
    payload_type: str
    payload: bytes
    algorithm: Algorithm | None = None


SignRequest = DigestRequest | StatementRequest


@dataclass(slots=True, eq=False)
class Admitted:
    """A request that may be signed: the exact digest `tbs`, and what its intent says.

    `unready` is why the key could not sign at the moment it was admitted.
    """

    position: int
    key: SigningKey
    algorithm: Algorithm
    tbs: bytes
    request_id: str
    scope: RequestKey
    request_hash: bytes
    policy: entry_format.Policy
    blind: bool
    payload_type: str
    payload_sha256: str = ""
    predicate_type: str = ""
    subject: entry_format.Subject | None = None
    unready: GreatsealError | None = None
    attempt: int = field(default=1)


class Admission:
    """Admits requests of one front."""

    def __init__(self, access: Access, keys: KeyRing) -> None:
        self._access = access
        self._keys = keys

    async def admit(
        self, caller: Caller, items: Sequence[SignRequest], now: float
    ) -> tuple[list[Admitted], dict[int, GreatsealError]]:
        """Return what may be signed, and why the rest may not by position."""
        admitted: list[Admitted] = []
        refused: dict[int, GreatsealError] = {}
        for position, item in enumerate(items):
            try:
                admitted.append(await self._admit(caller, position, item, now))
            except GreatsealError as error:
                refused[position] = error
        return admitted, refused

    async def _admit(self, caller: Caller, position: int, item: SignRequest, now: float) -> Admitted:
        scope = RequestKey(_request_id(item.request_id), caller.request_scope, 1)
        name, version = parse_key_name(item.key)
        if isinstance(item, DigestRequest):
            decision = self._access.decide(caller, SIGN_BLIND, name)
            key = self._keys.find(name, version)
            algorithm = key.choose(item.algorithm, now)
            _check_digest(item, algorithm)
            tbs = item.digest
            ptype = item.claimed_payload_type
            result = Admitted(
                position, key, algorithm, tbs, item.request_id, scope, b"", decision.policy, True, ptype,
                subject=_claimed(item),
            )  # fmt: skip
        else:
            if item.payload_type != IN_TOTO:
                message = f"the daemon signs only payloads that it can read, of type {IN_TOTO}, not {item.payload_type[:80]!r}"
                raise PayloadTypeUnknown(message, payload_type=item.payload_type[:80])
            decision = self._access.decide(caller, SIGN, name, item.payload_type)
            key = self._keys.find(name, version)
            algorithm = key.choose(item.algorithm, now)
            statement = await _read_statement(item.payload)
            _check_predicate(key, statement)
            tbs = hashlib.new(algorithm.hash_name, pae(item.payload_type, item.payload)).digest()
            result = Admitted(
                position, key, algorithm, tbs, item.request_id, scope, b"", decision.policy, False, item.payload_type,
                payload_sha256=hashlib.sha256(item.payload).hexdigest(),
                predicate_type=statement.predicate_type,
                subject=_subject(statement),
            )  # fmt: skip
        result.request_hash = _request_hash(item, result)
        result.unready = key.unready()
        return result


def action_of(item: SignRequest) -> str:
    """Return the action that a request needs."""
    return SIGN_BLIND if isinstance(item, DigestRequest) else SIGN


def _request_id(text: str) -> bytes:
    if _UUID.fullmatch(text) is None:
        message = f"request_id must be a UUID such as 0190c7a8-6b5e-7cc3-98c4-dc0c0c07398f, not {text[:60]!r}"
        raise ArgumentInvalid(message, field="request_id")
    return bytes.fromhex(text.replace("-", ""))


def _check_digest(item: DigestRequest, algorithm: Algorithm) -> None:
    if item.hash_name != algorithm.hash_name:
        message = (
            f"{algorithm.value} signs a {algorithm.hash_name} digest, and the request has {item.hash_name or 'none'}"
        )
        raise DigestInvalid(message, field="digest")
    if len(item.digest) != algorithm.digest_size:
        message = f"a {algorithm.hash_name} digest is {algorithm.digest_size} bytes long, not {len(item.digest)}"
        raise DigestInvalid(message, field="digest")
    if max(len(item.claimed_subject), len(item.claimed_payload_type)) > _MAX_CLAIM:
        message = f"claimed_subject and claimed_payload_type are at most {_MAX_CLAIM} characters long"
        raise ArgumentInvalid(message, field="claimed_subject")


async def _read_statement(payload: bytes) -> Statement:
    try:
        if len(payload) > _PARSE_ASIDE:
            return await asyncio.to_thread(parse_statement, payload)
        return parse_statement(payload)
    except StatementMalformed as error:
        message = f"the statement is not one that can be signed: {error}"
        raise StatementInvalid(message, path=error.path) from error


def _check_predicate(key: SigningKey, statement: Statement) -> None:
    allowed = key.settings.predicate_types
    if allowed and statement.predicate_type not in allowed:
        message = f"{key.settings.resource_name} does not sign the predicate type {statement.predicate_type}: its predicate_types are {', '.join(allowed)}"
        raise PredicateTypeNotAllowed(message, predicate_type=statement.predicate_type)


def _claimed(item: DigestRequest) -> entry_format.Subject | None:
    return entry_format.Subject(count=1, name=item.claimed_subject) if item.claimed_subject else None


def _subject(statement: Statement) -> entry_format.Subject:
    first = statement.subjects[0]
    return entry_format.Subject(
        count=len(statement.subjects), digest=next(iter(first.digest.values()), ""), name=first.name
    )


def _request_hash(item: SignRequest, admitted: Admitted) -> bytes:
    """What makes two requests the same: the key, the algorithm, the kind and the exact bytes to be signed."""
    parts = (action_of(item), admitted.key.name, admitted.algorithm.value, admitted.payload_type, admitted.tbs.hex())
    return hashlib.sha256("\0".join(parts).encode()).digest()
