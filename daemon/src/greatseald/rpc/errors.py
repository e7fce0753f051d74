"""Domain errors as gRPC statuses: the one table, and the one place where they are translated.

Every error carries exactly one `ErrorInfo` of the domain `greatseal`, and a `RetryInfo` where the
same request may succeed later. Clients retry UNAVAILABLE, and ABORTED with RetryInfo, nothing else.
"""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from greatseald.domain import errors
from greatseald.domain.errors import GreatsealError

DOMAIN: Final = "greatseal"
DETAILS_KEY: Final = "grpc-status-details-bin"

# Trailers have room for about 8 KiB; the message travels twice and may be percent-encoded.
_MAX_MESSAGE: Final = 1000
_MAX_VALUE: Final = 200
_MAX_VALUES: Final = 8

_CODE: Final = grpc.StatusCode

STATUS_CODES: Final[dict[type[GreatsealError], grpc.StatusCode]] = {
    errors.IdentityInvalid: _CODE.UNAUTHENTICATED,
    errors.CallerDenylisted: _CODE.PERMISSION_DENIED,
    errors.AccessDenied: _CODE.PERMISSION_DENIED,
    errors.KeyNotFound: _CODE.NOT_FOUND,
    errors.TokenUnknown: _CODE.NOT_FOUND,
    errors.EntryNotFound: _CODE.NOT_FOUND,
    errors.EntryPruned: _CODE.NOT_FOUND,
    errors.ArgumentInvalid: _CODE.INVALID_ARGUMENT,
    errors.DigestInvalid: _CODE.INVALID_ARGUMENT,
    errors.AlgorithmNotOffered: _CODE.INVALID_ARGUMENT,
    errors.PayloadTypeUnknown: _CODE.INVALID_ARGUMENT,
    errors.StatementInvalid: _CODE.INVALID_ARGUMENT,
    errors.PredicateTypeNotAllowed: _CODE.PERMISSION_DENIED,
    errors.RequestTooLarge: _CODE.INVALID_ARGUMENT,
    errors.RequestIdReused: _CODE.ALREADY_EXISTS,
    errors.RequestInFlight: _CODE.ABORTED,
    errors.CertificateUnusable: _CODE.FAILED_PRECONDITION,
    errors.KeyHalted: _CODE.FAILED_PRECONDITION,
    errors.TokenLocked: _CODE.FAILED_PRECONDITION,
    errors.AnchorDisagrees: _CODE.FAILED_PRECONDITION,
    errors.KeyNotEnabled: _CODE.FAILED_PRECONDITION,
    errors.TokenUnavailable: _CODE.UNAVAILABLE,
    errors.SigningFailed: _CODE.INTERNAL,
    errors.OutcomeUnknown: _CODE.UNAVAILABLE,
    errors.Overloaded: _CODE.UNAVAILABLE,
    errors.ShuttingDown: _CODE.UNAVAILABLE,
    errors.LogUnavailable: _CODE.UNAVAILABLE,
    errors.DiskReserveReached: _CODE.UNAVAILABLE,
    errors.WitnessesMissing: _CODE.UNAVAILABLE,
    errors.DeadlinePassed: _CODE.DEADLINE_EXCEEDED,
    errors.InternalFault: _CODE.INTERNAL,
}
"""Which status each error becomes. A test holds that every error with a reason is here."""


def code_of(error: GreatsealError) -> grpc.StatusCode:
    """Return the status code of an error, INTERNAL for one that the table lacks."""
    return STATUS_CODES.get(type(error), _CODE.INTERNAL)


def status_of(error: GreatsealError) -> status_pb2.Status:
    """Return an error as `google.rpc.Status`: one ErrorInfo, and RetryInfo where it may be retried."""
    metadata = {key[:64]: value[:_MAX_VALUE] for key, value in list(error.metadata.items())[:_MAX_VALUES]}
    details = [_packed(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))]
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(max(0, int(error.retry_after * 1000)))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=code_of(error).value[0], message=error.message[:_MAX_MESSAGE], details=details)


def trailers_of(status: status_pb2.Status) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata in which a status travels."""
    return ((DETAILS_KEY, status.SerializeToString()),)


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
