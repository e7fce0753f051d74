"""Which store a URL means: the table of schemes.

    store = open_store("sqlite:///var/lib/greatseal/log.db", boot)

A further store is a module and a line in `SCHEMES`. Drivers are imported when a URL asks for them,
so that nobody needs PostgreSQL's client for an embedded log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from greatseald.adapters.store.options import DEFAULTS, StoreOptions
from greatseald.ports.store import StoreError, StoreUnusable

if TYPE_CHECKING:
    from greatseald.ports.store import Store


def open_store(url: str, boot: bytes, options: StoreOptions = DEFAULTS) -> Store:
    """Open the store that `url` names for the run `boot` (16 bytes).

    `options` are for a shared store.

    Raises:
        StoreUnusable: unknown scheme, missing driver, or the store refuses; the message says what to do.
    """
    return SCHEMES[_scheme(url)](url, boot, options)


def restore(source: str, url: str, *, replace: bool = False) -> str | None:
    """Put the backup file `source` in place of the stopped store `url`; return where a replaced one went.

    Raises:
        StoreUnusable: a daemon uses it, or its place cannot be used.
        StoreError: the backup is not sound, or something is there and `replace` is not set.
    """
    if _scheme(url) != "sqlite":
        raise StoreError("a PostgreSQL log is restored with PostgreSQL's own tools (pg_restore, or a base backup)")
    from greatseald.adapters.store import sqlite_copy

    return sqlite_copy.restore(source, sqlite_path(url), replace=replace)


def compact(url: str) -> tuple[int, int]:
    """Give free space within the stopped store `url` back; return the bytes of its file before and after.

    Raises:
        StoreUnusable: a daemon uses it, or it cannot be used.
        StoreError: it is not SQLite, or there is no room for a second copy of it.
    """
    if _scheme(url) != "sqlite":
        raise StoreError("PostgreSQL reuses the space by itself (autovacuum); VACUUM FULL gives it back")
    from greatseald.adapters.store import sqlite_copy

    return sqlite_copy.compact(sqlite_path(url))


def sqlite_path(url: str) -> str:
    """Return the file of an `sqlite:///absolute/path` URL (percent-encoded where needed). Raises StoreUnusable."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.scheme != "sqlite" or parts.netloc or parts.query or parts.fragment or not path.startswith("/"):
        raise StoreUnusable(f"{url!r} does not name a file: write sqlite:///absolute/path (three slashes)")
    if path.endswith("/") or "\x00" in path:
        raise StoreUnusable(f"{url!r} names a directory, not a database file")
    return path


def _scheme(url: str) -> str:
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise StoreUnusable(f"[store] url has the unknown scheme {scheme!r}; known are: {', '.join(sorted(SCHEMES))}")
    return scheme


def is_shared(url: str) -> bool:
    """Whether other fronts may write to the store as well, across a network. Raises StoreUnusable."""
    return _scheme(url) != "sqlite"


def _open_sqlite(url: str, boot: bytes, _options: StoreOptions) -> Store:
    from greatseald.adapters.store.sqlite import SqliteStore

    return SqliteStore(sqlite_path(url), boot)


def require_postgres() -> None:
    """Raise StoreUnusable where PostgreSQL's client is not installed."""
    try:
        import psycopg  # noqa: F401 - whether it is there
    except ImportError as error:
        raise StoreUnusable(
            f"a PostgreSQL log needs psycopg 3, which is not installed ({error}): pip install 'greatseald[postgres]'"
        ) from error


def _open_postgres(url: str, boot: bytes, options: StoreOptions) -> Store:
    require_postgres()
    from greatseald.adapters.store.postgres import PostgresStore

    return PostgresStore(url, boot, options)


SCHEMES: Final[dict[str, Callable[[str, bytes, StoreOptions], Store]]] = {
    "sqlite": _open_sqlite,
    "postgresql": _open_postgres,
    "postgres": _open_postgres,
}
