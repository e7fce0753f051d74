"""What the daemon does now and then, beside the requests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from greatseald.app.writer import FORGET_AT_ONCE

if TYPE_CHECKING:
    from greatseald.app.access import Access
    from greatseald.app.audit import AuditLog

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
