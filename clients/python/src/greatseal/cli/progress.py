"""How far hashing has come, on stderr: a bar at a terminal, plain lines where they are asked for elsewhere.

By default there is a bar at a terminal and nothing anywhere else, nor with `--json`. `--progress` asks
for it always (a CI job's log gets a line now and then), `--no-progress` never.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from greatseal.cli.session import say
from greatseal.text import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from greatseal.cli.session import Session

ProgressOption = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress",
        help="Show on stderr how far hashing is; at a terminal by default.",
        show_default=False,
    ),
]

_WINDOW_SECONDS: Final = 5.0
_LINE_SECONDS: Final = 5.0


@contextmanager
def hashing_progress(session: Session, verb: str, wanted: bool | None) -> Iterator[Callable[[int, int], None] | None]:
    """Show one model's bytes, rate and time left; yield what takes the bytes done and the bytes in all."""
    if not _wanted(session, wanted):
        yield None
    elif not _terminal():
        yield _Lines(verb).show
    else:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        meter = _Meter()
        with Progress(*columns, console=_console(session), transient=True) as bar:
            task = bar.add_task(verb, total=None, amount="")
            yield lambda done, total: bar.update(task, completed=done, total=total, amount=meter.amount(done, total))


class ModelsProgress:
    """How far a run over many models has come; this one tells nobody."""

    hashing: Callable[[Path, int, int], None] | None = None
    """Takes a model, its bytes done and its bytes in all."""

    def finished(self) -> None:
        """One more model has its result."""


@contextmanager
def models_progress(session: Session, count: int, wanted: bool | None) -> Iterator[ModelsProgress]:
    """Show how many of `count` models are done, and how far the one is that is being hashed."""
    if not _wanted(session, wanted):
        yield ModelsProgress()
    elif not _terminal():
        yield _ModelsLines(count)
    else:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            BarColumn(),
            TextColumn("{task.fields[results]} of {task.total:,} models done,"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            TextColumn("{task.description}", markup=False),
        )
        # Results that go to a file must not be shown on the terminal instead.
        both = sys.stdout.isatty()
        with Progress(*columns, console=_console(session), transient=True, redirect_stdout=both) as bar:
            yield _ModelsBar(bar, count)


def show_bytes(size: float) -> str:
    """Return a size for people: `1.5 GiB`."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size:,.0f} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


class _Meter:
    """The rate of the last seconds, in bytes a second."""

    def __init__(self) -> None:
        self._seen = deque([(time.monotonic(), 0)])

    def rate(self, done: int) -> float:
        now = time.monotonic()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > _WINDOW_SECONDS:
            self._seen.popleft()
        began, before = self._seen[0]
        return (done - before) / (now - began) if now > began else 0.0

    def amount(self, done: int, total: int) -> str:
        return f"{show_bytes(done)} of {show_bytes(total)}, {show_bytes(self.rate(done))}/s"


class _Lines:
    """A line at once, one every few seconds, and one at the end."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._meter = _Meter()
        self._next = 0.0
        self._shown = -1

    def show(self, done: int, total: int) -> None:
        """Tell it if it is time to."""
        now = time.monotonic()
        if not total or done == self._shown or (now < self._next and done < total):
            return
        self._next, self._shown = now + _LINE_SECONDS, done
        say(f"{self._verb}: {100 * done // total} %, {self._meter.amount(done, total)}")


class _Watched(ModelsProgress):
    """Keeps what all models together have had read, and how many have a result."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._results = 0
        self._meter = _Meter()
        self._model: Path | None = None
        self._begun = 0
        self._before = 0
        self._size = 0
        self.hashing = self._hashing

    def _hashing(self, model: Path, done: int, total: int) -> None:
        if model != self._model:
            self._model, self._before = model, self._before + self._size
            self._begun += 1
        self._size = total
        rate = show_bytes(self._meter.rate(self._before + done))
        part = done / total if total else 1.0
        self._hashed(
            self._begun - 1 + part, f"{one_line(model.name)}: {show_bytes(done)} of {show_bytes(total)}, {rate}/s"
        )

    def _hashed(self, models: float, text: str) -> None:
        """So many models have been read, in parts of one, and the last as the text says."""
        raise NotImplementedError


class _ModelsBar(_Watched):
    """The bar goes with the reading, which takes the time; results come in batches."""

    def __init__(self, bar: Progress, count: int) -> None:
        super().__init__(count)
        self._bar = bar
        self._task = bar.add_task("", total=count, results=0)

    def finished(self) -> None:
        self._results += 1
        # Of what cannot be read there is a result and no reading.
        completed = max(self._bar.tasks[0].completed, self._results)
        self._bar.update(self._task, completed=completed, results=f"{self._results:,}")

    def _hashed(self, models: float, text: str) -> None:
        self._bar.update(self._task, completed=max(models, self._results), description=text)


class _ModelsLines(_Watched):
    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._next = time.monotonic() + _LINE_SECONDS

    def finished(self) -> None:
        self._results += 1
        self._tell("", last=self._results == self._count)

    def _hashed(self, models: float, text: str) -> None:
        del models
        self._tell(f"; {text}")

    def _tell(self, text: str, *, last: bool = False) -> None:
        if last or time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE_SECONDS
            say(f"{self._results:,} of {self._count:,} models done{text}")


def _wanted(session: Session, wanted: bool | None) -> bool:
    return _terminal() and not session.as_json if wanted is None else wanted


def _terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _console(session: Session) -> Console:
    from rich.console import Console

    return Console(stderr=True, no_color=not session.colored(sys.stderr))
