"""`doctor`: what stands between this client and a signature, on one page."""

from __future__ import annotations

import typer

from greatseal.cli.session import JsonOption, session_of


def doctor(context: typer.Context, json: JsonOption = False) -> None:
    """Check address, TLS, identity, keys, clock, versions and log, and say what to do."""
    session = session_of(context, as_json=json)
    from greatseal.cli.examination import examine
    from greatseal.cli.findings import described, exit_code, show

    found = examine(session)
    if session.as_json:
        session.emit(described(found))
    else:
        show(session, found)
    raise typer.Exit(exit_code(found))
