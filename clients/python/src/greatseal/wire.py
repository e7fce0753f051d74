"""Between the wire and the client's own values: requests, answers and errors, translated here alone.

What a daemon answers is foreign until it is checked: texts are bounded and lose their control
characters (a terminal would obey them), an algorithm that this client does not know is an error,
and error details that do not parse leave the status code to speak.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from greatseal import errors, messages
from greatseal.algorithms import Algorithm
from greatseal.receipt import Logged, Receipt
from greatseal.text import clean
from greatseal.timestamps import Stamped
from greatseal.tlog import split_hashes
from greatseal.v1 import audit_pb2, identity_pb2, key_pb2, signing_pb2, token_pb2, types_pb2

ERROR_DOMAIN: Final = "greatseal"
DETAILS_KEY: Final = "grpc-status-details-bin"
MAX_METADATA: Final = 32
MAX_METADATA_VALUE: Final = 1024
MAX_RETRY_AFTER: Final = 86400.0
"""Bounds on what an error may carry: entries, characters of a value, seconds; its message is bounded as `clean` does."""

_REASON: Final = re.compile(r"[A-Z][A-Z0-9_]{0,62}\Z")
_HANDSHAKE: Final = re.compile(r"CERTIFICATE_VERIFY_FAILED|SSL_ERROR|[Hh]andshake|[Hh]ostname [Vv]erification|ALERT_")
_CLOSED: Final = re.compile(r"Socket closed|Connection reset|Broken pipe")

_CLASSES: Final[dict[str, type[errors.DaemonError]]] = {
    "INVALID_ARGUMENT": errors.InvalidRequest,
    "OUT_OF_RANGE": errors.InvalidRequest,
    "ALREADY_EXISTS": errors.RequestIdReused,
    "NOT_FOUND": errors.NotFound,
    "UNAUTHENTICATED": errors.Denied,
    "PERMISSION_DENIED": errors.Denied,
    "FAILED_PRECONDITION": errors.NotReady,
    "ABORTED": errors.InFlight,
    "UNAVAILABLE": errors.Unavailable,
    "DEADLINE_EXCEEDED": errors.DeadlineExceeded,
    "RESOURCE_EXHAUSTED": errors.Exhausted,
}
_CODES: Final = {code.value[0]: code.name for code in grpc.StatusCode}

_ALGORITHMS: Final[dict[int, Algorithm]] = {
    number: Algorithm[name] for name, number in types_pb2.Algorithm.items() if name in Algorithm.__members__
}
_NUMBERS: Final = {algorithm: number for number, algorithm in _ALGORITHMS.items()}


# --- errors


def error_from_rpc(error: grpc.RpcError, *, request_id: str = "") -> errors.DaemonError:
    """Translate what a call raised, of `grpc` or of `grpc.aio`."""
    call: Any = error  # both kinds are calls as well, which their types do not say
    code = call.code()
    return error_from_parts(
        code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN",
        call.details() or "",
        call.trailing_metadata() or (),
        request_id=request_id,
    )


def error_from_parts(
    code: str, details: str, trailing: Iterable[tuple[str, str | bytes]], *, request_id: str = ""
) -> errors.DaemonError:
    """Translate a status code's name, its text and the trailing metadata."""
    for key, value in trailing:
        if key == DETAILS_KEY and isinstance(value, bytes):
            status = status_pb2.Status()
            try:
                status.ParseFromString(value)
            except DecodeError:
                continue
            return _error(code, details or status.message, status.details, request_id)
    return _error(code, details, (), request_id)


def error_from_status(status: status_pb2.Status, *, request_id: str = "") -> errors.DaemonError:
    """Translate the status of one item of a batch."""
    return _error(_CODES.get(status.code, "UNKNOWN"), status.message, status.details, request_id)


def _error(code: str, text: str, details: Iterable[Any], request_id: str) -> errors.DaemonError:
    if code == "OK":
        code = "UNKNOWN"
    info, retry = _details(details)
    reason = info.reason if info is not None else ""
    metadata = _metadata(info) if info is not None else {}
    kind = _CLASSES.get(code, errors.DaemonFault)
    text = clean(text)
    if not reason:
        if kind is errors.Unavailable and _HANDSHAKE.search(text):
            kind = errors.ConnectionRefused
        text = _without_reason(kind, code, text)
    return kind(
        text or f"the daemon answered {code} and did not say why",
        reason=reason,
        code=code,
        metadata=metadata,
        retry_after=retry,
        request_id=metadata.get("request_id") or request_id,
    )


