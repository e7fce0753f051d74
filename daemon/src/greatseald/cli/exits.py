"""How a command ends: its exit codes, and one way to say what went wrong.

    with reporting():
        raise CommandFailed(USAGE, "DIR exists already: choose another directory")   # exits with 2

Data goes to stdout, prose to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import typer

OK: Final = 0
UNEXPECTED: Final = 1
USAGE: Final = 2
DENIED: Final = 3
APPROVAL_PENDING: Final = 4
UNAVAILABLE: Final = 5
VERIFICATION_FAILED: Final = 6
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141


class CommandFailed(Exception):
    """A command cannot do what was asked. `message` says what happened, why, and what to do next."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message


@contextmanager
def reporting() -> Iterator[None]:
    """Turn `CommandFailed` into a line on stderr and its exit code; Ctrl-C likewise."""
    try:
        yield
    except CommandFailed as failure:
        say(f"error: {failure.message}")
        raise typer.Exit(failure.exit_code) from None
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:  # `greatseald … | head`; what is still buffered would raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(BROKEN_PIPE) from None


def say(text: str = "") -> None:
    """Tell people something, on stderr."""
    print(text, file=sys.stderr)


def emit(data: dict[str, Any]) -> None:
    """Give programs something: one JSON object on stdout."""
    print(json.dumps(data, ensure_ascii=False, indent=2))
