"""`audit reconcile`: the ledgers of token hosts against the log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from greatseal.cli.auditprogress import progress
from greatseal.cli.auditverify import beginning
from greatseal.cli.session import JsonOption, Session, say, session_of
from greatseal.errors import UsageError, VerificationFailed

if TYPE_CHECKING:
    from greatseal.client import Client
    from greatseal.ledger import LedgerFile
    from greatseal.logcheck import LogCheck
    from greatseal.reconcile import Reconciliation

_COVER_SECONDS: Final = 5.0
"""How long to wait for the checkpoint that covers an intent which the ledger has already."""
_LOOK_SECONDS: Final = 0.2
_SHOWN: Final = 50
_LIMITS: Final = (
    "A ledger is its host's own word, and these tokens' own counters are not read: what a token signed without its "
    "host, and records cut from the end whose outcomes are not in the log, do not show here."
)


def reconcile(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Option("--ledger", help="A token host's ledger; repeat for each token.", show_default=False),
    ],
    directory: Annotated[
        Path | None,
        typer.Option("--directory", help="Compare with this export of the log, offline.", show_default=False),
    ] = None,
    serials: Annotated[
        list[str] | None,
        typer.Option(
            "--serial",
            help="Look only for what the token with this serial number signed; may be repeated.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare what token hosts let their tokens sign with what the log says, and name each disagreement."""
    session = session_of(context, as_json=json)
    profile = session.profile()
    if not profile.log_key:
        message = "comparing with the log needs its verifier key: give --log-key, or log_key in the profile"
        raise UsageError(message)
    if len({path.resolve() for path in files}) != len(files):
        message = "a ledger is given twice"
        raise UsageError(message)
    from greatseal.ledger import LedgerFile
    from greatseal.logcheck import LogCheck
    from greatseal.profile import log_key_of
    from greatseal.reconcile import Reconciliation

    key = log_key_of(profile.log_key)
    with contextlib.ExitStack() as stack:

        def opened() -> list[LedgerFile]:
            return [stack.enter_context(LedgerFile.open(path)) for path in files]

        if directory is not None:
            from greatseal.logdirectory import LogDirectory

            log = LogDirectory(directory, key)
            with progress(session, 0, log.checkpoint().size) as report:
                checkpoint, _ = log.verify(lambda done, _total: report(done))
            ledgers = opened()
            comparison = Reconciliation(ledgers, serials or ())
            for index, data in log.entries(checkpoint.size):
                comparison.add(index, data)
            comparison.finish(whole=False)
            size = checkpoint.size
        else:
            client = stack.enter_context(session.client())
            newest = client.audit.checkpoint()  # whatever is signed later may miss in the ledger
            pruned = client.audit.pruned_size()
            ledgers = opened()
            comparison = Reconciliation(ledgers, serials or (), newest.size, pruned)
            size = _covering(client, max(ledger.highest_intent() for ledger in ledgers))
            with progress(session, pruned, size) as report:
                _walk(client, comparison, LogCheck(key.name, beginning(client, pruned, newest)), size, report)
            comparison.finish(whole=True)
    _tell(session, comparison, ledgers, size, pruned if directory is None else 0)


def _covering(client: Client, index: int) -> int:
    """The newest checkpoint's size, once it covers an index, or after a few seconds."""
    deadline = time.monotonic() + _COVER_SECONDS
    while True:
        size = client.audit.checkpoint().size
        if size > index or time.monotonic() > deadline:
            return size
        time.sleep(_LOOK_SECONDS)


def _walk(
    client: Client, comparison: Reconciliation, check: LogCheck, size: int, report: Callable[[int], None]
) -> None:
    """Feed the log to the comparison, and hold it against a checkpoint that the log's key signed."""
    from greatseal import tlog

    for entry in islice(client.audit.entries(check.size), size - check.size):
        check.add(entry.index, entry.data)
        comparison.add(entry.index, entry.data)
        report(check.size)
    newest = client.audit.checkpoint()
    hashes = client.audit.consistency(size, newest.size).hashes if 0 < check.size == size < newest.size else ()
    if check.size != size:
        message = f"entry {check.size} is missing: the checkpoint covers {size} entries"
        raise VerificationFailed(message)
    tlog.verify_consistency(size, newest.size, hashes, check.root(), newest.root)
    if check.problem is not None:
        message = (
            f"the log is bad from entry {check.problem.index} on: entry {check.problem.index} {check.problem.message}"
        )
        raise VerificationFailed(message)


def _tell(session: Session, comparison: Reconciliation, ledgers: Sequence[LedgerFile], size: int, pruned: int) -> None:
    torn = [ledger for ledger in ledgers if ledger.torn]
    if session.as_json:
        session.emit(
            {
                "agree": not comparison.total,
                "entries": size,
                "pruned": pruned,
                "ledgers": [
                    {
                        "path": str(ledger.path),
                        "records": ledger.count,
                        "last_sequence": ledger.last,
                        "serials": sorted(seen),
                        "torn_bytes": ledger.torn,
                    }
                    for ledger, seen in zip(ledgers, comparison.serials_of, strict=True)
                ],
                "outcomes_matched": comparison.matched,
                "records_without_signature": comparison.without_signature,
                "records_not_judged": comparison.unjudged,
                "disagreements": comparison.total,
                "findings": [finding._asdict() for finding in comparison.findings],
                "limits": _LIMITS,
            }
        )
    else:
        session.fields(
            [
                ("log", f"{size} entries"),
                *(
                    (
                        "ledger",
                        f"{ledger.path}: {ledger.count} records, token {', '.join(sorted(seen)) or 'not in the log'}",
                    )
                    for ledger, seen in zip(ledgers, comparison.serials_of, strict=True)
                ),
                ("matched", f"{comparison.matched} outcomes"),
                ("no signature", f"{comparison.without_signature} records"),
            ]
        )
        for finding in comparison.findings[:_SHOWN]:
            say(f"{finding.kind}: {f'{finding.ledger}: ' if finding.record else ''}{finding.message}")
        if comparison.total > _SHOWN:
            say(f"and {comparison.total - _SHOWN} more; --json has the first {len(comparison.findings)}")
        for ledger in torn:
            say(f"{ledger.path}: its last record is torn, as a host that is writing or was stopped leaves it")
        if comparison.unjudged and pruned:
            say(
                f"{comparison.unjudged} records are for entries below {pruned}, which were dropped from the daemon's store: "
                "compare them with --directory and the export that holds them"
            )
        elif comparison.unjudged:
            say(f"{comparison.unjudged} records are newer than this export: export again to have them compared")
        say(_LIMITS)
    if comparison.total:
        message = f"ledger and log disagree: {comparison.total} {'findings' if comparison.total > 1 else 'finding'}, the first: {comparison.findings[0].message}"
        raise VerificationFailed(message)
    if not session.as_json:
        judged = "every record that was compared" if comparison.unjudged else "every record"
        say(f"OK: {judged} has its intent, and every signature in the log has its record")
