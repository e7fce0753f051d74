"""Wire types to domain objects and back. Pure; what a field may hold is checked by the core."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Final

from greatseal.algorithms import Algorithm
from greatseal.v1 import signing_pb2, types_pb2
from greatseald.app.admission import DigestRequest, SignRequest, StatementRequest
from greatseald.domain.errors import ArgumentInvalid, EntryNotFound

if TYPE_CHECKING:
    from greatseald.app.sign import Released

_TO_WIRE: Final[dict[Algorithm, types_pb2.Algorithm.ValueType]] = {
    algorithm: types_pb2.Algorithm.Value(algorithm.name) for algorithm in Algorithm
}
_FROM_WIRE: Final[dict[int, Algorithm | None]] = {
    types_pb2.ALGORITHM_UNSPECIFIED: None,
    **{number: algorithm for algorithm, number in _TO_WIRE.items()},
}
_ENTRY_NAME: Final = re.compile(r"(logs/[^/]{1,256})/entries/(0|[1-9][0-9]{0,18})")
_MAX_PAGE_TOKEN: Final = 512


def algorithm_to_wire(algorithm: Algorithm) -> types_pb2.Algorithm.ValueType:
    """Return the enum value of an algorithm."""
    return _TO_WIRE[algorithm]


def _algorithm(number: int) -> Algorithm | None:
    try:
        return _FROM_WIRE[number]
    except KeyError:
        known = ", ".join(algorithm.name for algorithm in Algorithm)
        message = f"algorithm {number} is not one that this daemon knows: {known}"
        raise ArgumentInvalid(message, field="algorithm") from None


def digest_request(message: signing_pb2.SignDigestRequest) -> DigestRequest:
    """Convert; a missing digest becomes an empty one, which the core refuses.

    Raises:
        ArgumentInvalid: the algorithm is unknown.
    """
    hash_name = message.digest.WhichOneof("value")
    return DigestRequest(
        key=message.key,
        request_id=message.request_id,
        hash_name=hash_name or "",
        digest=getattr(message.digest, hash_name) if hash_name else b"",
        algorithm=_algorithm(message.algorithm),
        claimed_subject=message.claimed_subject,
        claimed_payload_type=message.claimed_payload_type,
    )


def statement_request(message: signing_pb2.SignStatementRequest) -> StatementRequest:
    """Convert.

    Raises:
        ArgumentInvalid: the algorithm is unknown.
    """
    return StatementRequest(
        key=message.key,
        request_id=message.request_id,
        payload_type=message.payload_type,
        payload=message.payload,
        algorithm=_algorithm(message.algorithm),
    )


def batch_item(message: signing_pb2.BatchItem) -> SignRequest:
    """Convert one item of a batch.

    Raises:
        ArgumentInvalid: it asks for nothing, or its algorithm is unknown.
    """
    kind = message.WhichOneof("request")
    if kind == "digest":
        return digest_request(message.digest)
    if kind == "statement":
        return statement_request(message.statement)
    text = "an item of a batch has a digest or a statement, and this one has neither"
    raise ArgumentInvalid(text, field="items")


def signature(released: Released, checkpoint: str) -> signing_pb2.Signature:
    """Convert a released signature with its checkpoint."""
    message = signing_pb2.Signature()
    fill_signature(message, released)
    message.receipt.checkpoint = checkpoint
    return message


def fill_signature(message: signing_pb2.Signature, released: Released) -> None:
    """Write a released signature into `message` where it stands, without the checkpoint.

    Building messages inside out would copy each receipt twice.
    """
    message.key_version = released.key_version
    message.algorithm = _TO_WIRE[released.algorithm]
    message.signature = released.signature
    message.digest = released.digest
    message.replayed = released.replayed
    receipt, intent, outcome = message.receipt, released.intent, released.outcome
    receipt.intent_index = intent.index
    receipt.intent_entry = intent.entry
    receipt.intent_proof = intent.proof
    receipt.outcome_index = outcome.index
    receipt.outcome_entry = outcome.entry
    receipt.outcome_proof = outcome.proof


def check_log(resource: str, log_name: str) -> None:
    """Accept the names of the daemon's only log: its own, `logs/-`, or nothing.

    Raises:
        EntryNotFound: it is another's.
    """
    if resource not in {"", "logs/-", f"logs/{log_name}"}:
        message = f"there is no log {resource[:80]!r} here: this daemon's is logs/{log_name}"
        raise EntryNotFound(message)


def parse_entry_name(resource: str, log_name: str) -> int:
    """Return the index in `logs/{log}/entries/{index}`.

    Raises:
        ArgumentInvalid: the text is not such a name.
        EntryNotFound: it is of another log.
    """
    match = _ENTRY_NAME.fullmatch(resource)
    if match is None:
        message = f"{resource[:80]!r} is not an entry's name: write logs/{log_name}/entries/INDEX"
        raise ArgumentInvalid(message, field="name")
    check_log(match[1], log_name)
    return int(match[2])


def page_size(asked: int, default: int, most: int) -> int:
    """Return how many to give: `default` for 0, never over `most` (AIP-158).

    Raises:
        ArgumentInvalid: it is negative.
    """
    if asked < 0:
        message = "page_size must not be negative"
        raise ArgumentInvalid(message, field="page_size")
    return min(asked or default, most)


def write_page_token(kind: str, position: str) -> str:
    """Return an opaque token that continues a list of this kind after or at `position`."""
    return base64.urlsafe_b64encode(f"{kind}:{position}".encode()).decode().rstrip("=")


def read_page_token(kind: str, token: str) -> str:
    """Return the position in a token of this kind.

    Raises:
        ArgumentInvalid: it is none that this list gave.
    """
    try:
        data = token[: _MAX_PAGE_TOKEN + 1].encode("ascii")
        text = base64.b64decode(data + b"=" * (-len(data) % 4), altchars=b"-_", validate=True).decode()
    except (ValueError, binascii.Error):
        text = ""
    found, _, position = text.partition(":")
    if found != kind or not position or len(token) > _MAX_PAGE_TOKEN:
        message = (
            "page_token is none that this list gave: send the next_page_token of the answer before, and the same order"
        )
        raise ArgumentInvalid(message, field="page_token")
    return position
