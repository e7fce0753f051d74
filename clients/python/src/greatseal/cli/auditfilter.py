"""The options that say which entries of the log are wanted."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from greatseal.errors import UsageError

if TYPE_CHECKING:
    from greatseal.messages import EntryFilter

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGE: Final = re.compile(r"([0-9]{1,9})([smhdw])")
_DIGEST: Final = re.compile("[0-9a-fA-F]{8,128}")
_TYPES: Final = ("intent", "outcome", "denied", "admin")
_RESULTS: Final = ("signed", "failed", "unknown", "aborted", "denied")


def _option(name: str, text: str, metavar: str) -> Any:
    return typer.Option(name, help=text, metavar=metavar, show_default=False)


KeyOption = Annotated[str, _option("--key", "Of this key; KEY* for all that begin so.", "KEY")]
CallerOption = Annotated[str, _option("--caller", "Of this caller; ID* for all that begin so.", "ID")]
ModelOption = Annotated[str, _option("--model", "Of this model or subject; NAME* for all that begin so.", "NAME")]
DigestOption = Annotated[
    str, _option("--digest", "Of this digest signed, payload or subject; 8 digits or more of it.", "HEX")
]
SinceOption = Annotated[str, _option("--since", "Written at or after: RFC 3339, or an age such as 2h or 7d.", "TIME")]
UntilOption = Annotated[str, _option("--until", "Written before, as --since.", "TIME")]
ResultOption = Annotated[
    list[str] | None, _option("--result", f"One of {', '.join(_RESULTS)}; may be repeated.", "RESULT")
]
TypeOption = Annotated[list[str] | None, _option("--type", f"One of {', '.join(_TYPES)}; may be repeated.", "TYPE")]


def entry_filter(
    *,
    key: str,
    caller: str,
    model: str,
    digest: str,
    since: str,
    until: str,
    results: list[str] | None,
    types: list[str] | None,
) -> EntryFilter | None:
    """Return the filter that the options make; None where none was given.

    Raises:
        UsageError: one of them is malformed.
    """
    from greatseal.messages import EntryFilter

    if digest and not _DIGEST.fullmatch(digest):
        message = f"--digest takes 8 to 128 hexadecimal digits, not {digest[:140]!r}"
        raise UsageError(message)
    found = EntryFilter(
        types=_each_of(types, _TYPES, "--type"),
        results=_each_of(results, _RESULTS, "--result"),
        key=key if not key or "/" in key else f"keys/{key}",
        caller=caller,
        subject=model,
        digest=digest.lower(),
        since=moment(since, "--since") if since else None,
        until=moment(until, "--until") if until else None,
    )
    if found.since and found.until and found.since >= found.until:
        message = f"--since {since} is not before --until {until}"
        raise UsageError(message)
    return None if found == EntryFilter() else found


def moment(text: str, option: str, now: datetime | None = None) -> datetime:
    """Return the time that text names: RFC 3339, a date, or an age; local where it names no zone.

    Raises:
        UsageError: it names none, or one outside of the years 1970 to 9999.
    """
    now = now or datetime.now(UTC)
    age = _AGE.fullmatch(text)
    try:
        if age is not None:
            found = now - timedelta(seconds=int(age[1]) * _UNITS[age[2]])
        else:
            found = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        found = None
    if found is None or found.timestamp() < 0:
        message = f"{option} takes RFC 3339 such as 2026-01-02T03:04:05Z, a date, or an age such as 90s, 15m, 2h, 7d or 4w, not {text[:80]!r}"
        raise UsageError(message)
    return found


def _each_of(given: list[str] | None, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    for each in given or ():
        if each not in known:
            message = f"{option} takes one of {', '.join(known)}, not {each[:80]!r}"
            raise UsageError(message)
    return tuple(dict.fromkeys(given or ()))
