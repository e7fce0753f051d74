"""`whoami` and `keys`: who the daemon takes us for, and which keys we may use."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from greatseal.cli.key_names import complete_key
from greatseal.cli.session import JsonOption, say, session_of

if TYPE_CHECKING:
    from greatseal.messages import Key

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The key: keys/NAME or NAME.", autocompletion=complete_key)
]


def whoami(context: typer.Context, json: JsonOption = False) -> None:
    """Show who the daemon takes you for, and what you may do."""
    session = session_of(context, as_json=json)
    with session.client() as client:
        me = client.whoami()
    if session.as_json:
        grants = [
            {
                "policy_id": grant.policy_id,
                "actions": list(grant.actions),
                "keys": list(grant.keys),
                "payload_types": list(grant.payload_types),
            }
            for grant in me.grants
        ]
        session.emit(
            {
                "client": me.client,
                "certificate_serial": me.certificate_serial,
                "certificate_sha256": me.certificate_sha256,
                "certificate_expiry": me.certificate_expiry,
                "grants": grants,
                "server_version": me.server_version,
                "log_origin": me.log_origin,
            }
        )
        return
    session.fields(
        [
            ("client", me.client),
            ("certificate", f"serial {me.certificate_serial}, expires {me.certificate_expiry}"),
            ("log", me.log_origin),
            ("daemon", me.server_version),
        ]
    )
    if not me.grants:
        say("No rule allows you anything: ask the operator for an [[allow]] table with this client's name.")
        return
    print()
    session.table(
        ["RULE", "ACTIONS", "KEYS", "PAYLOAD TYPES"],
        [
            [
                grant.policy_id,
                ", ".join(grant.actions),
                ", ".join(grant.keys) or "-",
                ", ".join(grant.payload_types) or "-",
            ]
            for grant in me.grants
        ],
    )


def list_keys(context: typer.Context, json: JsonOption = False) -> None:
    """List the keys that you may read."""
    session = session_of(context, as_json=json)
    with session.client() as client:
        found = list(client.keys.list())
    if session.as_json:
        session.emit({"keys": [_described(key) for key in found]})
        return
    session.table(
        ["KEY", "STATE", "ALGORITHMS", "TOKEN", "ALLOWED"],
        [
            [key.name, key.state, _names(key), key.token.removeprefix("tokens/"), ", ".join(key.allowed_actions) or "-"]
            for key in found
        ],
    )
    if not found:
        say("No key that you may read: it takes the action readKeys on a key.")


def show(context: typer.Context, name: NameArgument, json: JsonOption = False) -> None:
    """Show one key."""
    session = session_of(context, as_json=json)
    with session.client() as client:
        key = client.keys.get(name)
    if session.as_json:
        session.emit(_described(key))
        return
    session.fields(
        [
            ("key", key.name),
            ("version", key.primary_version or "-"),
            ("state", f"{key.state}: {key.state_detail}" if key.state_detail else key.state),
            ("algorithms", _names(key)),
            ("token", key.token),
            ("spki sha256", key.spki_sha256.hex() or "-"),
            ("allowed", ", ".join(key.allowed_actions) or "-"),
        ]
    )


def public(
    context: typer.Context,
    name: NameArgument,
    output: Annotated[
        Path | None, typer.Option(help="Write the PEM here instead of to stdout.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print the public half of a key, PEM."""
    session = session_of(context, as_json=json)
    with session.client() as client:
        key = client.keys.public_key(name)
    if output is not None:
        from greatseal.files import write_whole

        write_whole(output, key.pem.encode())
        say(f"{key.key_version}: public key written to {output}")
    if session.as_json:
        session.emit(
            {
                "key_version": key.key_version,
                "pem": key.pem,
                "algorithms": [algorithm.value for algorithm in key.algorithms],
                "certificate_chain": [base64.b64encode(der).decode() for der in key.certificate_chain],
            }
        )
    elif output is None:
        sys.stdout.write(key.pem)


def _described(key: Key) -> dict[str, Any]:
    return {
        "name": key.name,
        "primary_version": key.primary_version,
        "token": key.token,
        "algorithms": [algorithm.value for algorithm in key.algorithms],
        "state": key.state,
        "state_detail": key.state_detail,
        "spki_sha256": key.spki_sha256.hex(),
        "allowed_actions": list(key.allowed_actions),
    }


def _names(key: Key) -> str:
    return ", ".join(algorithm.value for algorithm in key.algorithms)
