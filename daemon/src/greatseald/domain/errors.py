"""Every way in which a request can be refused or fail, as one tree.

    GreatsealError
    ├── Refusal                     the request cannot be served as it is
    │   ├── IdentityInvalid  CallerDenylisted  AccessDenied
    │   ├── KeyNotFound  TokenUnknown  EntryNotFound  EntryPruned
    │   ├── ArgumentInvalid  DigestInvalid  AlgorithmNotOffered  PayloadTypeUnknown
    │   ├── StatementInvalid  PredicateTypeNotAllowed  RequestTooLarge
    │   ├── RequestIdReused  RequestInFlight  CertificateUnusable
    │   └── KeyHalted  KeyNotEnabled  TokenLocked
    └── Failure                     the request was sound and the daemon could not serve it
        ├── TokenUnavailable  SigningFailed  OutcomeUnknown
        ├── Overloaded  ShuttingDown  LogUnavailable  DiskReserveReached  DeadlinePassed
        ├── AnchorDisagrees  WitnessesMissing
        └── InternalFault

`reason` is the name in `greatseal.v1.ErrorReason`. `retry_after` is None where the same request
cannot succeed by being sent again, else the seconds after which it may. What the status code is,
only `rpc/errors.py` knows.
"""

from __future__ import annotations

import secrets
from typing import ClassVar


class GreatsealError(Exception):
    """A refusal or failure with a message for people and metadata for programs.

    `message` says what happened, why, and what to do; it never holds a secret. `metadata` values
    are short strings.
    """

    reason: ClassVar[str]
    default_retry_after: ClassVar[float | None] = None

    def __init__(self, message: str, *, retry_after: float | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata
        self.retry_after = self.default_retry_after if retry_after is None else retry_after


class Refusal(GreatsealError):
    """The request cannot be served as it is; the caller has to change something."""


class IdentityInvalid(Refusal):
    """The certificate names no identity that can be used, or more than one."""

    reason = "IDENTITY_INVALID"


class CallerDenylisted(Refusal):
    """The certificate's serial number or key is on the denylist."""

    reason = "CALLER_DENYLISTED"


class AccessDenied(Refusal):
    """No rule allows this caller this action on this key."""

    reason = "ACCESS_DENIED"


class KeyNotFound(Refusal):
    """The caller would be allowed, and there is no such key."""

    reason = "KEY_NOT_FOUND"


class TokenUnknown(Refusal):
    """The caller may read tokens, and there is no such token."""

    reason = "TOKEN_NOT_FOUND"


class EntryNotFound(Refusal):
    """No such log, entry or checkpoint."""

    reason = "ENTRY_NOT_FOUND"


class EntryPruned(Refusal):
    """The entry was dropped after an export; metadata `pruned_size` and `export` say what else was, and where it stands."""

    reason = "ENTRY_PRUNED"


class ArgumentInvalid(Refusal):
    """A field is missing or malformed; metadata `field` names it."""

    reason = "ARGUMENT_INVALID"


class DigestInvalid(Refusal):
    """The digest's length or hash does not fit the algorithm."""

    reason = "DIGEST_INVALID"


class AlgorithmNotOffered(Refusal):
    """The key does not offer this algorithm; metadata `offered` lists what it does."""

    reason = "ALGORITHM_NOT_OFFERED"


class PayloadTypeUnknown(Refusal):
    """The daemon renders no such payload type."""

    reason = "PAYLOAD_TYPE_UNKNOWN"


class StatementInvalid(Refusal):
    """The statement is malformed, out of order, or its root is wrong; metadata `path` points there."""

    reason = "STATEMENT_INVALID"


class PredicateTypeNotAllowed(Refusal):
    """The key does not sign this predicate type."""

    reason = "PREDICATE_TYPE_NOT_ALLOWED"


class RequestTooLarge(Refusal):
    """The request, or the log entry it would need, is too large."""

    reason = "REQUEST_TOO_LARGE"


class RequestIdReused(Refusal):
    """Another request was made under this request_id."""

    reason = "REQUEST_ID_REUSED"

    @classmethod
    def of(cls, request_id: str) -> RequestIdReused:
        """Return the error for a request that is another one than that on record."""
        message = f"request id {request_id} was used for another request: every request needs an id of its own"
        return cls(message, request_id=request_id)


class RequestInFlight(Refusal):
    """The same request is being worked on by another front."""

    reason = "REQUEST_IN_FLIGHT"
    default_retry_after = 1.0


class CertificateUnusable(Refusal):
    """The key's certificate is expired, not yet valid, or of another key."""

    reason = "CERTIFICATE_UNUSABLE"


class KeyHalted(Refusal):
    """The key's token returned a signature that does not verify; the key signs no more."""

    reason = "KEY_HALTED"


class KeyNotEnabled(Refusal):
    """The key version is in a state in which it does not sign; metadata `state` names it."""

    reason = "KEY_NOT_ENABLED"


class TokenLocked(Refusal):
    """The token needs an operator, most often because its PIN was refused."""

    reason = "TOKEN_LOCKED"


class Failure(GreatsealError):
    """The request was sound and could not be served."""


class TokenUnavailable(Failure):
    """The token, its module or the key's object cannot be reached now; nothing was signed."""

    reason = "TOKEN_UNAVAILABLE"
    default_retry_after = 2.0


class SigningFailed(Failure):
    """The token refused the operation; nothing was signed."""

    reason = "SIGNING_FAILED"


class OutcomeUnknown(Failure):
    """The token gave no answer; it may have signed, and nothing was or will be released."""

    reason = "OUTCOME_UNKNOWN"
    default_retry_after = 1.0


class Overloaded(Failure):
    """Too much work is waiting."""

    reason = "OVERLOADED"
    default_retry_after = 0.5


class ShuttingDown(Failure):
    """The daemon is stopping."""

    reason = "SHUTTING_DOWN"
    default_retry_after = 2.0


class LogUnavailable(Failure):
    """The audit log cannot be written, so nothing is signed."""

    reason = "LOG_UNAVAILABLE"
    default_retry_after = 5.0


class DiskReserveReached(Failure):
    """The volume of the audit log is nearly full, so nothing new is signed."""

    reason = "DISK_RESERVE_REACHED"
    default_retry_after = 30.0


class AnchorDisagrees(Failure):
    """A witness or a peer has seen another history of the log; an operator has to find out which is true."""

    reason = "ANCHOR_DISAGREES"


class WitnessesMissing(Failure):
    """The signature stands in the log, and too few witnesses have cosigned that; the same request fetches it later."""

    reason = "WITNESSES_MISSING"
    default_retry_after = 1.0


class DeadlinePassed(Failure):
    """The call did not finish in its time; the request goes on and can be asked for again by its id."""

    reason = "DEADLINE_PASSED"


class InternalFault(Failure):
    """A fault of the daemon itself; metadata `correlation_id` finds it in the daemon's own log."""

    reason = "INTERNAL_FAULT"

    @classmethod
    def of(cls, what: str) -> InternalFault:
        """Make one with a correlation id of its own; whoever does logs the cause under the same metadata."""
        correlation_id = secrets.token_hex(8)
        message = f"{what}: the daemon's operator finds the details in its log under {correlation_id}"
        return cls(message, correlation_id=correlation_id)
