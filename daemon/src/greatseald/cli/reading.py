"""The configuration, as the commands that work beside the daemon read it."""

from __future__ import annotations

import os
from pathlib import Path

from greatseald.cli.exits import USAGE, CommandFailed
from greatseald.config import ConfigError, Settings, load


def load_settings(config: Path) -> Settings:
    """Read the configuration with the environment's overrides, and keep the adapters' own log lines off stderr.

    Raises:
        CommandFailed: with every problem (2).
    """
    from greatseald.adapters import logs

    logs.configure("warning")
    try:
        return load(config, os.environ)
    except ConfigError as error:
        raise CommandFailed(USAGE, "\n".join(map(str, error.problems))) from error
