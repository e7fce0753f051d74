"""A TCP proxy on loopback that cuts its connections, with a reset, when so many bytes have passed.

with CuttingProxy("localhost:8443", up=[100_000], down=[50_000]) as proxy:
    ... connect to proxy.address ...
assert proxy.cuts == 2
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Self


class CuttingProxy:
    """Forwards to `target`; cuts when the bytes sent up, or down, pass each of the given counts."""

    def __init__(self, target: str, *, up: Sequence[int] = (), down: Sequence[int] = ()) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._limits = {"up": sorted(up), "down": sorted(down)}
        self._passed = {"up": 0, "down": 0}
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"localhost:{self._listener.getsockname()[1]}"
        self.cuts = 0

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut()
        for thread in self._threads:
            thread.join(10)

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, 10)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            self._start(self._forward, client, server, "up")
            self._start(self._forward, server, client, "down")

    def _forward(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                sink.sendall(data)
                with self._lock:
                    self._passed[way] += len(data)
                    reached = bool(self._limits[way]) and self._passed[way] >= self._limits[way][0]
                    if reached:
                        self._limits[way].pop(0)
                        self.cuts += 1
                if reached:
                    self._cut()
        self._end(source, sink)

    def _cut(self) -> None:
        with self._lock:
            everything = list(self._open)
        self._end(*everything)

    def _end(self, *sockets: socket.socket) -> None:
        for each in sockets:
            with self._lock:
                mine = each in self._open
                self._open.discard(each)
            if mine:
                with contextlib.suppress(OSError):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
