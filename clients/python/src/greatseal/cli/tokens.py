"""`tokens`: what holds the keys, whether it can be reached, what it can do; taking it out of service."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from greatseal.cli.session import JsonOption, say, session_of

if TYPE_CHECKING:
    from greatseal.messages import Token

ReasonOption = Annotated[
    str, typer.Option(help="Why, one line; it stands in the log and where the token is shown.", show_default=False)
]
RequestIdOption = Annotated[
    str, typer.Option(help="A UUID; the same again changes nothing more. A new one by default.", show_default=False)
]
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
        ["TOKEN", "STATE", "LABEL", "SERIAL", "MODEL", "SESSIONS", "QUEUE", "BREAKER", "LAST SIGNED", "KEYS"],
        [
            [
                token.name.removeprefix("tokens/"),
                token.state,
                token.label or "-",
                token.serial or "-",
                f"{token.manufacturer} {token.model}".strip() or "-",
                str(token.sessions or "-"),
                str(token.waiting + token.in_flight),
                token.breaker or "-",
                _last_signed(token),
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
            ("queue", f"{token.waiting} waiting, {token.in_flight} in its host"),
            ("speed", _speed(token)),
            ("breaker", token.breaker or "-"),
            ("last signed", _last_signed(token)),
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


def drain(
    context: typer.Context,
    name: NameArgument,
    reason: ReasonOption = "",
    request_id: RequestIdOption = "",
    json: JsonOption = False,
) -> None:
    """Have a token finish what it has and take nothing new; then its host lets go of the device."""
    _change(context, "drain", name, reason, request_id, as_json=json)


def quarantine(
    context: typer.Context,
    name: NameArgument,
    reason: ReasonOption = "",
    request_id: RequestIdOption = "",
    json: JsonOption = False,
) -> None:
    """Take a token out of service at once; what waits for it goes to other tokens that hold the key, or fails."""
    _change(context, "quarantine", name, reason, request_id, as_json=json)


def resume(
    context: typer.Context,
    name: NameArgument,
    reason: ReasonOption = "",
    request_id: RequestIdOption = "",
    json: JsonOption = False,
) -> None:
    """Put a drained or quarantined token back into service."""
    _change(context, "resume", name, reason, request_id, as_json=json)


def _change(context: typer.Context, verb: str, name: str, reason: str, request_id: str, *, as_json: bool) -> None:
    session = session_of(context, as_json=as_json)
    with session.client() as client:
        token = getattr(client.tokens, verb)(name, reason=reason, request_id=request_id)
    if session.as_json:
        session.emit(_described(token))
        return
    session.fields([("token", token.name), ("state", token.state)])
    if token.state_detail:
        say(f"{token.name}: {token.state_detail}")


def _last_signed(token: Token) -> str:
    if not token.last_success:
        return "-"
    return datetime.fromtimestamp(token.last_success, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _speed(token: Token) -> str:
    return f"{token.operation_seconds * 1e3:.3g} ms an operation" if token.operation_seconds else "-"


def _described(token: Token) -> dict[str, Any]:
    described = dataclasses.asdict(token)
    described["keys"] = list(token.keys)
    described["capabilities"] = [
        {"algorithm": each.algorithm.value, "advertised": each.advertised, "proven": each.proven}
        for each in token.capabilities
    ]
    return described
