"""The command `greatseal`: what a client asks of a daemon, and what it verifies without one.

Each command imports what it needs when it is called, and each group its commands when one of them is
asked for, so that `greatseal --help` starts fast.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from greatseal.cli.doctor import doctor
from greatseal.cli.failures import report
from greatseal.cli.keys import whoami
from greatseal.cli.session import JsonOption, Session, session_of
from greatseal.errors import UsageError
from greatseal.version import VERSION

_HELP: Final = ("-h", "--help")


class _Commands(TyperGroup):
    """The root group: the one place where errors become exit codes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Answer `greatseal COMMAND --help` at once: reading our own options would load pydantic first."""
        command: Any = self
        for word in args:
            if word in _HELP and command is not self:
                print(command.get_help(ctx))
                ctx.exit()
            command = getattr(command, "commands", {}).get(word)
            if command is None:
                break
            ctx = type(ctx)(command, info_name=word, parent=ctx)
        return super().parse_args(ctx.find_root(), args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if hasattr(error, "format_message"):  # a usage error of typer's, which says it itself
                raise
            raise typer.Exit(report(error, as_json=session_of(ctx).as_json)) from None


class Shell(str, Enum):
    """The shells that complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


_Places = tuple[tuple[str, str, str], ...]
"""Commands of a group: the name, the module below this package, the function in it."""

_GROUPS: Final[dict[str, tuple[str, _Places]]] = {
    "keys": (
        "The keys that you may read.",
        (("list", "keys", "list_keys"), ("show", "keys", "show"), ("public", "keys", "public")),
    ),
    "tokens": (
        "The tokens that hold the keys: show them, take them out of service, put them back.",
        (
            ("list", "tokens", "list_tokens"),
            ("show", "tokens", "show"),
            ("drain", "tokens", "drain"),
            ("quarantine", "tokens", "quarantine"),
            ("resume", "tokens", "resume"),
        ),
    ),
    "sign": (
        "Have something signed.",
        (
            ("model", "models", "sign_model_command"),
            ("models", "many", "sign_models_command"),
            ("digest", "sign", "digest"),
            ("statement", "sign", "statement"),
        ),
    ),
    "verify": (
        "Verify what was signed, offline.",
        (
            ("model", "models", "verify_model_command"),
            ("entry", "auditprove", "verify_entry"),
            ("timestamps", "audittimestamps", "verify_timestamps"),
        ),
    ),
    "audit": (
        "Read and check the audit log.",
        (
            ("list", "auditlist", "list_entries"),
            ("tail", "auditlist", "tail"),
            ("show", "audit", "show"),
            ("checkpoint", "audit", "checkpoint"),
            ("prove", "auditprove", "prove"),
            ("verify", "auditverify", "verify"),
            ("export", "auditexport", "export"),
            ("timestamps", "audittimestamps", "timestamps"),
            ("reconcile", "auditreconcile", "reconcile"),
        ),
    ),
    "receipt": (
        "Receipts: the evidence that a signature stands in the log.",
        (("verify", "receipts", "verify"),),
    ),
    "witness": (
        "Be a witness of somebody's log.",
        (("init", "witness", "init"), ("serve", "witness", "serve")),
    ),
}


class _Group(TyperGroup):
    """A group that imports its commands when one of them, or their list, is asked for."""

    _known: dict[str, Any] | None = None

    @property
    def commands(self) -> dict[str, Any]:
        """The commands by name."""
        if self._known is None:
            holder = typer.Typer(rich_markup_mode=None)
            holder.callback()(_nothing)
            _, places = _GROUPS[str(self.name)]
            for name, module, function in places:
                holder.command(name)(getattr(import_module(f"{__name__}.{module}"), function))
            built: Any = typer.main.get_command(holder)
            self._known = built.commands
        return self._known

    @commands.setter
    def commands(self, _none: object) -> None:
        """What typer knows of at the beginning: nothing."""