def _without_reason(kind: type[errors.DaemonError], code: str, text: str) -> str:
    """Say what a bare gRPC error means: it came from the connection, not from a daemon of ours."""
    if kind is errors.ConnectionRefused:
        return (
            f"no TLS connection: {text}; compare ca_cert, client_cert and server_name of the profile "
            f"with the daemon's certificates, and their dates with the clock"
        )
    if kind is errors.Unavailable and _CLOSED.search(text):
        # TLS 1.3 lets the server refuse a client's certificate only after the client believes to be connected.
        return (
            f"the daemon closed the connection ({text}): it is stopping, or its client_ca did not issue our "
            f"certificate, or that has expired; compare client_cert of the profile with the daemon's client_ca"
        )
    if kind is errors.Unavailable:
        return f"the daemon cannot be reached: {text}; check that it runs and that the profile's address is its own"
    if kind is errors.DeadlineExceeded:
        return (
            "no answer in time; the request may still be served: ask again with the same request id, or raise --timeout"
        )
    if kind is errors.Exhausted:
        return f"over a limit of the connection: {text}"
    if code == "UNIMPLEMENTED":
        return f"the peer does not offer this call ({text}): is the address that of a greatseald, and not an older one?"
    return text


def _details(details: Iterable[Any]) -> tuple[error_details_pb2.ErrorInfo | None, float | None]:
    info, retry = None, None
    for position, detail in enumerate(details):
        if position >= MAX_METADATA:
            break
        if info is None:
            found = _unpack(detail, error_details_pb2.ErrorInfo)
            if found is not None and found.domain == ERROR_DOMAIN and _REASON.match(found.reason):
                info = found
        if retry is None:
            told = _unpack(detail, error_details_pb2.RetryInfo)
            if told is not None:
                seconds = told.retry_delay.seconds + told.retry_delay.nanos / 1e9
                retry = min(max(seconds, 0.0), MAX_RETRY_AFTER)
    return info, retry


_M = TypeVar("_M", bound=Message)


def _unpack(detail: Any, kind: type[_M]) -> _M | None:
    if not detail.Is(kind.DESCRIPTOR):
        return None
    message = kind()
    try:
        message.ParseFromString(detail.value)
    except DecodeError:
        return None
    return message


def _metadata(info: error_details_pb2.ErrorInfo) -> dict[str, str]:
    pairs = sorted(info.metadata.items())[:MAX_METADATA]
    return {clean(key, 64): clean(value, MAX_METADATA_VALUE) for key, value in pairs}


# --- requests


def sign_request(item: messages.SignRequest) -> signing_pb2.SignDigestRequest | signing_pb2.SignStatementRequest:
    """Return the request of one item, whose id is set."""
    algorithm: Any = _NUMBERS[item.algorithm] if item.algorithm is not None else 0
    if isinstance(item, messages.StatementRequest):
        return signing_pb2.SignStatementRequest(
            key=item.key,
            request_id=item.request_id,
            payload_type=item.payload_type,
            payload=item.payload,
            algorithm=algorithm,
        )
    digest = types_pb2.Digest()
    setattr(digest, item.hash_name, item.digest)
    return signing_pb2.SignDigestRequest(
        key=item.key,
        request_id=item.request_id,
        digest=digest,
        algorithm=algorithm,
        claimed_subject=item.claimed_subject,
        claimed_payload_type=item.claimed_payload_type,
    )


def batch_item(item: messages.SignRequest) -> signing_pb2.BatchItem:
    """Return one item of a batch."""
    request = sign_request(item)
    if isinstance(request, signing_pb2.SignStatementRequest):
        return signing_pb2.BatchItem(statement=request)
    return signing_pb2.BatchItem(digest=request)


def batch_request(items: Iterable[signing_pb2.BatchItem]) -> signing_pb2.BatchSignRequest:
    """Return the call for these items."""
    return signing_pb2.BatchSignRequest(items=items)


def whoami_request() -> identity_pb2.WhoAmIRequest:
    """Return the request of WhoAmI."""
    return identity_pb2.WhoAmIRequest()


def list_keys_request(page_token: str) -> key_pb2.ListKeysRequest:
    """Return the request for a page of keys."""
    return key_pb2.ListKeysRequest(page_token=page_token)


def get_key_request(name: str) -> key_pb2.GetKeyRequest:
    """Return the request for a key."""
    return key_pb2.GetKeyRequest(name=name)


