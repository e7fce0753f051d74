"""Lock what the distributions and the tools need into requirements/*.txt, with hashes.

    .venv/bin/python scripts/lock.py                # resolve again; versions that still fit stay
    .venv/bin/python scripts/lock.py --upgrade      # take the newest
    .venv/bin/python scripts/lock.py --check        # offline: do the files fit the pyproject.toml files?

The files name no registry and no path: `--no-emit-index-url`, no annotations, no header of uv's.
client.txt and daemon.txt are what runs in production, yubikey.txt what a host with YubiKeys needs beside them; build.txt makes the two wheels from a checkout; dev.txt
is all of them plus the tools. They agree, since dev.txt constrains the others. The first line of each holds a hash over the requirements
that it was resolved from: that is how the check sees, without a registry, that one has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement

ROOT: Final = Path(__file__).resolve().parent.parent
FILES: Final = ROOT / "requirements"
OWN: Final = frozenset({"greatseal", "greatseald"})
EXTRAS: Final = ("pkcs11", "postgres")
NAMES: Final = ("dev", "client", "daemon", "yubikey", "build")  # dev first: it constrains the others
_PIN: Final = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)
_HOST: Final = re.compile(r"://|(?:^|\s)(?:-e|--(?:extra-)?index-url|--find-links|file:)|(?:^|\s)/", re.MULTILINE)


def inputs(name: str) -> list[str]:
    """Return the requirements that a lock file is resolved from, sorted."""
    if name == "build":
        return sorted(_table("daemon/pyproject.toml")["build-system"]["requires"])
    client = _project("clients/python")["dependencies"]
    daemon = _project("daemon")
    # Apart from the daemon's: pyscard is compiled wherever it is installed.
    yubikey = daemon["optional-dependencies"]["yubikey"]
    if name == "yubikey":
        return sorted(yubikey)
    wanted = list(client)
    if name in {"daemon", "dev"}:
        wanted += daemon["dependencies"]
        for extra in EXTRAS:
            wanted += daemon["optional-dependencies"][extra]
    if name == "dev":
        wanted += yubikey
        wanted += _table("pyproject.toml")["dependency-groups"]["dev"]
    return sorted({text for text in wanted if Requirement(text).name not in OWN})


def digest(name: str) -> str:
    """Return the hash that stands in the first line of a lock file."""
    return hashlib.sha256(json.dumps(inputs(name)).encode()).hexdigest()


def lock(name: str, *, upgrade: bool) -> None:
    """Resolve one file. Versions that it pins already are kept where they fit."""
    target = FILES / f"{name}.txt"
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "requirements.in"
        source.write_text("\n".join(inputs(name)) + "\n")
        command = [
            str(Path(sys.executable).parent / "uv"),
            *("pip", "compile", str(source), "--output-file", str(target), "--quiet"),
            *("--universal", "--python-version", "3.11", "--generate-hashes"),
            *("--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--no-header"),
        ]
        if upgrade:
            command.append("--upgrade")
        if name != "dev":
            command += ["--constraints", str(FILES / "dev.txt")]
        subprocess.run(command, check=True)
    header = f"# made by `make lock` from requirements with sha256 {digest(name)}\n"
    target.write_text(header + target.read_text())


def problems(name: str) -> list[str]:
    """Say what is wrong with one lock file, as far as can be seen without a registry."""
    target = FILES / f"{name}.txt"
    if not target.is_file():
        return [f"{target.name} is missing"]
    text = target.read_text()
    found = []
    if not text.startswith(f"# made by `make lock` from requirements with sha256 {digest(name)}\n"):
        found.append(f"{target.name} was resolved from other requirements than the pyproject.toml files hold now")
    pins = dict(_PIN.findall(text))
    for requirement in map(Requirement, inputs(name)):
        pinned = pins.get(requirement.name)
        if pinned is None:
            found.append(f"{target.name} does not pin {requirement.name}")
        elif pinned not in requirement.specifier:
            found.append(f"{target.name} pins {requirement.name} {pinned}, and {requirement} is wanted")
    blocks = text.count("==") and re.split(r"\n(?=\S)", text.split("\n", 1)[1])
    found += [
        f"{target.name}: no hash for {block.split()[0]}" for block in blocks or [] if "--hash=sha256:" not in block
    ]
    if place := _HOST.search(text.split("\n", 1)[1]):
        found.append(f"{target.name} names a host or a path: {place[0].strip()!r}")
    return found


def _table(path: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / path).read_text())


def _project(folder: str) -> dict[str, Any]:
    project: dict[str, Any] = _table(f"{folder}/pyproject.toml")["project"]
    return project


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file is not current")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    options = parser.parse_args()
    if options.check:
        found = [problem for name in NAMES for problem in problems(name)]
        for problem in found:
            print(f"requirements: {problem}; run: make lock", file=sys.stderr)
        return 1 if found else 0
    for name in NAMES:
        lock(name, upgrade=options.upgrade)
    return 0


if __name__ == "__main__":
    sys.exit(main())
