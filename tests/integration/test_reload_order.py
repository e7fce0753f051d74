"""A reload is in the log before it holds, and does not hold if it cannot be recorded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from deployment import Deployment
from greatseald.adapters.metrics import PrometheusMetrics
from greatseald.adapters.store.sqlite import SqliteStore
from greatseald.app.audit import AuditLog
from greatseald.bootstrap import compose
from greatseald.bootstrap.reload import Reloader
from greatseald.bootstrap.tokens import TokenWatch
from greatseald.domain.errors import LogUnavailable
from greatseald.domain.identity import Caller
from greatseald.ports.store import StoreBroken
from greatseald.rpc.tls import ServerCertificates

STRANGER = Caller(
    "spiffe://greatseal.local/stranger", "aa" * 32, "0a", "CN=ca", "bb" * 32, datetime(2030, 1, 1, tzinfo=UTC)
)
RULE = '[[allow]]\nclient = "spiffe://greatseal.local/stranger"\nactions = ["readAudit"]'

Work = Callable[[Reloader, compose.Core, AuditLog], Awaitable[None]]


def at(deployment: Deployment, work: Work) -> None:
    """Put the daemon's parts together without serving, and run `work` with them."""

    async def go() -> None:
        settings = compose.read_settings(deployment.config, {})
        metrics = PrometheusMetrics("test")
        opened = compose.open_log(settings, metrics, lambda _: None)
        tokens = TokenWatch(settings, metrics, lambda _: None).tokens
        core = compose.build_core(settings, opened.log, metrics, dict(tokens))
        opened.log.start()
        try:
            reloader = Reloader(settings, {}, core, ServerCertificates(settings.server), opened.log, metrics)
            await work(reloader, core, opened.log)
        finally:
            opened.log.stop()
            core.verifiers.shutdown()
            opened.close()

    asyncio.run(go())


def test_a_new_rule_holds_only_once_the_log_says_so(deployment: Deployment) -> None:
    seen: list[bool] = []

    async def work(reloader: Reloader, core: compose.Core, log: AuditLog) -> None:
        record = log.record_admin

        async def watched(what: str, **info: str | int | list[str]) -> int:
            seen.append(bool(core.access.rules.decide(STRANGER, "readAudit")))
            return await record(what, **info)

        log.record_admin = watched  # type: ignore[method-assign]
        deployment.append(RULE)
        await reloader.reload()
        assert seen == [False]
        assert core.access.rules.decide(STRANGER, "readAudit")
        entry = json.loads(log.entry(log.size - 1))
        assert (entry["what"], entry["info"]["rules_sha256"]) == ("reload", core.access.rules.digest)

    at(deployment, work)


def test_a_rule_that_cannot_be_recorded_does_not_hold(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        message = "injected"
        raise StoreBroken(message)

    async def work(reloader: Reloader, core: compose.Core, _: AuditLog) -> None:
        deployment.append(RULE)
        monkeypatch.setattr(SqliteStore, "append", fail)
        with pytest.raises(LogUnavailable):
            await reloader.reload()
        assert not core.access.rules.decide(STRANGER, "readAudit")

    at(deployment, work)
