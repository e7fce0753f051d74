"""A real PostgreSQL server for tests: its own cluster, a Unix socket (and TLS on loopback where asked), fsync on, gone afterwards.

    with PostgresServer.start() as server:
        url = server.empty_database()

PostgreSQL refuses to run as root, so under root it runs as the user `postgres`, who owns the cluster;
otherwise as oneself. If the tests die, the kernel ends it (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg

BINARIES = Path("/usr/lib/postgresql/15/bin")
"""Where Debian 12 installs it."""

BOOT, OTHER = bytes(range(16)), b"o" * 16
"""Two fronts."""


def database_of(url: str) -> str:
    """The database that one of our URLs names."""
    return url.partition("@/")[2].partition("?")[0]


class PostgresServer:
    """A running server; make one with `start()`."""

    def __init__(self, directory: Path, settings: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.settings = settings
        self.port = 5432
        self._databases: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._as_user = ["setpriv", "--pdeathsig", "INT"]
        if os.geteuid() == 0:
            shutil.chown(directory, "postgres", "postgres")
            self._as_user += ["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]

    @classmethod
    @contextmanager
    def start(cls, *settings: str, hba: str = "") -> Iterator[PostgresServer]:
        """Run one with further `settings` (name=value) and with lines before those that trust everybody on the socket."""
        # Not under pytest's own directory, which only root may enter.
        directory = Path(tempfile.mkdtemp(prefix="greatseal-pg-"))
        try:
            server = cls(directory, settings)
            server._run("initdb", "-D", str(directory / "data"), "-A", "trust", "-U", "postgres", "-N", "-E", "UTF8")
            rules = directory / "data" / "pg_hba.conf"
            rules.write_text(hba + rules.read_text())
            server.up()
            try:
                yield server
            finally:
                server.down(signal.SIGQUIT)
        finally:
            shutil.rmtree(directory)

    def up(self) -> None:
        command = [*self._as_user, str(BINARIES / "postgres"), "-D", str(self.directory / "data")]
        for setting in ("listen_addresses=", f"unix_socket_directories={self.directory}", *self.settings):
            command += ["-c", setting]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", env={"LC_ALL": "C"})
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return

    def down(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: the fast shutdown. SIGQUIT: the immediate one, which leaves recovery to the next start."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def processes(self) -> list[int]:
        """The postmaster and its children, sessions among them."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [self._process.pid, *map(int, children.split())]

    def base_backup(self, name: str) -> None:
        """Copy the running cluster with pg_basebackup."""
        target = str(self.directory / name)
        self._run("pg_basebackup", "-D", target, "-h", str(self.directory), "-U", "postgres", "-c", "fast", "--no-sync")

    def go_back_to(self, name: str) -> None:
        """Put a base backup in place of the stopped cluster."""
        (self.directory / "data").rename(self.directory / f"data before {name}")
        (self.directory / name).rename(self.directory / "data")

    def give(self, path: Path) -> None:
        """Make a file the server's own: it reads no key that others own."""
        path.chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(path, "postgres", "postgres")

    def url(self, database: str, user: str = "postgres") -> str:
        return f"postgresql://{user}@/{database}?host={quote(str(self.directory), safe='')}&port={self.port}"

    def empty_database(self, name: str = "log") -> str:
        """Return the URL of a database without a log. One of the same name is used again: making one costs 0.3 s."""
        if name in self._databases:
            self.run(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'")
            self.run("DROP SCHEMA IF EXISTS greatseal CASCADE", name)
        else:
            self.run(f"CREATE DATABASE {name}")
            self._databases.add(name)
        return self.url(name)

    def run(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement as the superuser."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, str(BINARIES / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd="/", env={"LC_ALL": "C"})
