"""The entries of the signing path: an intent for each request, an outcome for each intent.

Most requests of a batch, and most of one caller, differ in digest and request id only; their entries
are filled into a form that is kept from call to call. Whatever has a payload, or was not signed, is
encoded in full. The bytes are the same either way.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

from greatseald.app.access import client_part
from greatseald.domain import entries as entry_format

if TYPE_CHECKING:
    from greatseald.app.admission import Admitted
    from greatseald.app.audit import AuditLog
    from greatseald.app.job import Call, Job

_MAX_FORMS: Final = 1024
_MAX_WHY: Final = 256


class Records:
    """Makes entries in the name of one boot's log. Belongs to the event loop."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._intents: dict[tuple[Any, ...], entry_format.IntentForm] = {}
        self._outcomes: dict[tuple[str, str, str], entry_format.OutcomeForm] = {}
        self._second = -1
        self._second_text = ""

    def now(self) -> str:
        """The time for the entries of one commit, as `entry_format.timestamp`; the second is formatted once."""
        now = self._log.clock()
        second = int(now)
        if second != self._second:
            self._second, self._second_text = second, entry_format.timestamp(second)[:-7]
        return f"{self._second_text}{int((now - second) * 1e6):06d}Z"

    def intent(self, call: Call, request: Admitted, ts: str) -> bytes:
        """Return the intent of an admitted request.

        Raises:
            RequestTooLarge: it would be over 16 KiB.
        """
        if not request.blind or request.subject is not None:
            return entry_format.encode(self._intent(call, request, ts))
        version = request.version
        kind = (
            call.caller.cert_sha256,
            call.peer,
            version.name,
            version.spki_sha256,
            request.algorithm,
            request.attempt,
            request.payload_type,
            request.policy,
        )
        form = self._intents.get(kind)
        if form is None:
            form = entry_format.IntentForm(self._intent(call, request, ts))
            if len(self._intents) >= _MAX_FORMS:
                self._intents.clear()
            self._intents[kind] = form
        return form.fill(request.request_id, request.tbs, ts)

    def outcome(self, job: Job, dur_us: int, ts: str) -> bytes:
        """Return the outcome of a job whose token has answered, or was never asked."""
        if job.result != "signed" or not job.sequence:
            return entry_format.encode(self._outcome(job, dur_us, ts))
        info = job.holding.token.info if job.holding is not None else None
        kind = (job.request.version.spki_sha256, info.firmware if info else "", info.serial if info else "")
        form = self._outcomes.get(kind)
        if form is None:
            form = self._outcomes[kind] = entry_format.OutcomeForm(self._outcome(job, dur_us, ts))
        return form.fill(dur_us, job.sequence, job.intent_index, job.leaf_hash, job.signature, job.request.tbs, ts)

    def _intent(self, call: Call, request: Admitted, ts: str) -> entry_format.Intent:
        version = request.version
        return entry_format.Intent(
            att=request.attempt,
            blind=request.blind,
            cli=client_part(call.caller),
            inst=self._log.instance,
            key=entry_format.KeyVersion(
                name=version.resource_name, spki_sha256=version.spki_sha256, version=version.number
            ),
            log=self._log.origin,
            mdig=request.payload_sha256,
            mech=request.algorithm.value,
            peer=call.peer,
            pol=request.policy,
            pred=request.predicate_type,
            ptype=request.payload_type,
            req=request.request_id,
            subj=request.subject,
            tbs=request.tbs.hex(),
            ts=ts,
        )

    def _outcome(self, job: Job, dur_us: int, ts: str) -> entry_format.Outcome:
        info = job.holding.token.info if job.holding is not None else None
        signed = job.result == "signed"
        return entry_format.Outcome(
            ckr=job.ckr,
            dur_us=dur_us,
            hsm=entry_format.Hsm(
                fw=info.firmware if info else "", seq=job.sequence, serial=info.serial if info else ""
            ),
            inst=self._log.instance,
            intent=entry_format.IntentRef(index=job.intent_index, leaf_hash=job.leaf_hash.hex()),
            key=entry_format.KeyRef(spki_sha256=job.request.version.spki_sha256),
            log=self._log.origin,
            res=job.result,
            sig=base64.b64encode(job.signature).decode() if signed else "",
            tbs=job.request.tbs.hex(),
            ts=ts,
            why="" if signed else job.why[:_MAX_WHY],
        )
