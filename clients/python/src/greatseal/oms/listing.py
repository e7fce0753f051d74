"""Which files make up a model.

A model is a directory; its files are everything below it except what is ignored: four git names at
the top (`.git`, `.gitattributes`, `.github`, `.gitignore`; the same names further down are signed),
the signature file itself, and what the user names. An ignored path covers everything below it.

What OMS has no honest way to describe is refused, never skipped: symbolic links, devices, pipes and
sockets, directories that cannot be read, names that are not UTF-8 or that another system would read
differently (backslashes, control characters), and a model that is a single file (implementations
disagree on its name). Ignored paths are not looked into, so a link below one is no obstacle here.

Names are read as bytes and decoded strictly, so the locale of the process has no say in what is
signed. Source: OMS specification 1.0, sections 4 and 5.

    listing = list_model(Path("llama"), IgnoredPaths.of(["model.sig"]))
    [file.name for file in listing.files]       # ["config.json", "weights/00001.safetensors", ...]
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from greatseal.oms.errors import ModelRefused, printable
from greatseal.statement import check_resource_name
from greatseal.verification import StatementInvalid

GIT_PATHS: Final = (".git", ".gitattributes", ".github", ".gitignore")
"""Ignored at the top of a model by every implementation of OMS."""


class Stamp(NamedTuple):
    """What tells one state of a file from another: any write changes at least one of these."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class ModelFile(NamedTuple):
    """One file: its name (relative, `/` between parts), where it is, and its state when listed."""

    name: str
    path: bytes
    stamp: Stamp


class Listing(NamedTuple):
    """The files of a model, sorted by name, and the ignored paths that are really there."""

    files: tuple[ModelFile, ...]
    ignored: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes in all files together."""
        return sum(file.stamp.size for file in self.files)


class IgnoredPaths(frozenset[str]):
    """Normalised paths, relative to the model, that are not part of it."""

    @classmethod
    def of(cls, paths: Iterable[str]) -> IgnoredPaths:
        """The git names and `paths`. Raises ModelRefused for a path that cannot be meant."""
        return cls((*GIT_PATHS, *(normalised(path) for path in paths)))


def normalised(path: str) -> str:
    """`./a/b/` as `a/b`. Raises ModelRefused for absolute paths, `..`, and the model itself."""
    if path.startswith("/"):
        raise ModelRefused(f"ignored path {path!r} is absolute; name it relative to the model", path=path)
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise ModelRefused(f"ignored path {path!r} leaves the model through '..'", path=path)
    if not parts:
        raise ModelRefused(f"ignored path {path!r} is the model itself, and nothing would be left to sign", path=path)
    try:
        return check_resource_name("/".join(parts))
    except StatementInvalid as error:
        raise ModelRefused(f"ignored path {path!r} {error}", path=path) from error


def relative_to_model(model: Path, file: Path) -> str | None:
    """The name that `file` has inside `model`, or None where it lies outside.

    Only the directory is resolved: a link at the last step is replaced or ignored, never followed.
    """
    root = Path(os.path.realpath(model))
    target = Path(os.path.realpath(file.parent)) / file.name
    try:
        name = os.fsencode(target.relative_to(root)).decode()
    except (ValueError, UnicodeDecodeError):
        return None
    return name if name != "." else None


def model_name(model: Path) -> str:
    """The subject's name: the directory's own name, also where it was given as `.` or `x/..`."""
    name = os.fsencode(model.name if model.name not in {"", ".."} else Path(os.path.realpath(model)).name)
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise ModelRefused(f"the name of the model's directory, {name!r}, is not UTF-8; rename it") from None
    if not text:
        raise ModelRefused("the file system's root is not a model; name a directory below it")
    return text


def list_model(model: Path, ignored: IgnoredPaths) -> Listing:
    """The files of `model`, without reading them. Raises ModelRefused."""
    root = os.fsencode(model)
    require_directory(model)
    files: list[ModelFile] = []
    present: list[str] = []
    pending = [(root, "")]
    while pending:
        directory, prefix = pending.pop()
        try:
            with os.scandir(directory) as found:
                entries = list(found)
        except OSError as error:
            raise ModelRefused(f"{_show(prefix)} cannot be listed: {error.strerror}", path=prefix) from None
        for entry in entries:
            name = _decode(entry.name, prefix)
            if name in ignored:
                present.append(name)
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError as error:
                raise ModelRefused(f"{_show(name)} cannot be read: {error.strerror}", path=name) from None
            if stat.S_ISREG(status.st_mode):
                _require_name(name)
                files.append(ModelFile(name, entry.path, Stamp.of(status)))
            elif stat.S_ISDIR(status.st_mode):
                pending.append((entry.path, f"{name}/"))
            else:
                raise _not_a_file(name, status.st_mode)
    files.sort(key=_name)
    return Listing(tuple(files), tuple(sorted(present)))


def require_directory(model: Path) -> None:
    """Return if `model` is a directory that can be a model. Raises ModelRefused, which says why not."""
    try:
        mode = model.lstat().st_mode
    except OSError as error:
        raise ModelRefused(f"there is no model at {_show(str(model))}: {error.strerror}") from None
    if stat.S_ISLNK(mode):
        raise ModelRefused(
            f"{_show(str(model))} is a symbolic link; name the directory itself ({os.path.realpath(model)})"
        )
    if not stat.S_ISDIR(mode):
        raise ModelRefused(
            f"{_show(str(model))} is not a directory. A model of one file has no name that all "
            "implementations agree on: put the file into a directory of its own and name that"
        )


def _name(file: ModelFile) -> str:
    return file.name


def _decode(name: bytes, prefix: str) -> str:
    try:
        return prefix + name.decode()
    except UnicodeDecodeError:
        raise ModelRefused(f"the name {name!r} in {_show(prefix)} is not UTF-8; rename it", path=prefix) from None


def _require_name(name: str) -> None:
    try:
        check_resource_name(name)
    except StatementInvalid as error:
        raise ModelRefused(f"the name {_show(name)} {error}; rename the file", path=name) from error


def _show(name: str) -> str:
    return f"'{printable(name)}'" if name else "the model's directory"


def _not_a_file(name: str, mode: int) -> ModelRefused:
    if stat.S_ISLNK(mode):
        return ModelRefused(
            f"{_show(name)} is a symbolic link, which could lead to different bytes tomorrow: "
            "replace it by the file itself, or ignore it",
            path=name,
        )
    kind = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a device", stat.S_IFCHR: "a device"}
    word = kind.get(stat.S_IFMT(mode), "not a file")
    return ModelRefused(f"{_show(name)} is {word}, not a file: remove it, or ignore it", path=name)
