"""How entries of the log look: one row for what was asked and how it ended, or JSON Lines.

Entries come from a daemon, so nothing in them is taken for granted: whatever cannot be read shows as
such, texts are cut and cleaned, and an intent that is not the one that its outcome names is an error.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from greatseal.errors import VerificationFailed
from greatseal.text import one_line

if TYPE_CHECKING:
    from greatseal.cli.session import Session
    from greatseal.messages import Entry

COLUMNS: Final = ("INDEX", "TIME", "CALLER", "KEY", "WHAT", "RESULT")
_ROWS_OF_A_TABLE: Final = 1000
_MAX_CELL: Final = 200
_WIDTHS: Final = (7, 19, 34, 16, 40, 0)
_SHORT_DIGEST: Final = 16


@dataclass(frozen=True, slots=True)
class Shown:
    """An entry, and of an outcome its intent where that is known; `is_open` of an intent that has no outcome."""

    entry: Entry
    fields: Mapping[str, Any]
    intent: Entry | None = None
    is_open: bool = False

    @property
    def kind(self) -> str:
        """The entry's `t`; empty where it cannot be read."""
        return text(self.fields, "t")


def shown(entry: Entry, intents: Mapping[int, Entry]) -> Shown:
    """Join an entry with its intent, if it is an outcome and `intents` (by index) has that.

    Raises:
        VerificationFailed: the intent is not the one whose leaf hash the outcome repeats.
    """
    fields = read(entry.data)
    index = intent_index(fields)
    intent = intents.get(index) if index is not None else None
    if intent is not None:
        from greatseal.tlog import leaf_hash

        if text(fields, "intent", "leaf_hash") != leaf_hash(intent.data).hex():
            message = f"the daemon gave another entry {index} than the one that outcome {entry.index} closes"
            raise VerificationFailed(message)
    return Shown(entry, fields, intent)


def intent_index(fields: Mapping[str, Any]) -> int | None:
    """The index of the intent that an outcome closes; None for other entries."""
    reference = fields.get("intent")
    index = reference.get("index") if isinstance(reference, dict) and fields.get("t") == "outcome" else None
    return index if isinstance(index, int) and not isinstance(index, bool) else None


def as_json(item: Shown, *, raw: bool) -> dict[str, Any]:
    """One line for programs; with `raw` the exact bytes too, in base64, and the leaf hash."""
    found: dict[str, Any] = {"index": item.entry.index, "entry": dict(item.fields) or None}
    if item.intent is not None:
        found["intent"] = dict(read(item.intent.data)) or None
    if raw:
        from greatseal.tlog import leaf_hash

        found["leaf_hash"] = leaf_hash(item.entry.data).hex()
        found["data"] = base64.b64encode(item.entry.data).decode()
        if item.intent is not None:
            found["intent_data"] = base64.b64encode(item.intent.data).decode()
    return found


def row(item: Shown, *, local: bool) -> list[str]:
    """The cells of `COLUMNS`; `local` shows times as the reader's clock does, and not as the entry has them."""
    about = read(item.intent.data) if item.intent is not None else item.fields
    when, caller = text(item.fields, "ts"), text(about, "cli", "id")
    what, result = _what(item, about)
    return [
        str(item.entry.index),
        _local(when) if local else when,
        (caller.removeprefix("spiffe://") if local else caller) or "-",
        text(about, "key", "name").removeprefix("keys/") or "-",
        what or "-",
        result,
    ]


def _what(item: Shown, about: Mapping[str, Any]) -> tuple[str, str]:
    kind, fields = item.kind, item.fields
    if kind in {"intent", "outcome"}:
        digest = text(about, "tbs") or text(fields, "tbs")
        what = text(about, "subj", "name") or (f"digest {digest[:_SHORT_DIGEST]}…" if digest else "")
        if kind == "intent":
            return what, "open" if item.is_open else "-"
        why = text(fields, "why")
        return what, f"{text(fields, 'res') or '?'}{': ' + why if why else ''}"
    if kind == "denied":
        more = text(fields, "more")
        return text(fields, "act"), f"denied: {text(fields, 'reason')}{f' (and {more} more)' if more else ''}"
    if kind == "admin":
        info = fields.get("info")
        pairs = info.items() if isinstance(info, dict) else ()
        said = ", ".join(f"{name} {value}" for name, value in pairs if isinstance(value, (str, int)) and value != "")
        return f"{text(fields, 'what')}{': ' + said if said else ''}"[:_MAX_CELL], "-"
    return "unreadable", "?"


def print_rows(session: Session, items: Iterable[Shown]) -> None:
    """Show rows: tables at a terminal, tab-separated lines under one header otherwise."""
    if not sys.stdout.isatty():
        header = "\t".join(COLUMNS) + "\n"  # with the first row, so that a refusal leaves stdout empty
        for item in items:
            print(header + "\t".join(map(one_line, row(item, local=False))))
            header = ""
        sys.stdout.write(header)
        return
    held: list[list[str]] = []
    empty = True
    for item in items:
        held.append(row(item, local=True))
        if len(held) == _ROWS_OF_A_TABLE:
            session.table(COLUMNS, held)
            held, empty = [], False
    if held or empty:
        session.table(COLUMNS, held)


def print_line(item: Shown) -> None:
    """Show one row at once, for a list that never ends."""
    if sys.stdout.isatty():
        cells = [one_line(cell).ljust(width) for cell, width in zip(row(item, local=True), _WIDTHS, strict=True)]
        print("  ".join(cells).rstrip(), flush=True)
    else:
        print("\t".join(map(one_line, row(item, local=False))), flush=True)


def one_row_each(items: Iterable[Shown], *, descending: bool, complete: bool) -> Iterator[Shown]:
    """Leave out the intents whose outcome has a row.

    An outcome stands after its intent: newest first it comes before; oldest first the intents wait for
    it. Those that are left are open, if the list is `complete`: no later outcome was left out.
    """
    waiting: dict[int, Shown] = {}
    joined: set[int] = set()
    for item in items:
        index = item.entry.index
        closed = intent_index(item.fields)
        if closed is not None and item.intent is not None:
            waiting.pop(closed, None)
            joined.update({closed} if descending else ())
            yield item
        elif item.kind == "intent" and index in joined:
            joined.discard(index)
        elif item.kind == "intent" and not descending:
            waiting[index] = item
        else:
            yield replace(item, is_open=complete and item.kind == "intent")
    for item in waiting.values():
        yield replace(item, is_open=complete)


def read(data: bytes) -> Mapping[str, Any]:
    """The fields of an entry; none where it is no JSON object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def text(fields: Mapping[str, Any], *path: str) -> str:
    """A text or number at a path, cut to what a cell holds; empty where there is none."""
    value: Any = fields
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return str(value)[:_MAX_CELL] if isinstance(value, (str, int)) and not isinstance(value, bool) else ""


def _local(when: str) -> str:
    try:
        return f"{datetime.fromisoformat(when).astimezone():%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return when
