"""The longer statements of the PostgreSQL store, and how lists become their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from greatseald.ports.store import Append, RequestKey

LOCK_HEAD: Final = "SELECT size FROM greatseal.head FOR UPDATE"
INSERT_REQUESTS: Final = """
    INSERT INTO greatseal.requests (request_id, caller, attempt, request_hash, intent)
    SELECT * FROM unnest(%s::bytea[], %s::bytea[], %s::bigint[], %s::bytea[], %s::bigint[])
    ON CONFLICT DO NOTHING
    """
FIRST_KEY: Final = RequestKey(b"", b"", 0)
FORGETTING: Final = 0x47534C33
"""Advisory lock (a transaction's) of the front that forgets old requests."""
FORGET: Final = """
    WITH looked_at AS (
        SELECT * FROM greatseal.requests WHERE (request_id, caller, attempt) > (%s, %s, %s)
        ORDER BY request_id, caller, attempt LIMIT %s
    ), forgotten AS (
        DELETE FROM greatseal.requests WHERE (request_id, caller, attempt) IN (
            SELECT request_id, caller, attempt FROM looked_at AS seen
            WHERE (SELECT time_ms FROM greatseal.commits WHERE size > seen.intent ORDER BY size LIMIT 1) < %s
            AND NOT EXISTS (SELECT FROM greatseal.open_intents WHERE idx = seen.intent)
        ) RETURNING intent
    ), closed AS (
        DELETE FROM greatseal.outcomes WHERE intent IN (SELECT intent FROM forgotten)
    ), last AS (
        SELECT request_id, caller, attempt FROM looked_at ORDER BY request_id DESC, caller DESC, attempt DESC LIMIT 1
    )
    SELECT last.*, (SELECT count(*) FROM forgotten) FROM last
    """
HOLDS_ITS_LOCK: Final = """
    SELECT EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted AND objsubid = 1
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND (classid::bigint << 32) | objid::bigint = %s
    )
    """


def request_columns(batch: Append) -> tuple[str, ...]:
    """Return the parameters of `INSERT_REQUESTS`."""
    requests = batch.requests
    return (
        blobs([request.key.request_id for request in requests]),
        blobs([request.key.caller for request in requests]),
        numbers([request.key.attempt for request in requests]),
        blobs([request.request_hash for request in requests]),
        numbers([request.intent for request in requests]),
    )


def numbers(values: Sequence[int]) -> str:
    """Return an array in PostgreSQL's text form. psycopg's own, item by item, took a third of a commit's CPU."""
    return "{" + ",".join(map(str, values)) + "}"


def blobs(values: Sequence[bytes]) -> str:
    """Return such an array of bytea."""
    return "{" + ",".join(['"\\\\x' + value.hex() + '"' for value in values]) + "}"
