"""The one family of errors that every verifying function of this package raises.

    VerificationFailed
    ├── PublicKeyInvalid    not a public key, or not one that fits the algorithm
    ├── SignatureInvalid    the signature is not by this key over this digest
    ├── ProofInvalid        an inclusion or consistency proof is malformed or leads to another root
    ├── NoteInvalid         a signed note, or a verifier key line, is malformed
    │   └── NoteUnverified  the note is well formed and not signed by the key that is trusted
    ├── QuorumMissing       too few witnesses cosigned a checkpoint
    ├── TimestampInvalid    an RFC 3161 timestamp is not of this checkpoint, or not by a trusted authority
    ├── CheckpointInvalid   the note's text is no checkpoint, or one of another log
    ├── EnvelopeInvalid     a DSSE envelope is malformed
    ├── StatementInvalid    an in-toto statement is malformed or contradicts itself; `path` says where
    └── ReceiptInvalid      a receipt does not prove what it claims; `check` says which step failed

Nothing in this package returns False for a failed verification. Messages hold no secret: every
input is public.
"""

from __future__ import annotations

from enum import Enum

# The root stands in the client's one tree of errors, where it has its exit code.
from greatseal.errors import VerificationFailed


class PublicKeyInvalid(VerificationFailed):
    """The bytes are no public key that Greatseal knows, or the key does not fit the algorithm."""


class SignatureInvalid(VerificationFailed):
    """The signature is malformed, or not by this key over this digest."""


class ProofInvalid(VerificationFailed):
    """A Merkle proof is malformed, has the wrong length, or leads to another root."""


class NoteInvalid(VerificationFailed):
    """A signed note or a verifier key line is malformed."""


class NoteUnverified(NoteInvalid):
    """No signature on the note is by the trusted key, or the one that claims to be is wrong."""


class QuorumMissing(VerificationFailed):
    """Too few of the witnesses that are trusted cosigned a checkpoint."""


class TimestampInvalid(VerificationFailed):
    """An RFC 3161 timestamp is malformed, of something else, or not by an authority that is trusted."""


class CheckpointInvalid(VerificationFailed):
    """The note's text is no checkpoint, or a checkpoint of another origin."""


class EnvelopeInvalid(VerificationFailed):
    """A DSSE envelope is malformed."""


class StatementInvalid(VerificationFailed):
    """An in-toto statement is malformed or contradicts itself.

    `path` is where, as in `predicate.resources[3].name`; empty for the whole document.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class ReceiptCheck(str, Enum):
    """The steps of verifying a receipt, in their order."""

    FORMAT = "format"
    CHECKPOINT = "checkpoint"
    WITNESSES = "witnesses"
    INTENT_INCLUSION = "intent-inclusion"
    OUTCOME_INCLUSION = "outcome-inclusion"
    ENTRIES = "entries"
    LOG = "log"
    LINK = "link"
    RESULT = "result"
    KEY = "key"
    ALGORITHM = "algorithm"
    DIGEST = "digest"
    PAYLOAD = "payload"
    SIGNATURE = "signature"


class ReceiptInvalid(VerificationFailed):
    """A receipt does not prove what it claims. `check` is the step that failed."""

    def __init__(self, check: ReceiptCheck, message: str) -> None:
        super().__init__(message)
        self.check = check
