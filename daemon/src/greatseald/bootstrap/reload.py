"""Reading the configuration again while the daemon runs.

Rules, log level, certificates, and what a key signs take effect at once, on open connections too.
What else has changed waits for a restart, and is named. A file with problems changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog

from greatseald.adapters import logs
from greatseald.bootstrap.compose import read_settings
from greatseald.config import ConfigError, Settings
from greatseald.domain.errors import ArgumentInvalid, GreatsealError

if TYPE_CHECKING:
    from greatseald.adapters.metrics import PrometheusMetrics
    from greatseald.app.audit import AuditLog
    from greatseald.bootstrap.compose import Core
    from greatseald.rpc.tls import ServerCertificates

_log = structlog.get_logger("greatseald.reload")

_LIVE_SERVER_KEYS: Final = frozenset({"log_level", "tls_cert", "tls_key", "client_ca"})
_LIVE_KEY_KEYS: Final = frozenset({"certificate_chain", "predicate_types"})
_LIVE_TABLES: Final = frozenset({"allow", "deny", "chains"})


class Reloader:
    """Reloads, one at a time."""

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str],
        core: Core,
        certificates: ServerCertificates,
        log: AuditLog,
        metrics: PrometheusMetrics,
    ) -> None:
        self._started_with = settings
        self._environment = environment
        self._core = core
        self._certificates = certificates
        self._log = log
        self._metrics = metrics
        self._one_at_a_time = asyncio.Lock()

    async def reload(self) -> list[str]:
        """Reload; return what took effect and what waits for a restart, a sentence each.

        Raises:
            ArgumentInvalid: the file has problems; the old settings stay in force, the log has each problem.
            LogUnavailable: the reload cannot be recorded; the old settings stay in force.
        """
        async with self._one_at_a_time:
            try:
                fresh = await asyncio.to_thread(read_settings, self._started_with.file, self._environment)
            except ConfigError as error:
                self._metrics.reloaded("refused")
                for problem in error.problems:
                    _log.error("reload_refused", problem=str(problem), kept="the settings in force")
                raise ArgumentInvalid(
                    f"the configuration has {len(error.problems)} problem(s), and the old settings stay in force: "
                    + "; ".join(map(str, error.problems)),
                    problems=str(len(error.problems)),
                ) from error
            waiting = pending_changes(self._started_with.canonical(), fresh.canonical())
            # Recorded first: a rule that allows more must not hold before the log says so. A revocation
            # waits no longer than any signature would, since none is made without the log.
            try:
                await self._log.record_admin(
                    "reload", config_sha256=fresh.digest(), rules_sha256=fresh.rules().digest, waiting=waiting[:50]
                )
            except GreatsealError as error:
                self._metrics.reloaded("refused")
                _log.error("reload_refused", problem=error.message, kept="the settings in force")
                raise
            notes = self._apply(fresh)
            notes += [f"{key} has changed and waits for a restart" for key in waiting]
            self._metrics.reloaded("ok")
            for warning in fresh.warnings:
                _log.warning("configuration", warning=warning)
            _log.info("reloaded", notes=notes)
            return notes

    def _apply(self, fresh: Settings) -> list[str]:
        rules = fresh.rules()
        before = self._core.access.rules.digest
        self._core.access.replace(rules)
        count = f"{len(rules.allow)} allow and {len(rules.deny)} deny rules are in force"
        notes = [count if rules.digest != before else f"{count}, unchanged"]
        logs.configure(fresh.server.log_level)
        notes.append(f"log_level is {fresh.server.log_level}")
        why = self._certificates.reload(fresh.server)
        notes.append(f"the certificates in force are kept: {why}" if why else "the certificates were read again")
        notes += [
            f"{name} has its new certificates and predicate types"
            for name in self._core.keys.update(fresh.key_settings())
        ]
        return notes


def pending_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name what differs between two canonical configurations and takes effect at a start only."""
    waiting: list[str] = []
    for table in ("server", "store", "log"):
        live = _LIVE_SERVER_KEYS if table == "server" else frozenset()
        waiting += [
            f"{table}.{key}" for key in sorted(new[table]) if key not in live and new[table][key] != old[table].get(key)
        ]
    for table, live in (("tokens", frozenset[str]()), ("keys", _LIVE_KEY_KEYS), ("outbox", frozenset[str]())):
        before = {row["name"]: row for row in old[table]}
        after = {row["name"]: row for row in new[table]}
        for name in sorted(before.keys() | after.keys()):
            if name not in after or name not in before:
                waiting.append(f"{table}: {name} (new)" if name in after else f"{table}: {name} (removed)")
            else:
                waiting += [
                    f"{table}: {name}.{key}"
                    for key in sorted(after[name])
                    if key not in live and after[name][key] != before[name].get(key)
                ]
    return waiting
