"""What the client is asked and what it answers: frozen values, no I/O, no generated types.

Digests and signatures are bytes, digests in log entries lower-case hexadecimal. Names are the
API's resource names (`keys/release`, `keys/release/versions/1`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from greatseal.dsse import IN_TOTO_PAYLOAD_TYPE
from greatseal.errors import UsageError

if TYPE_CHECKING:
    from datetime import datetime

    from greatseal.algorithms import Algorithm
    from greatseal.receipt import Receipt

_HASHES: Final = {32: "sha256", 48: "sha384", 64: "sha512"}


@dataclass(frozen=True, slots=True)
class DigestRequest:
    """A digest to sign, for `sign_batch`.

    Attributes:
        key: `keys/{key}` or `keys/{key}/versions/{n}`.
        digest: 32 (SHA-256), 48 (SHA-384) or 64 bytes (SHA-512); the length says which hash.
        algorithm: how; the key's default where None.
        claimed_subject: what the digest is of, at most 256 bytes; logged, never checked.
        claimed_payload_type: the payload type it is of, at most 256 bytes; logged, never checked.
        request_id: a UUID; a new UUIDv7 where empty. The same id again returns the same signature.
    """

    key: str
    digest: bytes
    algorithm: Algorithm | None = None
    claimed_subject: str = ""
    claimed_payload_type: str = ""
    request_id: str = ""

    @property
    def hash_name(self) -> str:
        """The hash that makes digests of this length: `sha256`, `sha384` or `sha512`.

        Raises:
            UsageError: no hash does.
        """
        name = _HASHES.get(len(self.digest))
        if name is None:
            message = f"a digest has 32, 48 or 64 bytes, not {len(self.digest)}"
            raise UsageError(message)
        return name


@dataclass(frozen=True, slots=True)
class StatementRequest:
    """A payload to sign as DSSE does, for `sign_batch`.

    Attributes:
        key: `keys/{key}` or `keys/{key}/versions/{n}`.
        payload: the payload's exact bytes.
        payload_type: the DSSE payload type.
        algorithm: how; the key's default where None.
        request_id: a UUID; a new UUIDv7 where empty. The same id again returns the same signature.
    """

    key: str
    payload: bytes = field(repr=False)
    payload_type: str = IN_TOTO_PAYLOAD_TYPE
    algorithm: Algorithm | None = None
    request_id: str = ""


SignRequest = DigestRequest | StatementRequest


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature that was released, with its evidence.

    Attributes:
        key_version: what signed, `keys/{key}/versions/{n}`.
        algorithm: how.
        signature: DER for ECDSA, the modulus's length for RSA.
        digest: the digest that was signed, 32 or 48 bytes.
        receipt: both entries of the log and their proofs; `receipt.to_json()` is the receipt file.
        replayed: whether this request id was answered before, with this same signature.
        request_id: the id it was asked for under.
    """

    key_version: str
    algorithm: Algorithm
    signature: bytes
    digest: bytes
    receipt: Receipt = field(repr=False)
    replayed: bool
    request_id: str


@dataclass(frozen=True, slots=True)
class Grant:
    """One rule that allows the caller something."""

    policy_id: str
    actions: tuple[str, ...]
    keys: tuple[str, ...]
    payload_types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WhoAmI:
    """The caller as the daemon sees it.

    Attributes:
        client: the identity that rules match.
        certificate_serial: hexadecimal.
        certificate_sha256: of the certificate's DER, hexadecimal.
        certificate_expiry: RFC 3339.
        grants: what the rules allow.
        server_version: the daemon's.
        log_origin: the name in the log's verifier key.
        server_time: the daemon's clock when it answered, RFC 3339; empty where it does not say.
    """

    client: str
    certificate_serial: str
    certificate_sha256: str
    certificate_expiry: str
    grants: tuple[Grant, ...]
    server_version: str
    log_origin: str
    server_time: str = ""


