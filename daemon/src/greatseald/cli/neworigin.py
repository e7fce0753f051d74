"""`greatseald log new-origin`: end a log that cannot be gone on with, and begin another one, while no daemon runs.

The new log has a name, a signing key and a head MAC key of its own; its first entry names the old one, its size and root,
and what the anchor remembers of it. Nothing is deleted: what belongs to the old log gets a name that says so. The
anchor goes last, so that a command that was cut off leaves an installation that refuses to start.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
import time
import uuid
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from greatseald.cli.exits import UNAVAILABLE, UNEXPECTED, USAGE, VERIFICATION_FAILED, CommandFailed, emit, say
from greatseald.cli.reading import load_settings
from greatseald.config import ConfigError, FileProblem, Settings, load, read_head_mac_key, read_log_key

if TYPE_CHECKING:
    from greatseald.adapters.store.options import StoreOptions
    from greatseald.ports.anchor import Anchored

_MAX_REASON: Final = 1024


@dataclass(frozen=True, slots=True)
class _Old:
    """The log that ends: how far it goes, its checkpoint signed once more, and what the anchor remembers of it."""

    size: int
    root: bytes
    checkpoint: str
    vkey: str
    released: Anchored | None


def new_origin(config: Path, origin: str, *, old_origin: str, reason: str, old_store: str, as_json: bool) -> None:
    """Begin a new log after that of the configuration, which `old_origin` repeats, so that nobody ends one by accident.

    Raises:
        CommandFailed: a name is wrong, a daemon runs, the old log is not what its head says, or a file cannot be written.
    """
    from greatseald.adapters.store.opening import is_shared
    from greatseald.bootstrap.compose import store_options
    from greatseald.ports.anchor import AnchorError
    from greatseald.ports.store import StoreError, StoreUnusable

    settings = load_settings(config)
    if old_origin != settings.log.origin:
        raise CommandFailed(
            USAGE,
            f"this ends the log {settings.log.origin} for good, and nothing was done: say so with --closing {settings.log.origin}",
        )
    if origin == old_origin:
        raise CommandFailed(USAGE, f"{origin} is the name of the log that ends: the new one needs another")
    if not reason.strip() or len(reason) > _MAX_REASON:
        raise CommandFailed(
            USAGE, f"--reason is missing, or over {_MAX_REASON} characters: the log's first entry holds it"
        )
    shared = is_shared(settings.store.url)
    if shared != bool(old_store):
        raise CommandFailed(
            USAGE,
            "--old-store is for PostgreSQL alone: stop every front, make an empty database with `greatseald store init`, name "
            "it in [store] url, and the old one with --old-store",
        )
    try:
        text = _renamed(settings, origin)
        options = store_options(settings)
        old = _read_old(settings, old_store or settings.store.url, options, shared=shared)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        done = _Change(settings, origin, stamp).carry_out(old, reason.strip(), text, options)
    except (StoreUnusable, AnchorError, FileProblem) as error:
        raise CommandFailed(UNAVAILABLE, str(error)) from error
    except StoreError as error:
        raise CommandFailed(UNEXPECTED, str(error)) from error
    except OSError as error:
        message = (
            f"{error.filename or settings.file}: {error.strerror}. What belongs to the old log and was moved already ends in "
            ".closed-…: move it back before you try again; no daemon starts meanwhile"
        )
        raise CommandFailed(UNEXPECTED, message) from error
    _report(settings, old, done, as_json=as_json)


def _read_old(settings: Settings, url: str, options: StoreOptions, *, shared: bool) -> _Old:
    from greatseal.checkpoint import Checkpoint
    from greatseal.note import NoteSigner
    from greatseald.adapters.anchor import FileAnchor
    from greatseald.adapters.store.opening import open_store
    from greatseald.app.recovery import LogRefused, open_tree
    from greatseald.domain.heads import HeadSeal

    table = settings.log
    if shared:
        from greatseald.adapters.store import postgres_admin

        fronts = postgres_admin.status(url, options).fronts
        if fronts:
            raise CommandFailed(UNAVAILABLE, f"{fronts} front(s) run on the old database: stop them first")
    seal = HeadSeal(read_head_mac_key(table.head_mac_key_file))
    signer = NoteSigner(table.origin, read_log_key(table.key_file))
    with closing(open_store(url, secrets.token_bytes(16), options)) as store:
        try:
            tree = open_tree(store, seal)
        except LogRefused as error:
            raise CommandFailed(VERIFICATION_FAILED, f"what is left of the old log cannot be named: {error}") from error
        size, root = tree.size, tree.root()
    with closing(FileAnchor(str(table.anchor))) as anchor:
        released = anchor.read()
    checkpoint = Checkpoint(table.origin, size, root).sign(signer)
    return _Old(size, root, checkpoint, signer.verifier.line(), released)


class _Change:
    """One new origin, from what is written beside the old files to the last rename."""

    def __init__(self, settings: Settings, origin: str, stamp: str) -> None:
        self._settings = settings
        self.origin = origin
        self._stamp = stamp
        self.aside: list[str] = []
        self.vkey = ""

    def carry_out(self, old: _Old, reason: str, config: str, options: StoreOptions) -> _Change:
        """Write the new log, and put it in place of the old one.

        Raises:
            StoreError, OSError: it cannot be done; the daemon does not start before it is undone or done.
        """
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        from greatseal.note import NoteSigner
        from greatseald.adapters.store.opening import is_shared, open_store, restore
        from greatseald.domain.heads import HeadSeal

        log, store = self._settings.log, self._settings.store
        key, mac = Ed25519PrivateKey.generate(), secrets.token_bytes(32)
        self.vkey = NoteSigner(self.origin, key).verifier.line()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        info = self._info(old, reason)
        if is_shared(store.url):
            with closing(open_store(store.url, secrets.token_bytes(16), options)) as new:
                self._begin(new, HeadSeal(mac), info)
            self._replace_keys(pem, mac)
        else:
            # Beside the configuration: a temporary file system may not hold a database.
            with tempfile.TemporaryDirectory(prefix=".new-origin-", dir=self._settings.file.parent) as directory:
                made = Path(directory) / "log.db"
                with closing(open_store(f"sqlite://{quote(str(made))}", secrets.token_bytes(16))) as new:
                    self._begin(new, HeadSeal(mac), info)
                    new.backup(str(made.with_name("copy.db")))
                self._replace_keys(pem, mac)
                moved = restore(str(made.with_name("copy.db")), store.url, replace=True)
            if moved is not None:
                self.aside.append(moved)
        self._write(self._settings.file, config.encode())
        for path in (
            log.sightings,
            log.stamps,
            *(table.cursor for table in self._settings.outbox if table.cursor is not None),
            log.anchor,
        ):
            self._set_aside(path)
        return self

    def _info(self, old: _Old, reason: str) -> dict[str, Any]:
        released = {}
        if old.released is not None:
            released = {"released_size": old.released.size, "released_root": old.released.root.hex()}
        return {
            "old_origin": self._settings.log.origin,
            "old_size": old.size,
            "old_root": old.root.hex(),
            "old_checkpoint": old.checkpoint,
            "old_vkey": old.vkey,
            "why": reason,
            **released,
        }

    def _begin(self, store: Any, seal: Any, info: dict[str, Any]) -> None:
        from greatseald.app.founding import LogNotEmpty, begin_log

        boot = uuid.uuid4()
        try:
            begin_log(store, seal, boot=boot.bytes, instance=str(boot), origin=self.origin, now=time.time(), info=info)
        except LogNotEmpty as error:
            raise CommandFailed(USAGE, str(error)) from error

    def _replace_keys(self, pem: bytes, mac: bytes) -> None:
        log = self._settings.log
        self._set_aside(log.key_file)
        self._write(log.key_file, pem)
        vkey_file = log.key_file.with_suffix(".vkey")
        self._set_aside(vkey_file)
        self._write(vkey_file, f"{self.vkey}\n".encode(), 0o644)
        self._set_aside(log.head_mac_key_file)
        self._write(log.head_mac_key_file, mac.hex().encode() + b"\n")

    def _set_aside(self, path: Path) -> None:
        from greatseald.adapters.durable import fsync_directory

        if os.path.lexists(path):
            aside = path.with_name(f"{path.name}.closed-{self._stamp}")
            path.rename(aside)
            fsync_directory(path.parent)
            self.aside.append(str(aside))

    @staticmethod
    def _write(path: Path, data: bytes, mode: int = 0o600) -> None:
        from greatseald.adapters.durable import write_durably

        write_durably(path, data, path.stat().st_mode & 0o777 if path.exists() else mode)


def _renamed(settings: Settings, origin: str) -> str:
    """Return the configuration's text with the new origin, checked as a daemon would.

    Raises:
        CommandFailed: the place cannot be found, or the name is none.
    """
    if "GREATSEALD_LOG_ORIGIN" in os.environ:
        raise CommandFailed(USAGE, "GREATSEALD_LOG_ORIGIN is set, and wins over the file that this changes: unset it")
    text = settings.file.read_text()
    pattern = re.compile(
        rf"""^(\s*origin\s*=\s*)(?:"{re.escape(settings.log.origin)}"|'{re.escape(settings.log.origin)}')""",
        re.MULTILINE,
    )
    renamed, count = pattern.subn(lambda found: f'{found[1]}"{origin}"', text)
    if count != 1:
        raise CommandFailed(
            USAGE, f'{settings.file} has {count} lines like `origin = "{settings.log.origin}"`, and one was meant'
        )
    with tempfile.NamedTemporaryFile("w", dir=settings.file.parent, prefix=".new-origin-", suffix=".toml") as trial:
        trial.write(renamed)
        trial.flush()
        try:
            named = load(Path(trial.name), os.environ).log.origin
        except ConfigError as error:
            problems = "\n".join(str(problem).replace(trial.name, str(settings.file)) for problem in error.problems)
            raise CommandFailed(USAGE, problems) from error
    if named != origin:
        raise CommandFailed(USAGE, f"{origin!r} cannot be written as a log's name")
    return renamed


def _report(settings: Settings, old: _Old, done: _Change, *, as_json: bool) -> None:
    if as_json:
        emit(
            {
                "origin": done.origin,
                "vkey": done.vkey,
                "closed": {"origin": settings.log.origin, "size": old.size, "root": old.root.hex(), "vkey": old.vkey},
                "set_aside": done.aside,
            }
        )
        return
    say(f"The log {settings.log.origin} is closed at {old.size} entries; the new one's first entry says so.")
    if old.released is not None and old.released.size > old.size:
        say(f"{old.released.size - old.size} entries that were released are not in it; receipts of them verify on.")
    say("What belongs to it was set aside, and nothing deleted:")
    for path in done.aside:
        say(f"  {path}")
    if settings.log.tiles is not None:
        say(f"{settings.log.tiles.directory} still holds the old log's tiles: name another directory in [log.tiles].")
    say("The new log's verifier key, for everybody who verifies, for witnesses and for mirrors:")
    print(done.vkey)
    say("Receipts of the old log verify with its own verifier key, as ever:")
    say(f"  {old.vkey}")
