"""What the log says already of a request: its signature is released again, or its next attempt opened.

    pending = await replay.take_up(jobs)       # those that may open a further attempt now

A signature on record is verified anew before it leaves, and its entries against the tree: whoever can
write to the database can edit either.
"""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING

import msgspec
import structlog

from greatseal.errors import VerificationFailed
from greatseal.tlog import leaf_hash, split_hashes, verify_inclusion
from greatseal.verification import ProofInvalid, SignatureInvalid
from greatseald.domain.errors import LogUnavailable, RequestIdReused, RequestInFlight

if TYPE_CHECKING:
    from greatseald.app.admission import Admission
    from greatseald.app.audit import AuditLog
    from greatseald.app.job import Job
    from greatseald.app.writer import SignedHead

_log = structlog.get_logger("greatseald.sign")


class _RecordedKey(msgspec.Struct):
    """Which version an intent is of."""

    version: int


class _RecordedIntent(msgspec.Struct):
    """What a replay needs of an intent's entry."""

    key: _RecordedKey


class _RecordedOutcome(msgspec.Struct):
    """What a replay needs of an outcome's entry."""

    res: str
    sig: str = ""


class Replay:
    """Settles jobs whose request ids are on record."""

    def __init__(self, admission: Admission, log: AuditLog) -> None:
        self._admission = admission
        self._log = log

    async def take_up(self, jobs: list[Job]) -> list[Job]:
        """Settle jobs by what is on record of their requests; return those that may open a further attempt now."""
        if not jobs:
            return []
        return await asyncio.to_thread(lambda: [job for job in jobs if self._settle(job)])

    def _settle(self, job: Job) -> bool:
        """Look a job up; a record that cannot be read ends this job alone, since others of its call may have intents."""
        try:
            return self._look_up(job)
        except Exception as error:  # noqa: BLE001 - see above
            _log.error("record_unreadable", request_id=job.request.request_id, exc_info=error)
            job.error = LogUnavailable(f"what is on record of request {job.request.request_id} cannot be read now")
            return False

    def _look_up(self, job: Job) -> bool:
        """Read what is on record of a job's request. True if a further attempt may be opened now."""
        request = job.request
        attempts = self._log.attempts(request.scope)
        if not attempts:
            return job.error is None
        last = attempts[-1]
        if last.request_hash != request.request_hash:
            job.error = RequestIdReused.of(request.request_id)
        elif last.outcome is None:
            job.error = RequestInFlight(f"request {request.request_id} is being worked on by another front")
        else:
            outcome = self._log.recorded(last.outcome)
            recorded = msgspec.json.decode(outcome, type=_RecordedOutcome)
            if recorded.res != "signed":
                request.open_attempt(last.attempt + 1)
                return job.error is None
            self._replay(job, (last.intent, last.outcome), outcome, base64.b64decode(recorded.sig))
        return False

    def _replay(self, job: Job, pair: tuple[int, int], entry: bytes, signature: bytes) -> None:
        """Take the signature on record, by whichever version of the key made it, if it verifies still."""
        request = job.request
        intent = self._log.recorded(pair[0])
        number = msgspec.json.decode(intent, type=_RecordedIntent).key.version
        version = self._admission.sibling(request.version, number)
        if request.pinned not in {None, number}:
            job.error = RequestIdReused.of(request.request_id)
            return
        if version is not None and request.algorithm not in version.verifiers:
            return  # the token has not been read since the start: nothing to verify with
        try:
            if version is None:
                raise SignatureInvalid("that version is gone")
            version.verifiers[request.algorithm].verify(request.signed, signature)
        except VerificationFailed:
            job.error = RequestIdReused(
                f"request id {request.request_id} was answered with a signature that {request.version.resource_name} "
                "did not make as it is now: its token holds another key than then. Ask under another id",
                request_id=request.request_id,
            )
            return
        job.error = None
        job.replayed = version
        job.intent_index, job.intent_entry = pair[0], intent
        job.outcome_index, job.outcome_entry = pair[1], entry
        job.signature, job.result = signature, "signed"


def require_record(job: Job, proof: tuple[bytes, bytes], head: SignedHead) -> None:
    """Refuse to release again what the database says now and the tree does not: somebody has edited a row."""
    both = ((job.intent_index, job.intent_entry, proof[0]), (job.outcome_index, job.outcome_entry, proof[1]))
    for index, entry, hashes in both:
        try:
            verify_inclusion(index, head.size, leaf_hash(entry), split_hashes(hashes), head.root)
        except ProofInvalid as error:
            _log.error("record_altered", request_id=job.request.request_id, index=index, why=str(error))
            job.error = LogUnavailable(
                f"entry {index}, which is on record of request {job.request.request_id}, is not the one that the log's "
                "tree has: the database was altered, and nothing of it is released"
            )
