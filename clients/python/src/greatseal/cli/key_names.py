"""The names of keys, for a shell that completes: asked of the daemon within a second, or none and no word."""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

import typer

from greatseal.cli.session import quiet_grpc

_SECONDS: Final = 1.0
_MAX_NAMES: Final = 200


def complete_key(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of keys that begin so; nothing where anything at all goes wrong.

    Args:
        context: of the command that is being typed; the global options stand in its root.
        incomplete: what was typed so far, with `keys/` before it or without.
    """
    from greatseal.profile import NAMES, load

    given: dict[str, Any] = context.find_root().params
    settings = {name: value for name, value in given.items() if name in NAMES and name != "checkpoint_file"}
    quiet_grpc()
    try:
        from greatseal.client import Client

        with Client(load(given.get("profile"), settings)) as client:
            names = [key.name for key in islice(client.keys.list(timeout=_SECONDS), _MAX_NAMES)]
    except Exception:  # noqa: BLE001 - whoever presses the tab key wants names, not errors
        return []
    if not incomplete.startswith("keys/"):
        names = [name.removeprefix("keys/") for name in names]
    return [name for name in names if name.startswith(incomplete)]
