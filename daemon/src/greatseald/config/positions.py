r"""Where in a TOML text each key stands.

`tomllib` gives values without positions, and an error that names no line sends people searching.
This index walks a text that `tomllib` has accepted already, so it need not judge it, and remembers
the line of every table, key and array element, inline ones included.

    index_lines('[server]\nlisten = "x"\n')       # {("server",): 1, ("server", "listen"): 2}
"""

from __future__ import annotations

import tomllib
from bisect import bisect_right

Path = tuple[str | int, ...]
"""A place in the document: table names, keys and array indexes from the top."""

_BLANK = " \t\r\n"


class _Scanner:
    """One pass over a valid TOML text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.lines: dict[Path, int] = {}
        self._last: dict[Path, int] = {}
        self._newlines = [number for number, char in enumerate(text) if char == "\n"]

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        self._skip_blank()
        while self.pos < len(self.text):
            start = self.pos
            if self.text.startswith("[[", start):
                self.pos += 2
                table = self._array_table(self._key(), start)
                self.pos += 2
            elif self.text[start] == "[":
                self.pos += 1
                table = self._resolve(self._key())
                self._note(table, start)
                self.pos += 1
            else:
                self._pair(table)
            self._skip_blank()
        return self.lines

    def _note(self, path: Path, offset: int) -> None:
        self.lines.setdefault(path, bisect_right(self._newlines, offset - 1) + 1)

    def _resolve(self, parts: tuple[str, ...]) -> Path:
        path: Path = ()
        for part in parts:
            path = (*path, part)
            if path in self._last:
                path = (*path, self._last[path])
        return path

    def _array_table(self, parts: tuple[str, ...], offset: int) -> Path:
        array: Path = (*self._resolve(parts[:-1]), parts[-1])
        self._last[array] = self._last.get(array, -1) + 1
        self._note(array, offset)
        path = (*array, self._last[array])
        self._note(path, offset)
        return path

    def _skip_blank(self) -> None:
        while self.pos < len(self.text):
            if self.text[self.pos] == "#":
                end = self.text.find("\n", self.pos)
                self.pos = len(self.text) if end < 0 else end
            elif self.text[self.pos] in _BLANK:
                self.pos += 1
            else:
                return

    def _key(self) -> tuple[str, ...]:
        """Read a dotted key, up to the `=` or `]` behind it."""
        parts: list[str] = []
        while True:
            self._skip_blank()
            start = self.pos
            if self.text[start] in "\"'":
                self._string()
                parts.extend(tomllib.loads(self.text[start : self.pos] + "=0"))
            else:
                while self.text[self.pos] not in " \t.=]":
                    self.pos += 1
                parts.append(self.text[start : self.pos])
            self._skip_blank()
            if self.text[self.pos] != ".":
                return tuple(parts)
            self.pos += 1

    def _pair(self, table: Path) -> None:
        start = self.pos
        path: Path = (*table, *self._key())
        self._note(path, start)
        self.pos += 1  # the equals sign
        self._skip_blank()
        self._value(path)

    def _value(self, path: Path) -> None:
        char = self.text[self.pos]
        if char in "\"'":
            self._string()
        elif char == "[":
            self._array(path)
        elif char == "{":
            self._inline_table(path)
        else:
            while self.pos < len(self.text) and self.text[self.pos] not in ",]}\n#":
                self.pos += 1

    def _string(self) -> None:
        quote = self.text[self.pos]
        if self.text.startswith(quote * 3, self.pos):
            self._until(quote * 3, escapes=quote == '"')
            while self.text.startswith(quote, self.pos):  # a multi-line string may end in up to five quotes
                self.pos += 1
        else:
            self._until(quote, escapes=quote == '"')

    def _until(self, ending: str, *, escapes: bool) -> None:
        self.pos += len(ending)
        while not self.text.startswith(ending, self.pos):
            self.pos += 2 if escapes and self.text[self.pos] == "\\" else 1
        self.pos += len(ending)

    def _array(self, path: Path) -> None:
        self.pos += 1
        number = 0
        while True:
            self._skip_blank()
            if self.text[self.pos] == "]":
                break
            if self.text[self.pos] == ",":
                self.pos += 1
                continue
            element = (*path, number)
            self._note(element, self.pos)
            self._value(element)
            number += 1
        self.pos += 1

    def _inline_table(self, path: Path) -> None:
        self.pos += 1
        while True:
            self._skip_blank()
            if self.text[self.pos] == "}":
                break
            if self.text[self.pos] == ",":
                self.pos += 1
                continue
            self._pair(path)
        self.pos += 1


def index_lines(text: str) -> dict[Path, int]:
    """Return the line, from 1, of every table, key and array element of a valid TOML text."""
    return _Scanner(text).scan()


def line_of(lines: dict[Path, int], path: Path) -> int:
    """Return the line of a place, or of the nearest place around it that the text has; 1 at worst."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return 1


def dotted(path: Path) -> str:
    """Write a place as people do: `tokens[0].sessions`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
