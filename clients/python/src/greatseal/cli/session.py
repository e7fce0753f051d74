"""What every command shares: the global options, the client they lead to, and where output goes.

Data goes to stdout, prose to stderr. With `--json` the data is one JSON object, and so is an error,
on stderr. Nothing ever asks a question.

    def whoami(context: typer.Context) -> None:
        session = session_of(context)
        with session.client() as client:
            me = client.whoami()
        session.emit({"client": me.client})
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TextIO

import typer

from greatseal.text import clean, one_line

if TYPE_CHECKING:
    from greatseal.client import Client
    from greatseal.errors import DaemonError
    from greatseal.profile import Profile


@dataclass
class Session:
    """The global options of one command.

    Attributes:
        profile_path: the profile's file; None leaves it to `GREATSEAL_PROFILE`.
        settings: those of the profile's keys that were given as options.
        as_json: whether programs read the output.
        color: whether colour may be used on a terminal.
    """

    profile_path: Path | None = None
    settings: Mapping[str, str | float | None] = field(default_factory=dict)
    as_json: bool = False
    color: bool = True
    _told: bool = field(default=False, init=False)

    def profile(self) -> Profile:
        """Read the profile.

        Raises:
            ProfileError: as `greatseal.profile.load`.
        """
        from greatseal.profile import load

        return load(self.profile_path, self.settings)

    def client(self, *, public_keys: Sequence[bytes] = ()) -> Client:
        """Open a client; a context manager.

        Raises:
            ProfileError: the profile lacks something or names a file that cannot be used.
        """
        quiet_grpc()
        from greatseal.client import Client

        return Client(self.profile(), public_keys=public_keys, on_retry=self._retrying)

    def emit(self, data: Mapping[str, Any]) -> None:
        """Give programs one JSON object on stdout, ASCII whatever is in it."""
        print(json.dumps(data))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show rows on stdout: aligned for people at a terminal, tab-separated with a header for programs."""
        if not _for_people(sys.stdout):
            for row in [columns, *rows]:
                print("\t".join(map(one_line, row)))
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            # Text, not str: a cell is foreign, and rich would take [brackets] for markup.
            table.add_row(*(Text(one_line(cell), style=_STYLES.get(cell, "")) for cell in row))
        colored = self.colored(sys.stdout)
        Console(no_color=not colored, force_terminal=colored or None, highlight=False).print(table)

    def colored(self, stream: TextIO) -> bool:
        """Whether to write colour: never under `NO_COLOR` or `--no-color`, else on terminals and under `FORCE_COLOR`."""
        if not self.color:
            return False
        return _forced() or (stream.isatty() and os.environ.get("TERM") != "dumb")

    def fields(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Show named values on stdout, one a line."""
        width = max(len(name) for name, _ in pairs) + 1
        for name, value in pairs:
            print(f"{name + ':':<{width}} {one_line(value)}")

    def _retrying(self, seconds: float, error: DaemonError) -> None:
        # For programs stderr holds nothing but the error, if there is one.
        if not self._told and not self.as_json:
            self._told = True
            say(f"{error.message}\nwaiting, and trying again until the time is over ({seconds:.1f} s to the next try)")


JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to stdout, as the global option does.")]
LogKeyOption = Annotated[
    str, typer.Option("--log-key", help="The log's verifier key, or a file that holds it.", show_default=False)
]


def session_of(context: typer.Context, *, as_json: bool = False) -> Session:
    """Return the session that the global options made; `as_json` is the command's own `--json`."""
    session = context.find_object(Session) or Session()
    session.as_json = session.as_json or as_json
    return session


_STYLES: Final = {
    "ENABLED": "green",
    "DISABLED": "yellow",
    "UNAVAILABLE": "red",
    "HALTED": "red",
    "READY": "green",
    "UNREACHABLE": "red",
    "LOCKED": "red",
    "DRAINING": "yellow",
    "DRAINED": "yellow",
    "QUARANTINED": "yellow",
    "denied": "red",
    "failed": "red",
    "unknown": "yellow",
    "signed": "green",
}
"""Cells that say how something is, and their colours."""


def _forced() -> bool:
    return os.environ.get("FORCE_COLOR", "") not in {"", "0", "false"}


def _for_people(stream: TextIO) -> bool:
    return stream.isatty() or _forced()


def say(text: str = "") -> None:
    """Tell people something, on stderr."""
    print(clean(text), file=sys.stderr)


def quiet_grpc() -> None:
    """Keep gRPC's own log off stderr, where errors for people go; read once, before grpc is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
