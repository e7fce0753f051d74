"""Check that every relative link and `#anchor` in the Markdown files leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final
from urllib.parse import unquote

ROOT: Final = Path(__file__).resolve().parent.parent
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE: Final = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_HEADING: Final = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a file."""
    found = set()
    for heading in _HEADING.findall(_FENCE.sub("", path.read_text())):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(plain.replace(" ", "-"))
    return found


def broken(path: Path) -> list[str]:
    """Return what is wrong with the links of a file."""
    found = []
    for link in _LINK.findall(_FENCE.sub("", path.read_text())):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        place, _, anchor = unquote(link).partition("#")
        target = (path.parent / place).resolve() if place else path
        if not target.exists():
            found.append(f"{path.relative_to(ROOT)}: {link} does not exist")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            found.append(f"{path.relative_to(ROOT)}: {link} names no heading")
    return found


def main() -> int:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    found = [problem for name in listed if name and (ROOT / name).is_file() for problem in broken(ROOT / name)]
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
