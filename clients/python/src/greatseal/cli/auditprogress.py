"""How far reading a log has come, on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from greatseal.cli.session import say

if TYPE_CHECKING:
    from greatseal.cli.session import Session

_PROGRESS_EVERY: Final = 50_000
_BAR_EVERY: Final = 500


@contextlib.contextmanager
def progress(session: Session, start: int, size: int) -> Iterator[Callable[[int], None]]:
    """Show on stderr how many entries are read: a bar at a terminal, a line now and then otherwise."""
    if session.as_json or not sys.stderr.isatty():

        def tell(done: int) -> None:
            if not session.as_json and done % _PROGRESS_EVERY == 0:
                say(f"{done} of {size} entries read")

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("entries, {task.fields[rate]}/s,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    console = Console(stderr=True, no_color=not session.color)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=size - start, rate=0)

        def draw(done: int) -> None:
            if done % _BAR_EVERY == 0 or done == size:
                bar.update(task, completed=done - start, rate=int(bar.tasks[0].speed or 0))

        yield draw
