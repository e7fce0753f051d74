"""The daemon's own log: one JSON object a line on stderr, plain text on a terminal.

It is for operators, and is not the audit log. No line holds a PIN, a key, a payload or a credential:
whoever logs sees to it, and values under tell-tale names are struck out all the same.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

_SECRET: Final = re.compile(
    r"pin|pass(word|phrase)?|secret|credential|private_key|token_key|authorization", re.IGNORECASE
)
_HARMLESS: Final = frozenset({"pin_file", "pin_credential"})
_STRUCK: Final = "[struck out]"


def strike_out_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the values of fields that are named like secrets."""
    for name in event:
        if name not in _HARMLESS and _SECRET.fullmatch(name) is not None:
            event[name] = _STRUCK
    return event


def configure(level: str) -> None:
    """Send structlog's and the standard library's records to stderr, from this level up. May be called again."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        strike_out_secrets,
    ]
    terminal = sys.stderr.isatty()
    last: list[Any] = (
        [
            structlog.dev.ConsoleRenderer(
                # Plain tracebacks: the default shows the local variables of every frame, secrets among them.
                colors="NO_COLOR" not in os.environ,
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
        if terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
