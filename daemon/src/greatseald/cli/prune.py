"""`greatseald log prune`: dropping entries from the store that a verified export holds.

The export is verified here, in a process of its own, so that the daemon goes on signing; the daemon checks its
checkpoint against the log, records what goes, and drops it. Over PostgreSQL the role of a daemon may not: then
this process does, as the owner of the schema.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from greatseald.cli.exits import (
    UNAVAILABLE,
    UNEXPECTED,
    USAGE,
    VERIFICATION_FAILED,
    CommandFailed,
    emit,
    say,
)
from greatseald.cli.reading import load_settings
from greatseald.cli.store import owner_of
from greatseald.config import FileProblem, Settings, read_log_key

if TYPE_CHECKING:
    from greatseald.rpc.admin_client import PruneBegun

_EXITS = {"INVALID_ARGUMENT": USAGE, "UNAVAILABLE": UNAVAILABLE, "DEADLINE_EXCEEDED": UNAVAILABLE}


def prune(
    config: Path,
    exported: Path,
    before: int | None,
    older_than_days: int | None,
    owner: str,
    owner_password: Path | None,
    *,
    as_json: bool,
) -> None:
    """Verify the export, have the log say what goes, and drop it.

    Raises:
        CommandFailed: the export is not sound (6) or nothing may go (2), or daemon or database cannot be used (5).
    """
    from greatseald.adapters.store.opening import is_shared
    from greatseald.rpc import admin_client

    if (before is None) == (older_than_days is None):
        raise CommandFailed(USAGE, "say what goes: either --before INDEX or --older-than DAYS")
    settings = load_settings(config)
    shared = is_shared(settings.store.url)
    if shared and not owner:
        raise CommandFailed(
            USAGE,
            "a daemon's role may not drop entries of a PostgreSQL log: give the URL of the schema's owner with --as",
        )
    if not shared and (owner or owner_password):
        raise CommandFailed(USAGE, "SQLite has no roles: leave --as and --as-password-file out")
    note = _verify(settings, exported)
    try:
        begun = admin_client.prune(
            settings.server.admin_socket, str(exported.absolute()), note, before=before, older_than_days=older_than_days
        )
    except admin_client.AdminRefused as refused:
        raise CommandFailed(_EXITS.get(refused.code, UNEXPECTED), f"the daemon drops nothing: {refused}") from refused
    if begun is None:
        raise CommandFailed(
            UNAVAILABLE,
            f"no daemon listens on {settings.server.admin_socket}: it has to record what goes. Start it "
            "(`greatseald serve`), or run this as the daemon's user or root",
        )
    if begun.by_owner:
        _drop(settings, owner, owner_password, begun)
    if as_json:
        emit(
            {
                "pruned_below": begun.size,
                "root": begun.root.hex(),
                "entry": begun.entry,
                "limit": begun.limit,
                "exported": str(exported.absolute()),
            }
        )
        return
    done = "were dropped" if begun.by_owner else "are being dropped"
    say(f"The entries below {begun.size} {done}; entry {begun.entry} of the log says so.")
    if begun.limit:
        say(f"Not more: {begun.limit}.")
    say(f"Keep {exported.absolute()}: they stand nowhere else now. Proofs of them go on as before.")
    if not shared:
        say("The database's file reuses their space; `greatseald store compact` gives it back while no daemon runs.")


def _verify(settings: Settings, exported: Path) -> str:
    """Verify the whole export; return its checkpoint's exact text."""
    from greatseal.errors import VerificationFailed
    from greatseal.files import read_bounded
    from greatseal.logdirectory import LogDirectory
    from greatseal.note import MAX_NOTE_BYTES, NoteSigner
    from greatseal.tilewriter import CHECKPOINT

    try:
        key = NoteSigner(settings.log.origin, read_log_key(settings.log.key_file)).verifier
        say(f"Verifying {exported} ...")
        note = read_bounded(exported / CHECKPOINT, MAX_NOTE_BYTES).decode()
        checkpoint, _ = LogDirectory(exported, key).verify()
        say(f"{checkpoint.size} entries, every one covered by the export's checkpoint.")
    except FileProblem as error:
        raise CommandFailed(UNAVAILABLE, f"[log] key_file {error}") from error
    except VerificationFailed as error:
        raise CommandFailed(
            VERIFICATION_FAILED, f"the export {exported} is not sound, and nothing was dropped: {error.message}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "its checkpoint is not UTF-8"
        raise CommandFailed(USAGE, f"{exported} cannot be read as an export of the log: {why}") from error
    return note


def _drop(settings: Settings, owner: str, owner_password: Path | None, begun: PruneBegun) -> None:
    from greatseald.adapters.store import postgres_pruning
    from greatseald.ports.store import StoreError, StoreUnusable

    try:
        url, options = owner_of(settings, owner, owner_password)
        postgres_pruning.prune(url, options, begun.size, begun.entry, lambda _done, _target: None)
    except (StoreUnusable, FileProblem) as error:
        raise CommandFailed(UNAVAILABLE, f"{error}. Entry {begun.entry} says what goes; run this again") from error
    except StoreError as error:
        raise CommandFailed(UNEXPECTED, str(error)) from error
