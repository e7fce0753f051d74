"""The filter of ListEntries, from the wire to the query that the core runs."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

from greatseal.v1 import audit_pb2
from greatseald.domain import entries as entry_format
from greatseald.domain.entry_query import EntryQuery
from greatseald.domain.errors import ArgumentInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from google.protobuf.timestamp_pb2 import Timestamp

_TYPES: Final = {
    number: name.removeprefix("ENTRY_TYPE_").lower() for name, number in audit_pb2.EntryType.items() if number
}
_RESULTS: Final = {
    number: name.removeprefix("ENTRY_RESULT_").lower() for name, number in audit_pb2.EntryResult.items() if number
}
_MAX_VALUES: Final = 8
_MAX_BYTES: Final = {"key": 256, "caller": 1024, "subject": 1024}
_DIGEST: Final = re.compile("[0-9a-f]{8,128}")
_YEAR_10000: Final = 253_402_300_800


def query(request: audit_pb2.ListEntriesRequest) -> EntryQuery:
    """Convert.

    Raises:
        ArgumentInvalid: a field is malformed or too long.
    """
    asked = request.filter
    for name, most in _MAX_BYTES.items():
        if len(getattr(asked, name).encode()) > most:
            message = f"filter.{name} is over {most} bytes"
            raise ArgumentInvalid(message, field=f"filter.{name}")
    digest = asked.digest.lower()
    if digest and not _DIGEST.fullmatch(digest):
        message = "filter.digest is not 8 to 128 hexadecimal digits"
        raise ArgumentInvalid(message, field="filter.digest")
    return EntryQuery(
        types=_named(asked.types, _TYPES, "types"),
        results=_named(asked.results, _RESULTS, "results"),
        key=asked.key,
        caller=asked.caller,
        subject=asked.subject,
        digest=digest,
        since=_time(asked.since, "since") if asked.HasField("since") else "",
        until=_time(asked.until, "until") if asked.HasField("until") else "",
    )


def token_kind(request: audit_pb2.ListEntriesRequest) -> str:
    """Name a list of this order and filter, so that a page token of another is refused."""
    order = "down" if request.descending else "up"
    asked = request.filter.SerializeToString(deterministic=True)
    return f"{order}-{hashlib.sha256(asked).hexdigest()[:16]}" if asked else order


def _named(numbers: Iterable[int], names: Mapping[Any, str], field: str) -> frozenset[str]:
    given = list(numbers)
    if len(given) > _MAX_VALUES or any(number not in names for number in given):
        message = f"filter.{field} holds over {_MAX_VALUES} values, or one that is none of {', '.join(names.values())}"
        raise ArgumentInvalid(message, field=f"filter.{field}")
    return frozenset(names[number] for number in given)


def _time(moment: Timestamp, field: str) -> str:
    if not 0 <= moment.seconds < _YEAR_10000 or not 0 <= moment.nanos < 1_000_000_000:
        message = f"filter.{field} is no time from 1970 to 9999"
        raise ArgumentInvalid(message, field=f"filter.{field}")
    whole = entry_format.timestamp(float(moment.seconds))
    return f"{whole[:-7]}{moment.nanos // 1000:06d}Z"