def list_tokens_request(page_token: str) -> token_pb2.ListTokensRequest:
    """Return the request for a page of tokens."""
    return token_pb2.ListTokensRequest(page_token=page_token)


def get_token_request(name: str) -> token_pb2.GetTokenRequest:
    """Return the request for a token."""
    return token_pb2.GetTokenRequest(name=name)


_TOKEN_CHANGES: Final = {
    "DrainToken": token_pb2.DrainTokenRequest,
    "QuarantineToken": token_pb2.QuarantineTokenRequest,
    "ResumeToken": token_pb2.ResumeTokenRequest,
}


def token_change_request(method: str, name: str, request_id: str, reason: str) -> Any:
    """Return the request of a method that takes a token out of service or puts it back."""
    return _TOKEN_CHANGES[method](name=name, request_id=request_id, reason=reason)


def get_public_key_request(name: str) -> key_pb2.GetPublicKeyRequest:
    """Return the request for a public key."""
    return key_pb2.GetPublicKeyRequest(name=name)


def get_checkpoint_request(cosignatures: int = 0) -> audit_pb2.GetCheckpointRequest:
    """Return the request for the newest checkpoint, or the newest that so many witnesses have cosigned."""
    return audit_pb2.GetCheckpointRequest(cosignatures=cosignatures)


def get_entry_request(index: int) -> audit_pb2.GetEntryRequest:
    """Return the request for one entry of the only log."""
    return audit_pb2.GetEntryRequest(name=f"logs/-/entries/{index}")


def list_entries_request(
    start: int,
    page_size: int,
    page_token: str,
    *,
    descending: bool,
    wanted: messages.EntryFilter | None,
    with_intents: bool,
) -> audit_pb2.ListEntriesRequest:
    """Return the request for a page of entries.

    Raises:
        UsageError: the filter names a type or result that there is not.
    """
    return audit_pb2.ListEntriesRequest(
        page_size=page_size,
        page_token=page_token,
        start_index=start,
        descending=descending,
        include_intents=with_intents,
        filter=None if wanted is None else _entry_filter(wanted),
    )


def _entry_filter(wanted: messages.EntryFilter) -> audit_pb2.EntryFilter:
    found = audit_pb2.EntryFilter(
        types=_enum_values("ENTRY_TYPE_", audit_pb2.EntryType, wanted.types),
        results=_enum_values("ENTRY_RESULT_", audit_pb2.EntryResult, wanted.results),
        key=wanted.key,
        caller=wanted.caller,
        subject=wanted.subject,
        digest=wanted.digest,
    )
    if wanted.since is not None:
        found.since.FromDatetime(wanted.since)
    if wanted.until is not None:
        found.until.FromDatetime(wanted.until)
    return found


def _enum_values(prefix: str, enum: Any, names: Iterable[str]) -> list[Any]:
    known = {name.removeprefix(prefix).lower(): number for name, number in enum.items() if number}
    try:
        return [known[name] for name in names]
    except KeyError as error:
        message = f"{str(error.args[0])[:80]!r} is none of {', '.join(known)}"
        raise errors.UsageError(message) from None


def inclusion_request(index: int, tree_size: int) -> audit_pb2.GetInclusionProofRequest:
    """Return the request for an inclusion proof; tree_size 0 is the newest."""
    return audit_pb2.GetInclusionProofRequest(index=index, tree_size=tree_size)


def list_timestamps_request(page_token: str) -> audit_pb2.ListTimestampsRequest:
    """Return the request for a page of timestamps."""
    return audit_pb2.ListTimestampsRequest(page_token=page_token)


def timestamp(answer: audit_pb2.Timestamp) -> Stamped:
    """Return a timestamp, not yet checked."""
    return Stamped(clean(answer.authority, 256), answer.checkpoint, answer.response)


def consistency_request(old_size: int, new_size: int) -> audit_pb2.GetConsistencyProofRequest:
    """Return the request for a consistency proof; new_size 0 is the newest."""
    return audit_pb2.GetConsistencyProofRequest(old_size=old_size, new_size=new_size)


# --- answers


def algorithm(number: int) -> Algorithm:
    """Return the algorithm of a number on the wire.

    Raises:
        VerificationFailed: this client knows none of it, and so could not verify what it made.
    """
    found = _ALGORITHMS.get(number)
    if found is None:
        message = f"the daemon signed with algorithm {number}, which this client does not know; upgrade it"
        raise errors.VerificationFailed(message)
    return found


