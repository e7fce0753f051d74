"""A token host's process: it alone loads the vendor's library, reads the PIN, logs in and signs.

Two ways to run it, with the same frames:

    python -m greatseald.adapters.tokens.host --fd N --parent PID          started by the front
    python -m greatseald.adapters.tokens.host --config FILE --token NAME   a unit of its own, on `host_socket`;
                                                                           `greatseald host NAME` is the same
                                              [--front USER]

Started by the front it serves the inherited socket and ends with it. As a unit, a main process
that never loads the vendor's library (`unit.py`) holds the listening socket and keeps one worker
alive; `--front` names the only user that may connect (default: the unit's own).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> None:
    """Process entry."""
    parser = argparse.ArgumentParser(prog="greatseald-token-host", description="Hold one token and sign with it.")
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--listen-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--front-uid", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--config", type=Path, metavar="FILE", help="the daemon's configuration")
    parser.add_argument("--token", metavar="NAME", help="the token, which has a host_socket there")
    parser.add_argument(
        "--front", metavar="USER", default="", help="the only user that may connect (default: one's own)"
    )
    chosen = parser.parse_args(arguments)
    if chosen.fd is not None and chosen.parent is not None:
        from greatseald.adapters.tokens.worker import run_worker

        run_worker(chosen.fd, chosen.parent, chosen.listen_fd, chosen.front_uid)
        return
    if chosen.config is None or not chosen.token:
        parser.error("--config and --token are both needed")
    from greatseald.adapters.tokens.unit import run_unit

    raise SystemExit(run_unit(chosen.config, chosen.token, chosen.front))


if __name__ == "__main__":
    main()
