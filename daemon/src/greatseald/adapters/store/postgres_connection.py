"""Connections to PostgreSQL: what the URL may say, TLS that is verified, timeouts, and no secret in a message.

    place = Place.parse("postgresql://greatseal_front@db.example/greatseal?sslrootcert=/etc/ssl/db-ca.pem", options)
    with place.connect() as connection: ...

libpq reads the URL, and whatever it reads besides: service files, password files, PG* variables. Over a
network the server must prove who it is: without an `sslmode`, verify-full holds, and anything weaker than
verify-ca is refused. A Unix socket and loopback need no TLS.
"""

from __future__ import annotations

import ipaddress
import os
import re
import time
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
import structlog
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from greatseald.adapters.store.options import StoreOptions
from greatseald.ports.store import StoreUnusable

_log = structlog.get_logger("greatseald.store")

_UNLESS_SAID: Final[dict[str, str]] = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "application_name": "greatseald",
    "target_session_attrs": "read-write",
}
"""A server or network that goes silent is noticed within half a minute, and of several hosts the primary is taken."""

_VERIFIED: Final = frozenset({"verify-ca", "verify-full"})
_COMING_UP: Final = "the database system is"
"""Begins what a server says that starts, recovers or shuts down. Other refusals (FATAL) are final."""
_RETRY_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Place:
    """A database and how to reach it. `name` is for messages: it shows host and database, never user or password."""

    name: str
    options: StoreOptions
    _conninfo: str = field(repr=False)
    _secrets: tuple[str, ...] = field(repr=False)

    @classmethod
    def parse(cls, url: str, options: StoreOptions) -> Place:
        """Read the URL.

        Raises:
            StoreUnusable: libpq cannot read it, or it asks for a connection over a network without verified TLS.
        """
        try:
            said = {key: str(value) for key, value in conninfo_to_dict(url).items()}
        except psycopg.ProgrammingError as error:
            # libpq repeats the URL in some of its messages.
            unknown = re.search(r'invalid URI query parameter: "(\w+)"', str(error))
            why = f"the parameter {unknown[1]!r} is not known" if unknown else "it is malformed"
            raise StoreUnusable(
                f"[store] url cannot be read: {why}. Write postgresql://USER@HOST:PORT/DATABASE?NAME=VALUE"
            ) from None
        host = said.get("host") or said.get("hostaddr") or ("" if "service" in said else os.environ.get("PGHOST", ""))
        shown = said.get("service") and f"service {said['service']}"
        name = f"PostgreSQL {shown or host or 'on its socket'}, database {said.get('dbname') or 'by default'}"
        if not _is_local(host) and "service" not in said:
            said.setdefault("sslmode", os.environ.get("PGSSLMODE", "verify-full"))
            if said["sslmode"] not in _VERIFIED:
                raise StoreUnusable(_unverified(name, said["sslmode"]))
        if options.password:
            said["password"] = options.password
        if options.connect_timeout:
            said.setdefault("connect_timeout", str(max(2, round(options.connect_timeout))))
        defaults = {key: value for key, value in _UNLESS_SAID.items() if key not in said}
        secrets = tuple(said[key] for key in ("password", "sslpassword") if said.get(key))
        return cls(name, options, make_conninfo(**{**said, **defaults, "client_encoding": "utf8"}), secrets)

    def connect(self, *, wait: bool = True) -> psycopg.Connection[Any]:
        """Open a connection in autocommit mode whose session has the timeouts and finds nothing by a search path.

        Raises:
            StoreUnusable: no connection (with `wait`, for as long as `wait_for_server`), or no verified TLS.
        """
        give_up = time.monotonic() + (self.options.wait_for_server if wait else 0)
        said = ""
        while True:
            try:
                connection = psycopg.connect(self._conninfo, autocommit=True)
                break
            except psycopg.OperationalError as error:
                why = self.one_line(error)
                final = "FATAL:" in why and _COMING_UP not in why
                if final or time.monotonic() >= give_up:
                    raise StoreUnusable(f"{self.name} cannot be reached: {why}") from None
                if not said:
                    _log.warning("store_waiting", store=self.name, why=why, seconds=self.options.wait_for_server)
                said = why
                time.sleep(_RETRY_SECONDS)
        try:
            self._require_verified(connection)
            self._set_up(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def one_line(self, error: Exception) -> str:
        """The error on one line, without any secret."""
        line = " ".join(str(error).split()) or type(error).__name__
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return line

    def _require_verified(self, connection: psycopg.Connection[Any]) -> None:
        """A service file or the environment may have chosen the host: look at the connection that came of it."""
        info = connection.info
        if _is_local(info.host or info.hostaddr):
            return
        mode = next((o.val.decode() for o in connection.pgconn.info if o.keyword == b"sslmode" and o.val), "")
        if not connection.pgconn.ssl_in_use or mode not in _VERIFIED:
            raise StoreUnusable(_unverified(self.name, mode))

    def _set_up(self, connection: psycopg.Connection[Any]) -> None:
        options = self.options
        for name, seconds in (
            ("statement_timeout", options.statement_timeout),
            ("lock_timeout", options.lock_timeout),
            ("idle_in_transaction_session_timeout", options.idle_timeout),
        ):
            connection.execute("SELECT set_config(%s, %s, false)", (name, f"{round(seconds * 1000)}ms"))
        connection.execute("SET search_path = pg_catalog")
        connection.execute("SET default_transaction_isolation = 'read committed'")


def _is_local(host: str) -> bool:
    """Whether every one of the hosts (comma-separated, as libpq takes them) is on this machine."""
    return all(map(_is_one_local, host.split(",")))


def _is_one_local(host: str) -> bool:
    if not host or host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _unverified(name: str, mode: str) -> str:
    return (
        f"{name} is reached over a network, and sslmode={mode} does not verify the server: whoever stands between could "
        "keep the log. Use sslmode=verify-full with sslrootcert=FILE (or sslrootcert=system)"
    )
