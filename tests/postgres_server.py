"""A real PostgreSQL server for tests: its own cluster, a Unix socket only, fsync on, gone afterwards.

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


class PostgresServer:
    """A running server; make one with `start()`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._databases: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._as_user = ["setpriv", "--pdeathsig", "INT"]
        if os.geteuid() == 0:
            shutil.chown(directory, "postgres", "postgres")
            self._as_user += ["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]

    @classmethod
    @contextmanager
    def start(cls) -> Iterator[PostgresServer]:
        # Not under pytest's own directory, which only root may enter.
        directory = Path(tempfile.mkdtemp(prefix="greatseal-pg-"))
        try:
            server = cls(directory)
            server._run("initdb", "-D", str(directory / "data"), "-A", "trust", "-U", "postgres", "-N", "-E", "UTF8")
            server.up()
            try:
                yield server
            finally:
                server.down(signal.SIGQUIT)
        finally:
            shutil.rmtree(directory)

    def up(self) -> None:
        command = [*self._as_user, str(BINARIES / "postgres"), "-D", str(self.directory / "data")]
        for setting in ("listen_addresses=", f"unix_socket_directories={self.directory}"):
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

    def url(self, database: str, user: str = "postgres") -> str:
        return f"postgresql://{user}@/{database}?host={quote(str(self.directory), safe='')}"

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
