"""The Containerfile's steps, carried out in a directory that any user may read and nobody may write.

    with installed() as tree:            # <dir>/opt/greatseal, made by the RUN lines of the build stage
        run_as(FRONT, tree.command, "version")

No container engine is needed: the paths of the image are those of the directory, and what runs has
another user id, no capability and no way to get one.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deployment import clean_environment

ROOT = Path(__file__).resolve().parents[1]
CONTAINERFILE = ROOT / "deploy/container/Containerfile"
PR_SET_MDWE = 65


@dataclass(frozen=True)
class User:
    """Whom a process runs as: one user, one group, one more group."""

    name: str
    extra: str = ""

    @property
    def uid(self) -> int:
        return pwd.getpwnam(self.name).pw_uid

    @property
    def gid(self) -> int:
        return pwd.getpwnam(self.name).pw_gid

    def wrap(self) -> list[str]:
        groups = f"--groups={pwd.getpwnam(self.extra).pw_gid}" if self.extra else "--clear-groups"
        drop = ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
        return ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", groups, *drop]


@dataclass(frozen=True)
class Tree:
    """The directory and the command in it."""

    directory: Path

    @property
    def command(self) -> Path:
        return self.directory / "opt/greatseal/bin/greatseald"

    @property
    def python(self) -> Path:
        return self.directory / "opt/greatseal/bin/python"


def steps(stage: str) -> list[tuple[str, str]]:
    """The instructions of one stage of the Containerfile, in order: (`RUN`, rest of the line)."""
    text = re.sub(r"\\\n", " ", CONTAINERFILE.read_text())
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            name = rest.split(" AS ")[1] if " AS " in rest else "final"
        found.setdefault(name, []).append((word, rest))
    return found[stage]


def _interpreter() -> Path:
    """A Python that every user can run: this one, or Debian's where this one lies in somebody's home."""
    prefix = Path(sys.base_prefix).resolve()
    if all(parent.stat().st_mode & 0o001 for parent in [prefix, *prefix.parents]):
        return prefix / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    return Path("/usr/bin/python3")


@contextmanager
def installed() -> Iterator[Tree]:
    """Carry the build stage out; the tree is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="greatseal-tree-"))
    try:
        directory.chmod(0o755)
        python = _interpreter()
        source = directory / "src"
        places = {"/opt/greatseal": directory / "opt/greatseal", "/build": directory / "build"}
        places |= {"/wheels": directory / "wheels"}
        for word, rest in steps("build"):
            if word == "COPY":
                *names, target = rest.split()
                for name in names:
                    to = source / target / (Path(name).name if target.endswith("/") else "")
                    to.parent.mkdir(parents=True, exist_ok=True)
                    if (ROOT / name).is_dir():
                        shutil.copytree(ROOT / name, to, ignore=shutil.ignore_patterns("__pycache__"))
                    else:
                        shutil.copy(ROOT / name, to)
            elif word == "RUN":
                words = [python if part == "python" else part for part in shlex.split(rest)]
                words = [_placed(str(part), places) for part in words]
                done = subprocess.run(
                    words, cwd=source, env=clean_environment(), capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, f"RUN {rest}\n{done.stdout}\n{done.stderr}"
        for left in ("build", "wheels", "src"):
            shutil.rmtree(directory / left)
        subprocess.run(["chmod", "-R", "a-w,a+rX", directory / "opt"], check=True)
        yield Tree(directory)
    finally:
        subprocess.run(["chmod", "-R", "u+w", directory], check=False)
        shutil.rmtree(directory)


def _placed(word: str, places: Mapping[str, Path]) -> str:
    for inside, outside in places.items():
        if word == inside or word.startswith(inside + "/"):
            return str(outside) + word[len(inside) :]
    return word


def _no_new_code() -> None:
    """As MemoryDenyWriteExecute= does; kernels before 6.3 know no such switch."""
    ctypes.CDLL(None).prctl(PR_SET_MDWE, 1, 0, 0, 0)


def popen_as(
    user: User,
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    traced: Path | None = None,
    **options: object,
):
    """Start a command as another user without capabilities, unable to make code in memory.

    `traced` gets the names of the system calls that it and its children made, once all have ended.
    """
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **(env or {})}
    trace = ["strace", "-D", "-f", "-qq", "-c", "-U", "name", "-o", str(traced)] if traced else []
    words = [*trace, *user.wrap(), *map(str, command)]
    return subprocess.Popen(words, env=environment, cwd="/", preexec_fn=_no_new_code, **options)  # noqa: PLW1509


def run_as(user: User, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command so to its end."""
    with popen_as(user, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def give(path: Path, user: User, mode: int = 0o700) -> None:
    """Make a directory and all in it a user's."""
    for each in [path, *path.rglob("*")]:
        os.chown(each, user.uid, user.gid)
    path.chmod(mode)
