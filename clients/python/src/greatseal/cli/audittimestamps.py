"""`audit timestamps`, which fetches them, and `verify timestamps`, which checks them offline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from greatseal.cli.session import JsonOption, LogKeyOption, say, session_of
from greatseal.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cryptography import x509

    from greatseal.checkpoint import Checkpoint
    from greatseal.note import VerifierKey
    from greatseal.timestamps import Stamped, VerifiedTimestamp

RootsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--tsa-root", help="Root certificate of a timestamp authority, PEM; may be repeated.", show_default=False
    ),
]


def timestamps(
    context: typer.Context,
    output: Annotated[
        Path | None, typer.Option(help="Write them here instead of to stdout.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Fetch the RFC 3161 timestamps over checkpoints, as JSON Lines; `verify timestamps` checks them offline."""
    session = session_of(context, as_json=json)
    with session.client() as client:
        lines = [stamped.line() for stamped in client.audit.timestamps()]
    if output is not None:
        from greatseal.files import write_whole

        write_whole(output, "".join(lines).encode())
        say(f"{len(lines)} timestamps written to {output}")
        if session.as_json:
            session.emit({"timestamps": len(lines), "file": str(output)})
        return
    sys.stdout.writelines(lines)


def verify_timestamps(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `audit timestamps` wrote.")],
    roots: RootsOption = None,
    log_key: LogKeyOption = "",
    json: JsonOption = False,
) -> None:
    """Verify timestamps offline: each is of a checkpoint of this log, by an authority under one of the roots."""
    session = session_of(context, as_json=json)
    from greatseal.profile import log_key_of, read_log_key
    from greatseal.timestamps import read_timestamps

    line = read_log_key(log_key) if log_key else session.profile().log_key
    if not line:
        message = "--log-key is missing: the log's verifier key, one line, from whoever runs the log (log.vkey)"
        raise UsageError(message)
    found = list(verified(read_timestamps(file), log_key_of(line), roots))
    if session.as_json:
        session.emit(
            {
                "verified": True,
                "timestamps": [
                    {
                        "authority": stamped.authority,
                        "size": proven.checkpoint.size,
                        "root": proven.checkpoint.root.hex(),
                        "time": proven.time.isoformat(),
                    }
                    for stamped, proven in found
                ],
            }
        )
        return
    rows = [
        (f"{proven.time:%Y-%m-%dT%H:%M:%SZ}", str(proven.checkpoint.size), stamped.authority)
        for stamped, proven in found
    ]
    session.table(("time", "size", "authority"), rows)
    say(f"OK: verified {len(found)} timestamps; `audit verify --timestamps` holds them against the log")


def verified(
    stamps: Iterable[Stamped], log_key: VerifierKey, roots: Sequence[Path] | None
) -> Iterable[tuple[Stamped, VerifiedTimestamp]]:
    """Verify each timestamp and give it with what it proves.

    Raises:
        UsageError: no root was given.
        TimestampInvalid: one does not verify.
    """
    from greatseal.timestamps import read_roots, verify

    if not roots:
        message = "--tsa-root is missing: the root certificate of the authority, PEM, from the authority itself"
        raise UsageError(message)
    trusted: list[x509.Certificate] = read_roots(roots)
    return ((stamped, verify(stamped, log_key, trusted)) for stamped in stamps)


def stamped_checkpoints(file: Path, log_key: VerifierKey, roots: Sequence[Path] | None) -> list[tuple[str, Checkpoint]]:
    """Return the checkpoints of a file's timestamps, each verified, with their sources."""
    from greatseal.timestamps import read_timestamps

    return [
        (f"the checkpoint that {stamped.authority} stamped at {proven.time:%Y-%m-%dT%H:%M:%SZ}", proven.checkpoint)
        for stamped, proven in verified(read_timestamps(file), log_key, roots)
    ]
