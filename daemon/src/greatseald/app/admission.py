"""From a request to something that can be signed: authorise, validate, and build the exact bytes.

The order is deliberate. What a caller may not do is refused before its payload is read and before it
can learn whether a key exists; what a token cannot do now is only noted, because a request that
was answered before is answered again without it.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass
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
    from greatseald.app.versions import SigningVersion
    from greatseald.domain.identity import Caller

IN_TOTO: Final = "application/vnd.in-toto+json"
"""The payload type that the daemon can read (in-toto Attestation Framework, Envelope layer)."""

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_MAX_CLAIM: Final = 256
_PARSE_ASIDE: Final = 32 * 1024
"""Statements above so many bytes are parsed off the event loop: 10,000 files take tens of milliseconds."""


@dataclass(slots=True)
class DigestRequest:
    """A digest to sign blind. `hash_name` is sha256, sha384 or sha512; claims are logged, never checked."""

    key: str
    request_id: str
    hash_name: str
    digest: bytes
    algorithm: Algorithm | None = None
    claimed_subject: str = ""
    claimed_payload_type: str = ""


@dataclass(slots=True)
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

    `version` is the key version that will sign, `pinned` its number where the caller named it,
    `witnesses` how many must have cosigned before it is released.
    `message` is what is signed where that is no digest (Ed25519); `tbs` is then its SHA-256.

    `unready` is why the version could not sign at the moment it was admitted.
    """

    position: int
    version: SigningVersion
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
    message: bytes = b""
    pinned: int | None = None
    witnesses: int = 0

    @property
    def signed(self) -> bytes:
        """The bytes that the token signs, and that its signature is verified over."""
        return self.message or self.tbs

    @property
    def attempt(self) -> int:
        """Which attempt at this request it is, from 1."""
        return self.scope.attempt

    def open_attempt(self, number: int) -> None:
        """Make it the next attempt, after one that was not signed."""
        self.scope = self.scope._replace(attempt=number)


@dataclass(slots=True, eq=False)
class _Way:
    """What the items of one call share that want the same of the same key: it is decided once."""

    key: SigningKey
    version: SigningVersion
    algorithm: Algorithm
    policy: entry_format.Policy
    unready: GreatsealError | None
    hash_prefix: bytes
    pinned: int | None


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
        scope = caller.request_scope
        ways: dict[tuple[str, str, str, Algorithm | None], _Way] = {}
        for position, item in enumerate(items):
            try:
                request_id = RequestKey(parse_request_id(item.request_id), scope, 1)
                kind = (action_of(item), item.key, _payload_type(item), item.algorithm)
                way = ways.get(kind)
                if way is None:
                    way = ways[kind] = self._find_way(caller, item, now)
                if isinstance(item, DigestRequest):
                    admitted.append(_admit_digest(position, item, request_id, way))
                else:
                    admitted.append(await _admit_statement(position, item, request_id, way))
            except GreatsealError as error:
                refused[position] = error
        return admitted, refused

    def sibling(self, version: SigningVersion, number: int) -> SigningVersion | None:
        """Return another version of the same key, or None if there is none with this number."""
        key = self._keys.keys.get(version.key)
        return None if key is None else key.versions.get(number)

    def _find_way(self, caller: Caller, item: SignRequest, now: float) -> _Way:
        """Authorise, then find the key and how it signs: in this order, so that a refusal tells nothing of keys."""
        name, number = parse_key_name(item.key)
        action, payload_type = action_of(item), _payload_type(item)
        if action == SIGN and payload_type != IN_TOTO:
            message = f"the daemon signs only payloads that it can read, of type {IN_TOTO}, not {payload_type[:80]!r}"
            raise PayloadTypeUnknown(message, payload_type=payload_type[:80])
        policy = self._access.decide(caller, action, name, payload_type if action == SIGN else "")
        key = self._keys.find(name)
        version, algorithm = key.choose(number, item.algorithm, now)
        # Not the version: a request that was answered by one is the same request when another signs.
        hash_prefix = f"{action}\0{name}\0{algorithm.value}\0{payload_type}\0".encode()
        return _Way(key, version, algorithm, policy, version.unready(), hash_prefix, number)


