"""Parties outside a daemon: witnesses that run as others would run them, and neighbours that misbehave."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from deployment import SCRIPTS, Deployment, clean_environment, greatseal

READY = re.compile(r"^greatseal witness ready: \S+ listens on (\S+)$", re.MULTILINE)


class WitnessProcess:
    """`greatseal witness init` and `serve`, in a directory of its own; its port stays from start to start."""

    def __init__(self, directory: Path, name: str = "witness.example/w1") -> None:
        self.directory = directory
        done = greatseal("witness", "init", name, "--dir", directory)
        assert done.returncode == 0, done.stderr
        self.name = name
        self.vkey = done.stdout.strip()
        self.vkey_file = directory / "witness.vkey"
        self.address = "127.0.0.1:0"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def stderr(self) -> str:
        return (self.directory / "stderr").read_text()

    def start(self, *log_keys: Path | str, state: str = "state") -> WitnessProcess:
        options = [part for key in log_keys for part in ("--log-key", str(key))]
        with (self.directory / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                [
                    *(str(SCRIPTS / "greatseal"), "witness", "serve", "--state", str(self.directory / state)),
                    *("--key", str(self.directory / "witness.key"), "--listen", self.address, *options),
                ],
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        deadline = time.monotonic() + 30
        while (found := READY.search(self.stderr)) is None:
            assert self.process.poll() is None, self.stderr
            assert time.monotonic() < deadline, self.stderr
            time.sleep(0.02)
        self.address = found[1]
        return self

    def stop(self) -> int:
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def table(self, **more: object) -> str:
        """Its table in the daemon's configuration."""
        return table("witnesses", vkey=self.vkey, url=self.url, **more)


def table(kind: str, **values: object) -> str:
    """One `[[log.…]]` table."""
    quoted = {key: f'"{value}"' if isinstance(value, (str, Path)) else value for key, value in values.items()}
    lines = [f"{key} = {value}" for key, value in quoted.items()]
    return "\n".join([f"[[log.{kind}]]", *lines, ""])


def witnessed(deployment: Deployment, key: str, count: int) -> None:
    """Have a key released with so many cosignatures."""
    deployment.edit(rf'^name = "{key}"(.*)$', rf'name = "{key}"\1\nrelease = "witnessed({count})"')


class BlackHole:
    """Takes connections and never answers."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        while True:
            try:
                self.taken.append(self._socket.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        # Without the shutdown the thread that accepts would keep the port open.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        for each in self.taken:
            each.close()


class Answering:
    """An HTTP server whose answer a test decides: a function of (path, body) that returns status, type and body."""

    def __init__(self, answer: Callable[[str, bytes], tuple[int, str, bytes]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                self._answer(body)

            def do_GET(self) -> None:
                self._answer(b"")

            def _answer(self, body: bytes) -> None:
                status, kind, data = answer(self.path, body)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
