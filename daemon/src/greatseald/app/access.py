"""Deciding and recording: may this caller do this, and what the log says when it may not.

Every refusal of a known caller becomes a `denied` entry. A flood of them must not fill the disk:
each caller has a bucket of entries, and what is over is counted into the `more` of its next one.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from greatseald.domain import entries as entry_format
from greatseald.domain.errors import AccessDenied, CallerDenylisted, GreatsealError
from greatseald.domain.policy import KEY_ACTIONS, SIGN

if TYPE_CHECKING:
    from greatseald.app.audit import AuditLog
    from greatseald.domain.identity import Caller
    from greatseald.domain.policy import AllowRule, Rules
    from greatseald.ports.metrics import Metrics

_BURST: Final = 20.0
_PER_SECOND: Final = 1.0
_MAX_CALLERS: Final = 1024
_MAX_TEXT: Final = 256


@dataclass(slots=True)
class _Bucket:
    """One caller's allowance of denial entries, and the last denial that was only counted."""

    level: float
    at: float
    suppressed: int = 0
    last: entry_format.Denied | None = None


class Access:
    """The rules in force and the record of what they refused."""

    def __init__(self, rules: Rules, log: AuditLog, metrics: Metrics) -> None:
        self._rules = rules
        self._log = log
        self._metrics = metrics
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    @property
    def rules(self) -> Rules:
        """The set in force."""
        return self._rules

    def replace(self, rules: Rules) -> None:
        """Put another set in force, for every call from now on, on open connections too."""
        self._rules = rules

    def rules_of(self, caller: Caller) -> list[tuple[str, AllowRule]]:
        """Return the allow rules of a caller with their ids."""
        return self._rules.rules_of(caller)

    def allowed_actions(self, caller: Caller, key: str) -> list[str]:
        """Return the actions that the rules allow the caller on a key, sorted, for some payload type at least."""
        actions = {
            action
            for _, rule in self._rules.rules_of(caller)
            for action in rule.actions
            if action in KEY_ACTIONS and rule.allows(action, key, rule.payload_types[0] if rule.payload_types else "")
        }
        return sorted(actions)

    def check_denylist(self, caller: Caller) -> None:
        """Refuse a certificate that a deny rule names.

        Raises:
            CallerDenylisted: it does.
        """
        rule = self._rules.denied_by(caller)
        if rule is not None:
            message = f"this client certificate (serial {caller.serial}) is denied by rule {rule} of the daemon's configuration"
            raise CallerDenylisted(message, policy=rule)

    def decide(self, caller: Caller, action: str, key: str = "", payload_type: str = "") -> entry_format.Policy:
        """Return what allows this, as the audit log says it.

        Raises:
            AccessDenied: nothing allows it.
        """
        ids = self._rules.decide(caller, action, key, payload_type)
        if not ids:
            what = f"{action} on keys/{key}" if key else action
            if action == SIGN:
                what += f" with payload type {payload_type}"
            message = f"{caller.id} is not allowed {what}: no [[allow]] rule of the daemon's configuration says so"
            raise AccessDenied(message, action=action, client=caller.id)
        return entry_format.Policy(ids=ids, set=self._rules.digest)

    async def require(self, caller: Caller, peer: str, action: str, key: str = "") -> entry_format.Policy:
        """Decide about a call that signs nothing, and record a refusal before it is raised.

        Raises:
            CallerDenylisted: the certificate is denied.
            AccessDenied: no rule allows the action.
        """
        try:
            self.check_denylist(caller)
            return self.decide(caller, action, key)
        except (CallerDenylisted, AccessDenied) as refusal:
            await self.record_refusal(caller, peer, action, refusal, key=key)
            raise

    async def record_refusal(
        self,
        caller: Caller,
        peer: str,
        action: str,
        refusal: GreatsealError,
        *,
        key: str = "",
        payload_type: str = "",
        request_id: str = "",
    ) -> None:
        """Commit a `denied` entry for a refusal, or count it if this caller has had too many."""
        entry = entry_format.Denied(
            act=action,
            cli=client_part(caller),
            inst=self._log.instance,
            key=entry_format.KeyVersion(name=f"keys/{key[:_MAX_TEXT]}") if key else None,
            log=self._log.origin,
            peer=peer,
            pol=entry_format.Policy(ids=_deciding(refusal), set=self._rules.digest),
            ptype=payload_type[:_MAX_TEXT],
            reason=refusal.reason,
            req=request_id[:_MAX_TEXT],
            ts=entry_format.timestamp(self._log.clock()),
        )
        bucket = self._bucket(caller)
        if bucket.level < 1.0:
            bucket.suppressed += 1
            bucket.last = entry
            self._metrics.denial_suppressed(1)
            return
        bucket.level -= 1.0
        await self._commit(entry, bucket)

    async def summarise(self) -> None:
        """Commit one entry for every caller with denials that were only counted. Called now and then, and at the end."""
        for bucket in list(self._buckets.values()):
            if bucket.last is not None:
                bucket.suppressed -= 1
                await self._commit(bucket.last, bucket)

    async def _commit(self, entry: entry_format.Denied, bucket: _Bucket) -> None:
        more, bucket.suppressed, bucket.last = bucket.suppressed, 0, None
        try:
            self._log.require_writable()
            await self._log.record(_with_more(entry, more))
        except GreatsealError:
            # The refusal stands all the same: it is counted for later, and the log's own state is reported elsewhere.
            bucket.suppressed += more + 1
            bucket.last = entry

    def _bucket(self, caller: Caller) -> _Bucket:
        now = self._log.clock()
        bucket = self._buckets.get(caller.id)
        if bucket is None:
            bucket = self._buckets[caller.id] = _Bucket(_BURST, now)
            while len(self._buckets) > _MAX_CALLERS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(caller.id)
        bucket.level = min(_BURST, bucket.level + max(0.0, now - bucket.at) * _PER_SECOND)
        bucket.at = now
        return bucket


def client_part(caller: Caller) -> entry_format.Client:
    """Return the `cli` of an entry."""
    return entry_format.Client(cert_sha256=caller.cert_sha256, id=caller.id, issuer=caller.issuer, serial=caller.serial)


def _deciding(refusal: GreatsealError) -> tuple[str, ...]:
    rule = refusal.metadata.get("policy")
    return (rule,) if rule else ()


def _with_more(entry: entry_format.Denied, more: int) -> entry_format.Denied:
    if not more:
        return entry
    fields = {name: getattr(entry, name) for name in entry.__struct_fields__}
    return entry_format.Denied(**{**fields, "more": more})