def action_of(item: SignRequest) -> str:
    """Return the action that a request needs."""
    return SIGN_BLIND if isinstance(item, DigestRequest) else SIGN


def parse_request_id(text: str) -> bytes:
    """Return the 16 bytes of a request id.

    Raises:
        ArgumentInvalid: the text is no UUID.
    """
    if _UUID.fullmatch(text) is None:
        message = f"request_id must be a UUID such as 0190c7a8-6b5e-7cc3-98c4-dc0c0c07398f, not {text[:60]!r}"
        raise ArgumentInvalid(message, field="request_id")
    return bytes.fromhex(text.replace("-", ""))


def _payload_type(item: SignRequest) -> str:
    return item.claimed_payload_type if isinstance(item, DigestRequest) else item.payload_type


def _admit_digest(position: int, item: DigestRequest, request_id: RequestKey, way: _Way) -> Admitted:
    algorithm = way.algorithm
    if algorithm.is_pure:
        message = f"{algorithm.value} signs whole messages and no digests: ask for the signature of a statement"
        raise DigestInvalid(message, field="digest")
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
    return Admitted(
        position,
        way.version,
        algorithm,
        tbs=item.digest,
        request_id=item.request_id,
        scope=request_id,
        request_hash=_request_hash(way, item.digest),
        policy=way.policy,
        blind=True,
        payload_type=item.claimed_payload_type,
        subject=entry_format.Subject(count=1, name=item.claimed_subject) if item.claimed_subject else None,
        unready=way.unready,
        pinned=way.pinned,
        witnesses=way.key.witnesses,
    )


async def _admit_statement(position: int, item: StatementRequest, request_id: RequestKey, way: _Way) -> Admitted:
    statement = await _read_statement(item.payload)
    _check_predicate(way.key, statement)
    encoded = pae(item.payload_type, item.payload)
    tbs = hashlib.new(way.algorithm.hash_name, encoded).digest()
    return Admitted(
        position,
        way.version,
        way.algorithm,
        tbs=tbs,
        request_id=item.request_id,
        scope=request_id,
        request_hash=_request_hash(way, tbs),
        policy=way.policy,
        blind=False,
        payload_type=item.payload_type,
        payload_sha256=hashlib.sha256(item.payload).hexdigest(),
        predicate_type=statement.predicate_type,
        subject=_subject(statement),
        unready=way.unready,
        message=encoded if way.algorithm.is_pure else b"",
        pinned=way.pinned,
        witnesses=way.key.witnesses,
    )


def _request_hash(way: _Way, tbs: bytes) -> bytes:
    """What makes two requests the same: the action, the key, the algorithm, the payload type and the exact bytes."""
    return hashlib.sha256(way.hash_prefix + tbs).digest()


async def _read_statement(payload: bytes) -> Statement:
    try:
        if len(payload) > _PARSE_ASIDE:
            return await asyncio.to_thread(parse_statement, payload)
        return parse_statement(payload)
    except StatementMalformed as error:
        message = f"the statement is not one that can be signed: {error}"
        raise StatementInvalid(message, path=error.path) from error


def _check_predicate(key: SigningKey, statement: Statement) -> None:
    allowed = key.predicate_types
    if allowed and statement.predicate_type not in allowed:
        message = f"{key.resource_name} does not sign the predicate type {statement.predicate_type}: its predicate_types are {', '.join(allowed)}"
        raise PredicateTypeNotAllowed(message, predicate_type=statement.predicate_type)


def _subject(statement: Statement) -> entry_format.Subject:
    first = statement.subjects[0]
    return entry_format.Subject(
        count=len(statement.subjects), digest=next(iter(first.digest.values()), ""), name=first.name
    )
