"""`tokens`: what holds the keys, whether it can be reached, what it can do."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from greatseal.cli.session import JsonOption, say, session_of

if TYPE_CHECKING:
    from greatseal.messages import Token

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The token: tokens/NAME or NAME.")]


def list_tokens(context: typer.Context, json: JsonOption = False) -> None:
    """List the tokens and whether each can be reached."""
    session = session_of(context, as_json=json)
    with session.client() as client:
        found = list(client.tokens.list())
    if session.as_json:
        session.emit({"tokens": [_described(token) for token in found]})
        return
    session.table(
        ["TOKEN", "STATE", "LABEL", "SERIAL", "MODEL", "SESSIONS", "KEYS"],
        [
            [
                token.name.removeprefix("tokens/"),
                token.state,
                token.label or "-",
                token.serial or "-",
                f"{token.manufacturer} {token.model}".strip() or "-",
                str(token.sessions or "-"),
                ", ".join(name.removeprefix("keys/") for name in token.keys) or "-",
            ]
            for token in found
        ],
    )
    for token in found:
        if token.state_detail:
            say(f"{token.name}: {token.state_detail}")


def show(context: typer.Context, name: NameArgument, json: JsonOption = False) -> None:
    """Show one token: what it says of itself, and which algorithms it lists and has accepted."""
    session = session_of(context, as_json=json)
    with session.client() as client:
        token = client.tokens.get(name)
    if session.as_json:
        session.emit(_described(token))
        return
    session.fields(
        [
            ("token", token.name),
            ("state", f"{token.state}: {token.state_detail}" if token.state_detail else token.state),
            ("label", token.label or "-"),
            ("serial", token.serial or "-"),
            ("model", f"{token.manufacturer} {token.model}".strip() or "-"),
            ("firmware", token.firmware or "-"),
            ("sessions", str(token.sessions or "-")),
            ("keys", ", ".join(token.keys) or "-"),
        ]
    )
    if token.capabilities:
        print()
        session.table(
            ["ALGORITHM", "LISTED BY THE TOKEN", "ACCEPTED FOR A KEY"],
            [
                [each.algorithm.value, "yes" if each.advertised else "no", "yes" if each.proven else "-"]
                for each in token.capabilities
            ],
        )


def _described(token: Token) -> dict[str, Any]:
    described = dataclasses.asdict(token)
    described["keys"] = list(token.keys)
    described["capabilities"] = [
        {"algorithm": each.algorithm.value, "advertised": each.advertised, "proven": each.proven}
        for each in token.capabilities
    ]
    return described