@dataclass(frozen=True, slots=True)
class Key:
    """A named key.

    Attributes:
        name: `keys/{key}`.
        primary_version: the version that signs.
        token: `tokens/{token}`.
        algorithms: what it offers, the default first. Those that this client does not know are left out.
        state: `ENABLED`, `UNAVAILABLE` or `HALTED`.
        state_detail: why it cannot sign; empty while it can.
        spki_sha256: of the public key's SubjectPublicKeyInfo, 32 bytes; empty while the token has not been read.
        allowed_actions: this caller's, on this key.
    """

    name: str
    primary_version: str
    token: str
    algorithms: tuple[Algorithm, ...]
    state: str
    state_detail: str
    spki_sha256: bytes
    allowed_actions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Capability:
    """How a token stands to an algorithm: whether it lists the mechanism, and whether it accepted it for a key."""

    algorithm: Algorithm
    advertised: bool
    proven: bool


@dataclass(frozen=True, slots=True)
class Token:
    """A token: its state, what it says of itself, what it can do, the keys in it, how busy it is.

    Attributes:
        name: `tokens/{token}`.
        state: `STARTING`, `READY`, `UNREACHABLE`, `LOCKED`, `DRAINING`, `DRAINED` or `QUARANTINED`.
        state_detail: why it does not sign; empty while it does.
        serial: its serial number; this and the next four are empty while it was not reached.
        label: its label.
        manufacturer: who made it.
        model: what it is.
        firmware: MAJOR.MINOR.
        sessions: that its host works with at a time.
        capabilities: how it stands to the algorithms.
        keys: `keys/{key}`, those that the caller may read.
        waiting: operations that its host does not have yet.
        in_flight: operations that its host has.
        operation_seconds: how long one takes in one session; 0 while that was not measured.
        breaker: `CLOSED`, `OPEN` (left alone after failures) or `HALF_OPEN` (tried with one operation at a time).
        last_success: Unix time of its last signature for this run of the daemon; 0 before the first.
    """

    name: str
    state: str
    state_detail: str
    serial: str
    label: str
    manufacturer: str
    model: str
    firmware: str
    sessions: int
    capabilities: tuple[Capability, ...]
    keys: tuple[str, ...]
    waiting: int = 0
    in_flight: int = 0
    operation_seconds: float = 0.0
    breaker: str = ""
    last_success: float = 0.0


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public half of a key version.

    Attributes:
        key_version: `keys/{key}/versions/{n}`.
        pem: SubjectPublicKeyInfo as PEM, trailing newline included.
        algorithms: what the key offers, the default first.
        certificate_chain: DER, leaf first, no root; empty where none are configured.
    """

    key_version: str
    pem: str
    algorithms: tuple[Algorithm, ...]
    certificate_chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log: its index from 0 and its exact bytes (JSON)."""

    index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries of the log to list. All that is given must hold, of a tuple one value.

    An outcome is judged together with its intent: it has that one's caller, key and model.

    Attributes:
        types: of `intent`, `outcome`, `denied`, `admin`.
        results: of `signed`, `failed`, `unknown`, `aborted`, `denied`.
        key: `keys/{key}`; this and the next two are prefixes where they end in an asterisk.
        caller: an identity.
        subject: the name of the first subject, for models the model's.
        digest: the first 8 to 128 hexadecimal digits of the digest given to the token, of the payload's
            SHA-256, or of the first subject's digest.
        since: an aware datetime; written then or later. Where a clock was over an hour wrong, entries may be missed.
        until: an aware datetime; written before.
    """

    types: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    key: str = ""
    caller: str = ""
    subject: str = ""
    digest: str = ""
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class EntryPage:
    """A page of entries in the order asked for; may hold few or none, and not be the last.

    `intents` are those of the page's outcomes that are not in the page, where they were asked for;
    `log_size` is the size of the log when it was read. Entries below `pruned_size` were dropped after an
    export: of those only some are given.
    """

    entries: tuple[Entry, ...]
    intents: tuple[Entry, ...]
    log_size: int
    pruned_size: int = 0


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A signed tree head: the C2SP note verbatim, the size in entries, the root of 32 bytes.

    `verified` says whether the note's signature was checked with the profile's `log_key`.
    """

    note: str
    size: int
    root: bytes
    verified: bool


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """RFC 9162, 2.1.3: hashes of 32 bytes each, leaf to root."""

    index: int
    tree_size: int
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ConsistencyProof:
    """RFC 9162, 2.1.4: hashes of 32 bytes each."""

    old_size: int
    new_size: int
    hashes: tuple[bytes, ...]
