"""`greatseald store`: the audit log's database, as its owner and its operators see it.

The daemon needs none of this with SQLite, which it makes and migrates itself. With PostgreSQL the role that
owns the schema is not the daemons' (`postgres_roles`), and makes and migrates it by these commands, or by the
SQL that `greatseald store sql` writes. A password never stands in argv.
"""

from __future__ import annotations

import secrets
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from greatseald.cli.exits import UNAVAILABLE, UNEXPECTED, USAGE, CommandFailed, emit, say
from greatseald.cli.reading import load_settings
from greatseald.config import FileProblem, Settings, StoreSettings, read_store_password

if TYPE_CHECKING:
    from greatseald.adapters.store.options import StoreOptions


def prepare(
    config: Path,
    owner: str,
    owner_password: Path | None,
    *,
    front: str,
    reader: str,
    must_be_empty: bool,
    as_json: bool,
) -> None:
    """Make or migrate the schema as `owner`, and give `front` and `reader` their rights.

    Raises:
        CommandFailed: the database refuses, is not empty though it must be, or is newer.
    """
    from greatseald.adapters.store.opening import is_shared, open_store
    from greatseald.ports.store import StoreError, StoreUnusable

    settings = load_settings(config)
    try:
        if not is_shared(settings.store.url):
            if owner or owner_password or front or reader:
                raise CommandFailed(USAGE, "SQLite has no roles: leave the options out")
            with closing(open_store(settings.store.url, secrets.token_bytes(16))):
                pass
            _report(settings, {"made": None, "grants": []}, as_json=as_json)
            return
        from greatseald.adapters.store import postgres_admin

        url, options = owner_of(settings, owner, owner_password)
        front = front or unquote(urlsplit(settings.store.url).username or "")
        own = unquote(urlsplit(url).username or "")
        before, after, grants = postgres_admin.prepare(
            url, options, front="" if front == own else front, reader=reader, must_be_empty=must_be_empty
        )
    except (StoreUnusable, FileProblem) as error:
        raise CommandFailed(UNAVAILABLE, str(error)) from error
    except StoreError as error:
        raise CommandFailed(UNEXPECTED, str(error)) from error
    _report(settings, {"version_before": before, "version": after, "grants": grants}, as_json=as_json)


def _report(settings: Settings, done: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        emit({"store": settings.store.safe_url, **done})
        return
    if "version" not in done:
        say(f"{settings.store.safe_url} has this version's schema.")
        return
    before, after = done["version_before"], done["version"]
    if before == after:
        say(f"{settings.store.safe_url} has schema version {after} already.")
    else:
        say(f"{settings.store.safe_url} has schema version {after} now{f', and had {before}' if before else ''}.")
    grants = done["grants"]
    say(f"{len(grants)} rights were given." if isinstance(grants, list) and grants else "No role was given rights.")


def status(config: Path, *, as_json: bool) -> None:
    """Say what the database holds and which fronts run.

    Raises:
        CommandFailed: it is not PostgreSQL, or cannot be read.
    """
    from greatseald.adapters.store.opening import is_shared
    from greatseald.bootstrap.compose import store_options
    from greatseald.ports.store import StoreError

    settings = load_settings(config)
    try:
        if not is_shared(settings.store.url):
            raise CommandFailed(USAGE, "this is for PostgreSQL: ask a daemon over SQLite with `greatseal audit`")
        from greatseald.adapters.store import postgres_admin

        found = postgres_admin.status(settings.store.url, replace(store_options(settings), wait_for_server=0))
    except (StoreError, FileProblem) as error:
        raise CommandFailed(UNAVAILABLE, str(error)) from error
    if as_json:
        emit({"store": settings.store.safe_url, **asdict(found)})
        return
    say(f"{settings.store.safe_url}: schema version {found.version}, {found.size} entries, used as {found.role}.")
    say(f"{found.fronts} front(s) run; {found.open_intents} intents are open.")
    if found.excess_rights:
        say(f"warning: {found.role} has rights that a daemon should not have: {', '.join(found.excess_rights)}")


def compact(config: Path, *, as_json: bool) -> None:
    """Give the free space within an SQLite log back to the file system.

    Raises:
        CommandFailed: a daemon uses it, it is not SQLite, or there is no room for the copy that it takes.
    """
    from greatseald.adapters.store.opening import compact as make_compact
    from greatseald.ports.store import StoreError, StoreUnusable

    settings = load_settings(config)
    try:
        before, after = make_compact(settings.store.url)
    except StoreUnusable as error:
        raise CommandFailed(UNAVAILABLE, str(error)) from error
    except StoreError as error:
        raise CommandFailed(UNEXPECTED, str(error)) from error
    if as_json:
        emit({"store": settings.store.safe_url, "bytes_before": before, "bytes": after})
        return
    say(f"{settings.store.safe_url} has {after} bytes now, and had {before}.")


def write_sql(front: str, reader: str) -> None:
    """Write the SQL that makes the newest schema and its rights, in one transaction."""
    from greatseald.adapters.store.opening import require_postgres
    from greatseald.ports.store import StoreUnusable

    try:
        require_postgres()
    except StoreUnusable as error:
        raise CommandFailed(UNAVAILABLE, str(error)) from error
    from greatseald.adapters.store import postgres_admin

    print(postgres_admin.script(front, reader), end="")


def owner_of(settings: Settings, owner: str, password: Path | None) -> tuple[str, StoreOptions]:
    """Return the URL and the options to act as the schema's owner; the configuration's where no other is given.

    Raises:
        CommandFailed: the URL is none, or holds a password.
        FileProblem: the password's file cannot be used.
    """
    from greatseald.bootstrap.compose import store_options

    if not owner:
        if password is not None:
            raise CommandFailed(USAGE, "--as-password-file belongs to --as, which is not given")
        return settings.store.url, replace(store_options(settings), wait_for_server=0)
    try:
        table = StoreSettings(url=owner).model_copy(update={"password_file": password})
    except ValueError as error:
        raise CommandFailed(USAGE, "--as must be a URL that begins with postgresql://") from error
    if table.has_password:
        raise CommandFailed(
            USAGE, "--as holds a password, which everybody on this machine can see: use --as-password-file"
        )
    if not owner.startswith("postgres"):
        raise CommandFailed(USAGE, "--as must be a URL that begins with postgresql://")
    blank = replace(store_options(settings), wait_for_server=0)
    return owner, replace(blank, password=read_store_password(table))
