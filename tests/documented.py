"""The shell blocks of a documentation page, as one script that a reader could have typed.

What a page's source may say, in HTML comments that no reader sees:

    <!-- not run: REASON -->        the next block is not run; the reason is required
    <!-- run first                  these commands go before the next block: the file that it
    mkdir model                     needs, the directory that it stands in
    -->

Blocks of ``` without a language, and of sh, bash, shell and console, are run, page by page and from
top to bottom in one shell. In a console block lines with `$ ` are commands and the others what they
print: each must come, in this order, in the same form. Numbers, hexadecimal digits and times may be
others, and `…` stands for anything. A page that makes no installation finds `seal/`, and a daemon
that serves it unless the page starts one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SHELL = frozenset({"", "sh", "bash", "shell", "console"})
_PARTS = re.compile(
    r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```\s*$|<!--\s*(?P<marker>not run:|run first\b:?)(?P<said>.*?)-->",
    re.MULTILINE | re.DOTALL,
)
_FORM = (
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z| UTC)?"), "TIME"),
    (re.compile(r"\b[0-9a-f]{16,}\b"), "HEX"),
    (re.compile(r"\d+"), "N"),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True)
class Step:
    """Commands with what they print.

    Attributes:
        line: the block's place in the page, from 1.
        commands: for bash.
        output: lines that must come; empty where the page shows none.
    """

    line: int
    commands: str
    output: tuple[str, ...] = ()


@dataclass
class Page:
    """What a page would have its reader do."""

    steps: list[Step] = field(default_factory=list)
    not_run: list[tuple[int, str]] = field(default_factory=list)


def read(path: Path) -> Page:
    """Return the steps of a page."""
    text = path.read_text()
    page, reason = Page(), None
    for part in _PARTS.finditer(text):
        line = text.count("\n", 0, part.start()) + 1
        if part["marker"] == "not run:":
            reason = " ".join(part["said"].split())
        elif part["marker"]:
            page.steps.append(Step(line, part["said"].strip()))
        elif reason is not None:
            page.not_run.append((line, reason))
            reason = None
        elif part["language"] in SHELL:
            page.steps += _console(line, part["code"]) if part["language"] == "console" else [Step(line, part["code"])]
    if reason is not None:
        page.not_run.append((text.count("\n"), f"no block follows: {reason}"))
    return page


def _console(line: int, code: str) -> Iterator[Step]:
    commands: list[str] = []
    output: list[str] = []
    for each in code.splitlines():
        continued = bool(commands) and not output and commands[-1].endswith("\\")
        if each.startswith("$ ") or continued:
            if commands and not continued:
                yield Step(line, "\n".join(commands), tuple(output))
                commands, output = [], []
            commands.append(each.removeprefix("$ "))
        elif each.strip():
            output.append(each)
    if commands:
        yield Step(line, "\n".join(commands), tuple(output))


_ABSOLUTE = re.compile(r"(?<![\w./:$}*])/(?!dev/(?:null|zero|full|stdin)\b)[\w.-]+[^\s'\")]*")
_PRIVILEGED = re.compile(r"\b(?:sudo|systemctl|systemd-\w+|apt|apt-get|podman|docker|pip install)\b")


def beyond(commands: str) -> list[str]:
    """Return what a block would touch outside of its page's directory: it must say why it is not run, and never is."""
    typed = re.sub(r"(?:^|\s)#.*", "", commands, flags=re.MULTILINE)
    return _ABSOLUTE.findall(typed) + _PRIVILEGED.findall(typed)


def form(line: str) -> str:
    """Return a line without what differs from run to run."""
    for pattern, instead in _FORM:
        line = pattern.sub(instead, line)
    return line.strip()


def missing(expected: tuple[str, ...], printed: str) -> str | None:
    """Return the first expected line that was not printed after those before it; None where all were."""
    lines = iter(map(form, printed.splitlines()))
    for each in expected:
        pattern = re.compile(".*".join(re.escape(form(part)) for part in each.split("…")))
        if each.strip() != "…" and not any(pattern.fullmatch(line) for line in lines):
            return each
    return None
