"""`greatseald backup` and `greatseald restore`: copies of the audit log's store.

While a daemon runs it alone may open its database, so it is asked for the copy over its admin
socket; otherwise this process takes the store's lock and copies by itself. A restore works offline
only. Whether a restored log may go on is not decided here: a daemon refuses to sign on a log that
is older than its anchor.
"""

from __future__ import annotations

import os
import secrets
from contextlib import closing
from pathlib import Path

from greatseald.cli.exits import UNAVAILABLE, UNEXPECTED, USAGE, CommandFailed, emit, say
from greatseald.cli.reading import load_settings
from greatseald.config import FileProblem


def make_backup(config: Path, path: Path, *, as_json: bool) -> None:
    """Write a consistent copy of the store to `path`, which must not exist.

    Raises:
        CommandFailed: `path` exists or cannot be written, the configuration is wrong, the store cannot be opened.
    """
    from greatseald.adapters.store.opening import open_store
    from greatseald.bootstrap.compose import store_options
    from greatseald.ports.store import StoreError, StoreUnusable
    from greatseald.rpc import admin_client

    settings = load_settings(config)
    target = path.absolute()
    if os.path.lexists(target):
        raise CommandFailed(USAGE, f"{target} exists already, and a backup overwrites nothing: choose another name")
    if not target.parent.is_dir():
        raise CommandFailed(USAGE, f"{target.parent} is not a directory: make it first")
    try:
        made = admin_client.backup(settings.server.admin_socket, target)
        if made is not None:
            entries, size, by = made.log_size, made.size_bytes, "daemon"
        else:
            with closing(open_store(settings.store.url, secrets.token_bytes(16), store_options(settings))) as store:
                store.backup(str(target))
                head = store.head()
            entries, size, by = head.size if head else 0, target.stat().st_size, "offline"
    except admin_client.AdminRefused as error:
        raise CommandFailed(UNEXPECTED, f"the daemon could not write the backup: {error}") from error
    except (StoreUnusable, FileProblem) as error:
        raise CommandFailed(UNAVAILABLE, str(error)) from error
    except StoreError as error:
        raise CommandFailed(UNEXPECTED, str(error)) from error
    if as_json:
        emit({"path": str(target), "log_size": entries, "bytes": size, "made_by": by})
    else:
        how = "by the running daemon" if by == "daemon" else "directly: no daemon listens on the admin socket"
        say(f"Wrote {target}: a log of {entries} entries, {size} bytes, copied {how}.")
        say("It holds the audit log, and no key and no PIN. Keep log/ and anchor/ apart from it.")


def restore_backup(config: Path, path: Path, *, replace: bool, as_json: bool) -> None:
    """Put the copy at `path` in place of the store, which no daemon may be using.

    Raises:
        CommandFailed: a store is there and `replace` is not set, a daemon uses it, or the copy is not sound.
    """
    from greatseald.adapters.store.opening import restore, sqlite_path
    from greatseald.ports.store import StoreError, StoreUnusable

    settings = load_settings(config)
    source = path.absolute()
    if not source.is_file():
        raise CommandFailed(USAGE, f"{source} is not a file: name a copy that `greatseald backup` made")
    url = settings.store.url
    if url.startswith("sqlite:") and not replace and os.path.lexists(sqlite_path(url)):
        raise CommandFailed(
            USAGE, f"{sqlite_path(url)} exists already: with --replace it is set aside, and nothing is deleted"
        )
    try:
        moved = restore(str(source), url, replace=replace)
    except StoreUnusable as error:
        raise CommandFailed(UNAVAILABLE, str(error)) from error
    except StoreError as error:
        raise CommandFailed(UNEXPECTED, str(error)) from error
    if as_json:
        emit({"restored": settings.store.safe_url, "from": str(source), "replaced": moved})
        return
    say(f"Restored {settings.store.safe_url} from {source}.")
    if moved:
        say(f"What was there is now {moved}.")
    say(f"A log that is older than its anchor ({settings.log.anchor}) will not be extended: the daemon refuses to")
    say("sign on it and says so, since receipts exist for entries that it lacks. Restore the newest copy there is.")
