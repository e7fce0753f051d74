"""What `doctor` found: one line for each thing that it looked at, and what to do about it."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from greatseal.cli.session import Session
from greatseal.errors import GreatsealError, VerificationFailed
from greatseal.text import one_line

_COLOURS: Final = {"ok": "32", "warn": "33", "fail": "31", "skip": "2"}
_INDENT: Final = 20
_MIN_WIDTH: Final = 60
_MAX_WIDTH: Final = 120


class Status(str, Enum):
    """How one thing is: `SKIP` where it could not be looked at, which its text explains."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class Finding:
    """One line of the page.

    Attributes:
        name: what was looked at, such as `server certificate`.
        status: how it is.
        text: what was found, on one line.
        todo: what to do; empty where nothing is.
        exit_code: the exit code that a failure leads to.
        data: the same for programs.
    """

    name: str
    status: Status
    text: str
    todo: str = ""
    exit_code: int = 0
    data: dict[str, Any] = field(default_factory=dict)


def ok(name: str, text: str, **data: Any) -> Finding:
    """Return that it is as it should be."""
    return Finding(name, Status.OK, text, data=data)


def warn(name: str, text: str, todo: str, **data: Any) -> Finding:
    """Return that it works and deserves a look."""
    return Finding(name, Status.WARN, text, todo, data=data)


def fail(name: str, text: str, todo: str, *, exit_code: int, **data: Any) -> Finding:
    """Return that it does not work."""
    return Finding(name, Status.FAIL, text, todo, exit_code, data)


def skip(name: str, text: str, todo: str = "") -> Finding:
    """Return that it could not be looked at."""
    return Finding(name, Status.SKIP, text, todo)


def failed_by(name: str, error: GreatsealError, todo: str = "") -> Finding:
    """Return that it failed with this error, whose own message says what to do where `todo` does not."""
    data = {"kind": type(error).__name__, "reason": getattr(error, "reason", "")}
    return fail(name, error.message, todo, exit_code=error.exit_code, **data)


def worst(findings: Sequence[Finding]) -> Status:
    """Return the worst status; what was skipped counts as nothing."""
    found = {finding.status for finding in findings}
    return next((status for status in (Status.FAIL, Status.WARN) if status in found), Status.OK)


def exit_code(findings: Sequence[Finding]) -> int:
    """Return the exit code: of a failed verification, else of the first failure, for later ones follow from it."""
    codes = [finding.exit_code for finding in findings if finding.status is Status.FAIL]
    return VerificationFailed.exit_code if VerificationFailed.exit_code in codes else (codes or [0])[0]


def described(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the page as the object that `--json` writes."""
    return {
        "status": worst(findings).value,
        "exit_code": exit_code(findings),
        "checks": [
            {"name": each.name, "status": each.status.value, "text": each.text, "todo": each.todo, **each.data}
            for each in findings
        ],
    }


def show(session: Session, findings: Sequence[Finding]) -> None:
    """Print the page on stdout, within the terminal's width."""
    width = max(_MIN_WIDTH, min(shutil.get_terminal_size().columns, _MAX_WIDTH)) - _INDENT - 6
    colored = session.colored(sys.stdout)
    for each in findings:
        mark = f"{each.status.value:<5}"
        if colored:
            mark = f"\x1b[{_COLOURS[each.status.value]}m{mark}\x1b[0m"
        lines = _wrapped(each.text, width)
        print(f"{mark} {each.name:<{_INDENT - 1}} {lines[0]}")
        rest = lines[1:] + [
            f"{'->' if not number else '  '} {line}"
            for number, line in enumerate(_wrapped(each.todo, width - 3))
            if line
        ]
        for line in rest:
            print(f"{'':<{_INDENT + 6}}{line}")


def _wrapped(text: str, width: int) -> list[str]:
    # Whole words, so that a path or a name can be copied from the page.
    return textwrap.wrap(one_line(text), width, break_long_words=False, break_on_hyphens=False) or [""]
