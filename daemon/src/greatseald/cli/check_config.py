"""`greatseald check-config`: everything that is wrong with a configuration, at once."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from greatseald.bootstrap.compose import read_settings
from greatseald.cli.exits import USAGE, emit, say
from greatseald.config import ConfigError


def check_config(file: Path, *, as_json: bool) -> None:
    """Check a configuration with the environment's overrides, as `serve` would; leave with 2 if it has problems."""
    try:
        settings = read_settings(file, os.environ)
    except ConfigError as error:
        if as_json:
            emit(
                {
                    "valid": False,
                    "problems": [
                        {
                            "file": problem.file,
                            "line": problem.line,
                            "key": problem.key,
                            "message": problem.message,
                            "hint": problem.hint,
                        }
                        for problem in error.problems
                    ],
                }
            )
        for problem in error.problems:
            say(str(problem))
        count = len(error.problems)
        say(f"{count} problem{'s' if count != 1 else ''}")
        raise typer.Exit(USAGE) from None
    if as_json:
        emit(
            {
                "valid": True,
                "problems": [],
                "warnings": list(settings.warnings),
                "config_sha256": settings.digest(),
                "rules_sha256": settings.rules().digest,
            }
        )
    for warning in settings.warnings:
        say(f"warning: {warning}")
    say(
        f"{file} is valid: {len(settings.tokens)} tokens, {len(settings.keys)} keys, "
        f"{len(settings.allow)} allow and {len(settings.deny)} deny rules"
    )
