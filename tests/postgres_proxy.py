"""Stands between a front and PostgreSQL and cuts the connection at a COMMIT, before or after the server has seen it.

    with CommitCutter(server) as proxy:
        store = open_store(proxy.url("log"), boot)
        proxy.cut_next(after=True)      # the server commits, and its answer never arrives

A Unix socket in a directory of its own, and a thread for each direction: nothing is parsed but the word.
"""

from __future__ import annotations

import selectors
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

from postgres_server import PostgresServer

_COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
"""A simple query of the frontend protocol: its letter, its length, its text."""


class CommitCutter:
    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._directory = tempfile.TemporaryDirectory(prefix="greatseal-cut-")
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._cut: bool | None = None
        self.cuts = 0

    def url(self, database: str, user: str = "postgres") -> str:
        return f"postgresql://{user}@/{database}?host={quote(self._directory.name, safe='')}"

    def cut_next(self, *, after: bool, skip: int = 0) -> None:
        """Cut at the next COMMIT but `skip`; `after` the server has carried it out, or before it hears of it."""
        self._skip = skip
        self._cut = after

    def __enter__(self) -> Self:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(Path(self._directory.name) / ".s.PGSQL.5432"))
        self._listener.listen()
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(20)
        self._directory.cleanup()

    def _run(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._run(self._carry, client)

    def _carry(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        with client, server, selectors.DefaultSelector() as ready:
            try:
                server.connect(str(self._server.directory / ".s.PGSQL.5432"))
                ready.register(client, selectors.EVENT_READ, server)
                ready.register(server, selectors.EVENT_READ, client)
                while not self._stopping.is_set():
                    for key, _ in ready.select(0.2):
                        assert isinstance(key.fileobj, socket.socket)
                        data = key.fileobj.recv(1 << 16)
                        if not data:
                            return
                        if key.fileobj is client and data.endswith(_COMMIT) and self._is_due():
                            self._end(server, data)
                            return
                        key.data.sendall(data)
            except OSError:
                return

    def _is_due(self) -> bool:
        if self._cut is None:
            return False
        if self._skip:
            self._skip -= 1
            return False
        return True

    def _end(self, server: socket.socket, data: bytes) -> None:
        if self._cut:
            server.sendall(data)
            server.recv(1 << 16)  # its answer: committed
        self._cut = None
        self.cuts += 1
