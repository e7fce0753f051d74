"""`greatseald serve`: run the daemon."""

from __future__ import annotations

import sys
from pathlib import Path

from greatseald.bootstrap import StartRefused
from greatseald.bootstrap import serve as run_daemon
from greatseald.cli.exits import USAGE, CommandFailed
from greatseald.config import ConfigError


def serve(config: Path, *, listen: str = "") -> None:
    """Run the daemon until a signal ends it, then leave with its exit code.

    Raises:
        CommandFailed: the configuration has problems (2), an address, token store or file cannot be
            used (5), or the log is not what it was (6).
    """
    try:
        code = run_daemon(config, listen)
    except ConfigError as error:
        problems = "\n".join(f"  {problem}" for problem in error.problems)
        raise CommandFailed(USAGE, f"the configuration cannot be used:\n{problems}") from error
    except StartRefused as error:
        raise CommandFailed(error.exit_code, str(error)) from error
    sys.exit(code)
