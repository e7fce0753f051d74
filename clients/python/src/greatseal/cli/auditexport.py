"""`audit export`, and `audit verify --directory`, which needs no daemon."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from greatseal.cli.auditprogress import progress
from greatseal.cli.session import JsonOption, Session, say, session_of
from greatseal.errors import UsageError, VerificationFailed
from greatseal.files import write_whole

if TYPE_CHECKING:
    from greatseal.checkpoint import Checkpoint

TIMESTAMPS_NAME: Final = "timestamps.jsonl"
_MAX_KEY_BYTES: Final = 16 * 1024


def export(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to; an earlier export is brought up to date.")
    ],
    json: JsonOption = False,
) -> None:
    """Write the log as a directory of C2SP tiles, verified while it is written; an export that was cut off goes on."""
    session = session_of(context, as_json=json)
    profile = session.profile()
    if not profile.log_key:
        message = "exporting the log needs its verifier key: give --log-key, or log_key in the profile"
        raise UsageError(message)
    from greatseal.logdirectory import LogDirectory
    from greatseal.profile import log_key_of

    with session.client() as client, progress(session, 0, client.audit.checkpoint().size) as report:
        before, size = LogDirectory(directory, log_key_of(profile.log_key)).export(
            client, lambda done, _total: report(done)
        )
        stamps = "".join(stamped.line() for stamped in client.audit.timestamps())
    if stamps:
        write_whole(directory / TIMESTAMPS_NAME, stamps.encode())
    if session.as_json:
        session.emit({"directory": str(directory), "size": size, "new": size - before})
        return
    session.fields([("directory", str(directory)), ("entries", f"{size}, {size - before} of them new")])
    say("OK: every entry written is covered by the checkpoint")


def verify_directory(
    session: Session,
    directory: Path,
    keys: Path | None,
    log_key: str,
    checkpoints: Sequence[tuple[str, Checkpoint]],
    entries: Sequence[tuple[str, int, bytes]],
) -> None:
    """Verify an export: its hashes, what its entries say, the signatures, and what was kept from earlier.

    Raises:
        VerificationFailed: something is wrong.
    """
    from greatseal.logdirectory import LogDirectory
    from greatseal.logsignatures import SignatureCheck
    from greatseal.profile import log_key_of

    signatures = SignatureCheck(_pems(keys) if keys is not None else ())
    log = LogDirectory(directory, log_key_of(log_key))
    with progress(session, 0, log.checkpoint().size) as report:
        checkpoint, check = log.verify(lambda done, _total: report(done), signatures, checkpoints, entries)
    if session.as_json:
        session.emit(
            {
                "verified": True,
                "origin": checkpoint.origin,
                "size": checkpoint.size,
                "root": checkpoint.root.hex(),
                "checkpoints": len(checkpoints) + 1,
                "open_intents": check.open_intents,
                "counts": check.counts,
                "signatures_verified": signatures.checked,
                "signatures_not_checked": signatures.unchecked,
            }
        )
        return
    session.fields(
        [
            ("log", checkpoint.origin),
            ("entries", str(checkpoint.size)),
            ("root", checkpoint.root.hex()),
            ("checkpoints", f"{len(checkpoints) + 1} verified"),
            *((name, str(count)) for name, count in sorted(check.counts.items())),
            ("signatures", f"{signatures.checked} verified, {sum(signatures.unchecked.values())} not checked"),
            ("open intents", str(len(check.open_intents))),
        ]
    )
    for name, count in signatures.unchecked.items():
        say(f"not checked: {count} signatures by {name}, whose public key --keys does not hold")
    say("OK: every entry is covered by the checkpoint, and every intent has at most one outcome")


def _pems(directory: Path) -> list[bytes]:
    paths = sorted(directory.glob("*.pem"))
    if not paths:
        message = f"--keys {directory} holds no *.pem"
        raise UsageError(message)
    found = []
    for path in paths:
        with path.open("rb") as file:
            found.append(file.read(_MAX_KEY_BYTES + 1))
        if len(found[-1]) > _MAX_KEY_BYTES:
            message = f"{path} is over {_MAX_KEY_BYTES} bytes, more than any public key"
            raise VerificationFailed(message)
    return found
