"""How a command ends: every error becomes lines on stderr and the documented exit code.

0 ok · 1 unexpected · 2 usage · 3 denied · 4 approval pending · 5 unavailable · 6 verification
failed · 130 interrupted · 141 the reader of stdout went away.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from typing import Any, Final

from greatseal.errors import DaemonError, GreatsealError
from greatseal.text import MAX_CHARS, clean

INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
UNEXPECTED: Final = 1
USAGE: Final = 2
DEBUG: Final = "GREATSEAL_DEBUG"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def report(error: BaseException, *, as_json: bool) -> int:
    """Say what happened, on stderr, and return the exit code."""
    if isinstance(error, BrokenPipeError):
        # Whatever is still buffered would raise again while the interpreter shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    if os.environ.get(DEBUG):
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, GreatsealError):
        code = error.exit_code
    else:
        code = USAGE if isinstance(error, OSError) and error.filename is not None else UNEXPECTED
    described = _describe(error, code)
    print(json.dumps({"error": described}) if as_json else clean(_text(described), 4 * MAX_CHARS), file=sys.stderr)
    return code


def describe(error: GreatsealError) -> dict[str, Any]:
    """Return an error as the object that `--json` writes."""
    return _describe(error, error.exit_code)


def _describe(error: BaseException, code: int) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": type(error).__name__, "message": _message(error), "exit_code": code}
    notes = getattr(error, "__notes__", [])
    if notes:
        described["notes"] = list(notes)
    if isinstance(error, DaemonError):
        described["reason"] = error.reason
        described["code"] = error.code
        described["metadata"] = dict(error.metadata)
        if error.request_id:
            described["request_id"] = error.request_id
    return described


def _message(error: BaseException) -> str:
    if isinstance(error, GreatsealError):
        return error.message
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"the output cannot be written: {error.strerror}; make room, and run the command again"
    return f"unexpected {type(error).__name__}: {error}; this is a fault of greatseal, {DEBUG}=1 shows where"


def _text(described: dict[str, Any]) -> str:
    lines = [f"error: {described['message']}", *(f"  {note}" for note in described.get("notes", []))]
    if described.get("reason"):
        lines.append(f"  reason: {described['reason']}")
    for key, value in described.get("metadata", {}).items():
        if key != "request_id":
            lines.append(f"  {key}: {value}")
    if described.get("request_id"):
        lines.append(f"  request id: {described['request_id']}")
    return "\n".join(lines)
