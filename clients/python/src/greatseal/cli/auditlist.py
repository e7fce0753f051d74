"""`audit list` and `audit tail`: entries that were, and entries as they come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Annotated, Final

import typer

from greatseal.cli import auditview
from greatseal.cli.auditfilter import (
    CallerOption,
    DigestOption,
    KeyOption,
    ModelOption,
    ResultOption,
    SinceOption,
    TypeOption,
    UntilOption,
    entry_filter,
)
from greatseal.cli.session import JsonOption, Session, say, session_of
from greatseal.errors import ConnectionRefused, DaemonNotRunning, DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    from greatseal.cli.auditview import Shown
    from greatseal.client import Client
    from greatseal.logtail import LogTail
    from greatseal.messages import EntryFilter

_MOST_HELD: Final = 100_000
_PAGE: Final = 1000
_REFUSALS: Final = 5
_CALL_SECONDS: Final = 5.0
"""A tail looks again soon; nobody waits for one call of it."""
RawOption = Annotated[
    bool, typer.Option("--raw", help="JSON Lines with each entry's exact bytes (base64) and leaf hash.")
]


def list_entries(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=0, max=_MOST_HELD, help="At most so many; 0 for all.")] = 50,
    start: Annotated[
        int | None,
        typer.Option("--from", min=0, help="From this index on; the newest otherwise.", show_default=False),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Newest first.")] = False,
    key: KeyOption = "",
    caller: CallerOption = "",
    model: ModelOption = "",
    digest: DigestOption = "",
    since: SinceOption = "",
    until: UntilOption = "",
    result: ResultOption = None,
    kind: TypeOption = None,
    raw: RawOption = False,
    json: JsonOption = False,
) -> None:
    """List what stands in the log, the newest 50 by default; --json writes one entry a line.

    For people an intent and its outcome are one row, under the outcome's index.
    """
    session = session_of(context, as_json=json or raw)
    wanted = entry_filter(
        key=key, caller=caller, model=model, digest=digest, since=since, until=until, results=result, types=kind
    )
    with session.client() as client:
        found = _selected(client, wanted, start, limit, reverse=reverse, rows=not session.as_json)
        if session.as_json:
            for item in found:
                session.emit(auditview.as_json(item, raw=raw))
        else:
            auditview.print_rows(session, found)


def tail(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=_MOST_HELD, help="Begin with the last so many.")
    ] = 10,
    start: Annotated[
        int | None,
        typer.Option("--from", min=0, help="Begin at this index instead.", show_default=False),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between looks.")] = 1.0,
    key: KeyOption = "",
    caller: CallerOption = "",
    model: ModelOption = "",
    digest: DigestOption = "",
    result: ResultOption = None,
    kind: TypeOption = None,
    raw: RawOption = False,
    json: JsonOption = False,
) -> None:
    """Show the end of the log; with -f follow it, over restarts of the daemon, and check that it only grows."""
    session = session_of(context, as_json=json or raw)
    wanted = entry_filter(
        key=key, caller=caller, model=model, digest=digest, since="", until="", results=result, types=kind
    )
    rows = not session.as_json

    def show(item: Shown) -> None:
        if not rows:
            session.emit(auditview.as_json(item, raw=raw))
            sys.stdout.flush()
        elif item.kind != "intent" or "intent" in (kind or ()):
            auditview.print_line(item)

    from greatseal.logtail import LogTail

    if session.settings.get("timeout") is None:
        session.settings = {**session.settings, "timeout": _CALL_SECONDS}
    with session.client() as client:
        newest = client.audit.checkpoint()
        if not newest.verified:
            say("The checkpoints are not verified: give the log's key with --log-key or in the profile.")
        if start is None and newest.size and lines:
            # Below this checkpoint it is listed, from it on followed.
            last = list(_selected(client, wanted, newest.size - 1, lines, reverse=True, rows=rows))
            for item in reversed(last):
                show(item)
        log = LogTail(client, newest.size if start is None else start, wanted)
        if start is not None or follow:
            _step(log, show)
    if follow:
        _follow(session, log, show, interval)


def _follow(session: Session, log: LogTail, show: Callable[[Shown], None], interval: float) -> None:
    """Follow until the connection is lost; the next one reads profile and certificates again."""
    refusals = 0
    while True:
        try:
            with session.client() as client:
                log.reconnect(client)
                while True:
                    _step(log, show)
                    refusals = 0
                    time.sleep(interval)
        except (Unavailable, DeadlineExceeded, DaemonNotRunning) as error:
            # A handshake that a restart cuts off looks like one that is refused, but not for long.
            refusals = refusals + 1 if isinstance(error, ConnectionRefused) else 0
            if refusals > _REFUSALS:
                raise
            time.sleep(interval)


def _step(log: LogTail, show: Callable[[Shown], None]) -> None:
    from greatseal.logtail import joinable

    for page in log.step():
        intents = joinable(page)
        for entry in page.entries:
            show(auditview.shown(entry, intents))


def _selected(
    client: Client, wanted: EntryFilter | None, start: int | None, limit: int, *, reverse: bool, rows: bool
) -> Iterator[Shown]:
    """What is listed, in the order that it is shown in; `rows` says that an intent and its outcome are one."""
    turned = start is None and limit > 0 and not reverse
    descending = reverse or turned
    found = _shown(client, wanted, start or 0, limit, descending=descending)
    if descending and start == 0:  # to the daemon, 0 would be the end of the log
        found = takewhile(lambda item: item.entry.index == 0, _shown(client, wanted, 0, 1, descending=False))
    if rows:
        later = start is not None and descending
        whole = wanted is None or (wanted.until is None and (not wanted.types or "outcome" in wanted.types))
        found = auditview.one_row_each(found, descending=descending, complete=whole and not later)
    if limit:
        found = islice(found, limit)
    if turned:
        yield from reversed(list(found))
    else:
        yield from found


def _shown(client: Client, wanted: EntryFilter | None, start: int, limit: int, *, descending: bool) -> Iterator[Shown]:
    # Twice as many: an intent and its outcome may become one row.
    size = min(2 * limit, _PAGE) or _PAGE
    for page in client.audit.pages(start, descending=descending, page_size=size, wanted=wanted, with_intents=True):
        intents = {entry.index: entry for entry in (*page.intents, *page.entries)}
        for entry in page.entries:
            yield auditview.shown(entry, intents)
