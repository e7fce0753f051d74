"""The command `greatseald`: what needs the machine that the keys' daemon runs on.

Everything else is the client's, over the network. Each command imports what it needs when it is
called, so that `greatseald --help` starts fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from greatseald.cli.exits import emit, reporting
from greatseald.cli.options import ConfigOption, JsonOption
from greatseald.cli.token import tokens
from greatseald.cli.yubikey import yubikeys

app = typer.Typer(
    name="greatseald",
    help="Greatseal's signing daemon: keys stay in their tokens, every signature stands in a verifiable log.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,  # they print local variables, which may be secrets
    context_settings={"help_option_names": ["-h", "--help"]},
)
clients = typer.Typer(
    help="Certificates and profiles of clients, from the local PKI that init made.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(clients, name="client")
app.add_typer(tokens, name="token")
app.add_typer(yubikeys, name="yubikey")
keys = typer.Typer(help="Keys of a daemon that runs.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(keys, name="key")
stores = typer.Typer(
    help="The database of the audit log: its schema, its versions, its roles.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(stores, name="store")

logs = typer.Typer(help="The audit log itself.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(logs, name="log")


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What to make; it must not exist.")],
    listen: Annotated[str, typer.Option(help="Address that clients reach, host:port.")] = "127.0.0.1:8443",
    metrics_listen: Annotated[
        str, typer.Option(help="Loopback address of metrics and health, host:port; empty for none.")
    ] = "127.0.0.1:0",
    origin: Annotated[str, typer.Option(help="Name of the log, host/path; it never changes.")] = "greatseal.local/log",
    trust_domain: Annotated[str, typer.Option(help="SPIFFE trust domain of the clients.")] = "greatseal.local",
    module: Annotated[
        Path | None, typer.Option(help="SoftHSM's PKCS#11 module; looked for where systems put it.", show_default=False)
    ] = None,
    server_name: Annotated[
        list[str] | None,
        typer.Option(help="Further DNS name or IP address of the server; may be repeated.", show_default=False),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make a complete installation: configuration, PKI, log key, and a SoftHSM token with two keys."""
    from greatseald.cli.init import initialise

    with reporting():
        initialise(
            directory,
            listen=listen,
            metrics_listen=metrics_listen,
            origin=origin,
            trust_domain=trust_domain,
            module=module,
            server_names=server_name or [],
            as_json=json,
        )


@app.command("check-config")
def check_config(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The configuration to check.")],
    json: JsonOption = False,
) -> None:
    """Check a configuration as serve would: every problem with its file, line and key."""
    from greatseald.cli.check_config import check_config as check

    with reporting():
        check(file, as_json=json)


@app.command()
def serve(
    config: ConfigOption,
    listen: Annotated[
        str,
        typer.Option(help="Address that clients reach, host:port; wins over the configuration.", show_default=False),
    ] = "",
) -> None:
    """Run the daemon. It says on stderr when it is ready, and ends on SIGTERM; SIGHUP reads rules and certificates again."""
    from greatseald.cli.serve import serve as run

    with reporting():
        run(config, listen=listen)


@app.command()
def reload(config: ConfigOption, json: JsonOption = False) -> None:
    """Have the running daemon read rules and certificates again, as SIGHUP does, and say what took effect."""
    from greatseald.cli.running import reload as ask

    with reporting():
        ask(config, as_json=json)


@app.command()
def host(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="The token, which has a host_socket.")],
    config: ConfigOption,
    front: Annotated[
        str, typer.Option(metavar="USER", help="The only user that may connect, name or number; without it one's own.")
    ] = "",
) -> None:
    """Run the host of one token as a unit of its own: it reads the PIN and signs; `serve` never does."""
    from greatseald.adapters.tokens.unit import run_unit

    raise typer.Exit(run_unit(config, token, front))


@keys.command("release")
def key_release(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The halted key.")],
    config: ConfigOption,
    reason: Annotated[str, typer.Option(help="Why it may sign again; it stands in the log.")] = "",
    json: JsonOption = False,
) -> None:
    """Put a key back to work that was halted, once you know why its token gave a wrong answer."""
    from greatseald.cli.running import release_key

    with reporting():
        release_key(config, name, reason=reason, as_json=json)


@clients.command("add")
def client_add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The client; its SPIFFE id ends with it.")],
    config: ConfigOption,
    actions: Annotated[
        list[str] | None,
        typer.Option(help="What it may do, e.g. sign,readKeys; without it: nothing but whoami.", show_default=False),
    ] = None,
    keys: Annotated[list[str] | None, typer.Option(help="On which keys, e.g. release.", show_default=False)] = None,
    payload_types: Annotated[
        list[str] | None,
        typer.Option(help="Payload types it may have signed; in-toto statements otherwise.", show_default=False),
    ] = None,
    days: Annotated[int, typer.Option(help="Days until the certificate expires, at most 825.")] = 90,
    json: JsonOption = False,
) -> None:
    """Issue a client certificate and write its profile; with --actions, allow it something."""
    from greatseald.cli.client import add

    with reporting():
        add(
            name,
            config,
            actions=actions or [],
            keys=keys or [],
            payload_types=payload_types or [],
            days=days,
            as_json=json,
        )


