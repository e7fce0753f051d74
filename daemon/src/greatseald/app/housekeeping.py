"""What the daemon does now and then, beside the requests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from greatseald.app.writer import FORGET_AT_ONCE

if TYPE_CHECKING:
    from greatseald.app.access import Access
    from greatseald.app.audit import AuditLog

_log = structlog.get_logger("greatseald.log")

_FOLLOW_SECONDS: Final = 1.0
"""How long a front that writes nothing itself may not know what others wrote, or that it counts as dead."""

_FOLLOWS_A_RECOVERY: Final = 5
"""Looks at what others wrote before each look for what dead ones left."""

_ROUND_SECONDS: Final = 60.0
_DAY_SECONDS: Final = 86_400


async def keep_house(access: Access, log: AuditLog, *, request_retention_days: int) -> None:
    """Once a minute: log the denials that were only counted, and forget request ids past their days. Runs until cancelled."""
    while True:
        await asyncio.sleep(_ROUND_SECONDS)
        await access.summarise()
        before = log.clock() - request_retention_days * _DAY_SECONDS
        forgotten = FORGET_AT_ONCE
        while forgotten == FORGET_AT_ONCE:
            forgotten = await log.forget_requests(before)


async def follow_others(log: AuditLog) -> None:
    """On a shared store: once a second take in what other fronts wrote, and now and then close what dead ones left.

    Runs until cancelled; a log that is not what the fronts wrote ends the daemon.
    """
    while True:
        for _ in range(_FOLLOWS_A_RECOVERY):
            await asyncio.sleep(_FOLLOW_SECONDS)
            await log.follow()
        if closed := await log.close_dead_intents():
            _log.warning("closed_for_a_dead_front", intents=closed)