def receipt(answer: types_pb2.Receipt, checkpoint: str) -> Receipt:
    """Return a receipt under its checkpoint's note, not yet checked.

    Raises:
        ProofInvalid: a proof is no list of hashes.
    """
    return Receipt(
        Logged(answer.intent_index, answer.intent_entry, split_hashes(answer.intent_proof)),
        Logged(answer.outcome_index, answer.outcome_entry, split_hashes(answer.outcome_proof)),
        checkpoint,
    )


def whoami(answer: identity_pb2.WhoAmIResponse) -> messages.WhoAmI:
    """Return who the caller is."""
    return messages.WhoAmI(
        client=clean(answer.client),
        certificate_serial=clean(answer.certificate_serial),
        certificate_sha256=clean(answer.certificate_sha256),
        certificate_expiry=clean(answer.certificate_expiry),
        grants=tuple(
            messages.Grant(
                policy_id=clean(grant.policy_id),
                actions=_texts(grant.actions),
                keys=_texts(grant.keys),
                payload_types=_texts(grant.payload_types),
            )
            for grant in answer.grants
        ),
        server_version=clean(answer.server_version),
        log_origin=clean(answer.log_origin),
        server_time=clean(answer.server_time),
    )


def key(answer: key_pb2.Key) -> messages.Key:
    """Return a key."""
    known = answer.state in key_pb2.KeyState.values()
    return messages.Key(
        name=clean(answer.name),
        primary_version=clean(answer.primary_version),
        token=clean(answer.token),
        algorithms=_known_algorithms(answer.algorithms),
        state=key_pb2.KeyState.Name(answer.state) if known else f"STATE_{answer.state}",
        state_detail=clean(answer.state_detail),
        spki_sha256=answer.spki_sha256,
        allowed_actions=_texts(answer.allowed_actions),
    )


def token(answer: token_pb2.Token) -> messages.Token:
    """Return a token."""
    known = answer.state in token_pb2.TokenState.values()
    tried = answer.breaker in token_pb2.BreakerState.values()
    return messages.Token(
        name=clean(answer.name),
        state=token_pb2.TokenState.Name(answer.state) if known else f"STATE_{answer.state}",
        state_detail=clean(answer.state_detail),
        serial=clean(answer.serial),
        label=clean(answer.label),
        manufacturer=clean(answer.manufacturer),
        model=clean(answer.model),
        firmware=clean(answer.firmware),
        sessions=answer.sessions,
        capabilities=tuple(
            messages.Capability(algorithm, each.advertised, each.proven)
            for each in answer.capabilities
            for algorithm in _known_algorithms([each.algorithm])
        ),
        keys=_texts(answer.keys),
        waiting=answer.waiting,
        in_flight=answer.in_flight,
        operation_seconds=answer.operation_time.seconds + answer.operation_time.nanos / 1e9,
        breaker=token_pb2.BreakerState.Name(answer.breaker) if tried and answer.breaker else "",
        last_success=answer.last_success_time.seconds + answer.last_success_time.nanos / 1e9,
    )


def public_key(answer: key_pb2.PublicKey) -> messages.PublicKey:
    """Return a public key."""
    return messages.PublicKey(
        key_version=clean(answer.key_version),
        pem=answer.pem,
        algorithms=_known_algorithms(answer.algorithms),
        certificate_chain=tuple(answer.certificate_chain),
    )


def entry(answer: audit_pb2.Entry) -> messages.Entry:
    """Return an entry."""
    return messages.Entry(index=answer.index, data=answer.data)


def entry_page(answer: audit_pb2.ListEntriesResponse) -> messages.EntryPage:
    """Return a page of entries, not yet checked."""
    return messages.EntryPage(
        entries=tuple(map(entry, answer.entries)),
        intents=tuple(map(entry, answer.intents)),
        log_size=answer.log_size,
        pruned_size=answer.pruned_size,
    )


def inclusion_proof(answer: audit_pb2.InclusionProof) -> messages.InclusionProof:
    """Return an inclusion proof, not yet checked."""
    return messages.InclusionProof(answer.index, answer.tree_size, tuple(answer.hashes))


def consistency_proof(answer: audit_pb2.ConsistencyProof) -> messages.ConsistencyProof:
    """Return a consistency proof, not yet checked."""
    return messages.ConsistencyProof(answer.old_size, answer.new_size, tuple(answer.hashes))


def _known_algorithms(numbers: Sequence[int]) -> tuple[Algorithm, ...]:
    return tuple(_ALGORITHMS[number] for number in numbers if number in _ALGORITHMS)


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(clean(value) for value in values)
