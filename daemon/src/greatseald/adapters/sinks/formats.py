"""What a sink is given for an entry: JSON Lines with the entry verbatim, or an OCSF event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from greatseald.domain.ocsf import INFORMATIONAL, api_activity, is_notable
from greatseald.domain.tree import leaf_hash
from greatseald.ports.sinks import Record

if TYPE_CHECKING:
    from greatseald.ports.sinks import Format


def jsonl_format(origin: str) -> Format:
    """`{"log", "index", "leaf_hash", "entry"}`, the entry being its exact bytes."""
    start = b'{"log":%b,"index":' % msgspec.json.encode(origin)

    def line(index: int, entry: bytes, intent: bytes | None) -> Record:  # noqa: ARG001 - the port's signature
        text = b'%b%d,"leaf_hash":"%b","entry":%b}' % (start, index, leaf_hash(entry).hex().encode(), entry)
        fields: dict[str, Any] = msgspec.json.decode(entry)
        return Record(index, text, fields["ts"], is_notable(fields))

    return line


def ocsf_format(origin: str) -> Format:
    """One OCSF API Activity event; see `domain.ocsf`."""

    def line(index: int, entry: bytes, intent: bytes | None) -> Record:
        event = api_activity(index, entry, intent, origin)
        notable = event["severity_id"] > INFORMATIONAL
        return Record(index, msgspec.json.encode(event), event["metadata"]["original_time"], notable)

    return line