def _nothing() -> None:
    """Make a group of a single command, which typer would take for the command itself."""


app = typer.Typer(
    name="greatseal",
    cls=_Commands,
    help="Have models, statements and digests signed by keys in hardware, and verify what was signed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": list(_HELP)},
)
app.command()(whoami)
app.command()(doctor)
for _name, (_description, _) in _GROUPS.items():
    app.add_typer(typer.Typer(cls=_Group, help=_description, no_args_is_help=True, rich_markup_mode=None), name=_name)


@app.callback()
def global_options(  # each parameter is an option
    context: typer.Context,
    profile: Annotated[
        Path | None, typer.Option(help="The profile's file; GREATSEAL_PROFILE otherwise.", show_default=False)
    ] = None,
    address: Annotated[str | None, typer.Option(help="The daemon, host:port.", show_default=False)] = None,
    ca_cert: Annotated[
        str | None, typer.Option(help="Who may have issued the daemon's certificate, PEM.", show_default=False)
    ] = None,
    client_cert: Annotated[str | None, typer.Option(help="Our certificate, PEM.", show_default=False)] = None,
    client_key: Annotated[str | None, typer.Option(help="Its key, PEM, mode 0600.", show_default=False)] = None,
    server_name: Annotated[
        str | None, typer.Option(help="The name expected in the daemon's certificate.", show_default=False)
    ] = None,
    log_key: Annotated[
        str | None, typer.Option(help="The log's verifier key, or a file that holds it.", show_default=False)
    ] = None,
    checkpoint_file: Annotated[
        str | None,
        typer.Option(help="Remember the last checkpoint here; refuse a log that went back.", show_default=False),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds that a call may take, 30 by default.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="Plain text; NO_COLOR does the same.")] = False,
) -> None:
    """Take the options that stand before the command."""
    context.obj = Session(
        profile_path=profile,
        settings={
            "address": address,
            "ca_cert": ca_cert,
            "client_cert": client_cert,
            "client_key": client_key,
            "server_name": server_name,
            "log_key": log_key,
            "checkpoint_file": checkpoint_file,
            "timeout": timeout,
        },
        as_json=json,
        color=not no_color and not os.environ.get("NO_COLOR"),
    )


@app.command()
def version(context: typer.Context, json: JsonOption = False) -> None:
    """Print the version of this client."""
    session = session_of(context, as_json=json)
    if session.as_json:
        session.emit({"version": VERSION})
    else:
        print(VERSION)


@app.command()
def completion(
    context: typer.Context,
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
    json: JsonOption = False,
) -> None:
    """Print the script that completes greatseal's commands, options and key names in a shell."""
    from typer._completion_shared import get_completion_script

    script = get_completion_script(prog_name="greatseal", complete_var="_GREATSEAL_COMPLETE", shell=shell.value)
    session = session_of(context, as_json=json)
    if session.as_json:
        session.emit({"shell": shell.value, "script": script})
    else:
        print(script)


def main() -> None:
    """Run the command; the process ends with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal's encoding may lack what a model's name holds; that is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    as_json = _json_wanted(sys.argv[1:])
    try:
        if as_json:
            sys.exit(typer.main.get_command(app).main(standalone_mode=False))
        app()
    except KeyboardInterrupt as error:  # while it was starting or ending
        raise SystemExit(report(error, as_json=as_json)) from None
    except typer.Abort:
        raise SystemExit(report(KeyboardInterrupt(), as_json=as_json)) from None
    except Exception as error:  # noqa: BLE001 - whatever it is, it ends as JSON and an exit code
        say_usage = getattr(error, "format_message", None)  # a usage error of typer's
        if say_usage is None:
            raise SystemExit(report(error, as_json=as_json)) from None
        raise SystemExit(report(UsageError(say_usage()), as_json=as_json)) from None


def _json_wanted(arguments: Sequence[str]) -> bool:
    """Whether the output is for a program, told before the arguments are parsed, for that may fail."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options