OwnerOption = Annotated[
    str,
    typer.Option(
        "--as",
        metavar="URL",
        help="URL of the role that owns the schema; the configuration's otherwise. No password in it.",
    ),
]
OwnerPasswordOption = Annotated[
    Path | None,
    typer.Option("--as-password-file", help="File of mode 0600 with that role's password.", show_default=False),
]
FrontOption = Annotated[
    str,
    typer.Option("--front-role", help="The daemons' role, which gets its rights; the user of [store] url otherwise."),
]
ReaderOption = Annotated[str, typer.Option("--reader-role", help="A role that may read and nothing else.")]


@stores.command("init")
def store_init(
    config: ConfigOption,
    owner: OwnerOption = "",
    owner_password: OwnerPasswordOption = None,
    front_role: FrontOption = "",
    reader_role: ReaderOption = "",
    json: JsonOption = False,
) -> None:
    """Make the schema in an empty database, and give the daemons' role its rights and no others."""
    from greatseald.cli.store import prepare

    with reporting():
        prepare(config, owner, owner_password, front=front_role, reader=reader_role, must_be_empty=True, as_json=json)


@stores.command("migrate")
def store_migrate(
    config: ConfigOption,
    owner: OwnerOption = "",
    owner_password: OwnerPasswordOption = None,
    front_role: FrontOption = "",
    reader_role: ReaderOption = "",
    json: JsonOption = False,
) -> None:
    """Bring an older schema to this version while no daemon runs, and give the roles their rights again."""
    from greatseald.cli.store import prepare

    with reporting():
        prepare(config, owner, owner_password, front=front_role, reader=reader_role, must_be_empty=False, as_json=json)


@stores.command("status")
def store_status(config: ConfigOption, json: JsonOption = False) -> None:
    """Say what the database holds and which fronts run on it."""
    from greatseald.cli.store import status

    with reporting():
        status(config, as_json=json)


@stores.command("sql")
def store_sql(
    front_role: Annotated[str, typer.Option("--front-role", help="The daemons' role.")] = "greatseal_front",
    reader_role: ReaderOption = "",
) -> None:
    """Write the SQL of init to stdout, for a database administrator who runs it by hand."""
    from greatseald.cli.store import write_sql

    with reporting():
        write_sql(front_role, reader_role)


@logs.command("new-origin")
def log_new_origin(
    origin: Annotated[str, typer.Argument(metavar="ORIGIN", help="Name of the new log, host/path; it never changes.")],
    config: ConfigOption,
    closing: Annotated[
        str, typer.Option(metavar="OLD", help="The origin of the log that ends: to be sure that this is meant.")
    ] = "",
    reason: Annotated[str, typer.Option(help="Why; it stands in the new log's first entry.")] = "",
    old_store: Annotated[
        str, typer.Option("--old-store", metavar="URL", help="With PostgreSQL: the old log's database.")
    ] = "",
    json: JsonOption = False,
) -> None:
    """End a log that cannot be gone on with, and begin another one that names it, while no daemon runs."""
    from greatseald.cli.neworigin import new_origin

    with reporting():
        new_origin(config, origin, old_origin=closing, reason=reason, old_store=old_store, as_json=json)


@stores.command("compact")
def store_compact(config: ConfigOption, json: JsonOption = False) -> None:
    """Give the space of pruned entries in an SQLite log back to the file system, while no daemon runs."""
    from greatseald.cli.store import compact

    with reporting():
        compact(config, as_json=json)


@logs.command("prune")
def log_prune(
    config: ConfigOption,
    exported: Annotated[
        Path, typer.Option("--exported", metavar="DIR", help="A whole export of the log; it is verified first.")
    ],
    before: Annotated[
        int | None, typer.Option("--before", metavar="INDEX", min=1, help="Drop the entries below.", show_default=False)
    ] = None,
    older_than: Annotated[
        int | None,
        typer.Option(
            "--older-than", metavar="DAYS", min=1, help="Drop the entries that are older.", show_default=False
        ),
    ] = None,
    owner: OwnerOption = "",
    owner_password: OwnerPasswordOption = None,
    json: JsonOption = False,
) -> None:
    """Drop entries that a verified export holds from the running daemon's store; the log says so first."""
    from greatseald.cli.prune import prune

    with reporting():
        prune(config, exported, before, older_than, owner, owner_password, as_json=json)


@logs.command("reindex")
def log_reindex(config: ConfigOption, json: JsonOption = False) -> None:
    """Build the search index anew from the log; searches read the log until it is there."""
    from greatseald.cli.running import reindex

    with reporting():
        reindex(config, as_json=json)


@app.command()
def backup(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The copy to write; it must not exist.")],
    config: ConfigOption,
    json: JsonOption = False,
) -> None:
    """Write a consistent copy of the audit log's store, while the daemon runs or not."""
    from greatseald.cli.backup import make_backup

    with reporting():
        make_backup(config, path, as_json=json)


@app.command()
def restore(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A copy that backup made.")],
    config: ConfigOption,
    replace: Annotated[
        bool, typer.Option("--replace", help="Set an existing store aside; nothing is deleted.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Put a copy of the audit log's store in place, while the daemon does not run."""
    from greatseald.cli.backup import restore_backup

    with reporting():
        restore_backup(config, path, replace=replace, as_json=json)


@app.command()
def version(json: JsonOption = False) -> None:
    """Say which version this is."""
    from importlib.metadata import version as installed

    with reporting():
        if json:
            emit({"greatseald": installed("greatseald"), "greatseal": installed("greatseal")})
        else:
            print(f"greatseald {installed('greatseald')}")
