"""The token host's own socket for operators: mode 0600, served to the host's user and to root, nobody else.

One request at a time: what operators do is rare, and two of them at once would spend tries that
neither knows of.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from greatseald.adapters.tokens.launch import say
from greatseald.adapters.tokens.operator_protocol import (
    Answer,
    OperatorProtocolError,
    Request,
    receive_request,
    send_answer,
)
from greatseald.adapters.tokens.secret import Secret
from greatseald.adapters.tokens.unix_sockets import bind, peer_uid

_REQUEST_SECONDS: Final = 5.0
"""How long a peer may take to say what it wants."""
_PAUSE_SECONDS: Final = 0.5


class Desk(Protocol):
    """What answers requests."""

    def answer(self, uid: int, request: Request, secrets: list[Secret]) -> Answer:
        """Carry one out."""
        ...

    def finish(self, *, failed: bool = False) -> None:
        """Do what is left to do once the answer is sent; `failed`: there was none of its own."""
        ...


class OperatorSocket:
    """Listens from `start` on, in a thread of its own."""

    def __init__(self, path: Path, token: str) -> None:
        """Listen.

        Raises:
            SocketUnusable: the socket cannot be made.
        """
        self._listener = bind(path)
        self._path = path
        self._token = token
        self._busy = threading.Lock()

    def start(self, desk: Desk, idle: Callable[[], None], idle_seconds: float) -> None:
        """Answer from now on; `idle` is called whenever nobody came for `idle_seconds`."""
        self._listener.settimeout(idle_seconds)
        threading.Thread(target=self._serve, args=(desk, idle), name="operators", daemon=True).start()

    def _serve(self, desk: Desk, idle: Callable[[], None]) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                idle()
                continue
            except OSError:  # out of descriptors, or an operator who gave up before he was accepted
                time.sleep(_PAUSE_SECONDS)
                continue
            with sock, self._busy:
                self._one(sock, desk)

    def _one(self, sock: socket.socket, desk: Desk) -> None:
        uid = peer_uid(sock)
        if uid not in (os.geteuid(), 0):
            say(self._token, f"operator refused: user id {uid} is neither this host's nor root")
            return
        sock.settimeout(_REQUEST_SECONDS)
        try:
            request, secrets = receive_request(sock)
        except OperatorProtocolError as error:
            say(self._token, f"operator's request refused: {error}")
            return
        failed = False
        try:
            answer = desk.answer(uid, request, secrets)
        except Exception as error:  # noqa: BLE001 - the operator has to hear of it; its text might quote what it was given
            answer = Answer("failed", f"token {self._token}: the host failed: {type(error).__name__}")
            failed = True
        finally:
            for secret in secrets:
                secret.wipe()
        say(self._token, f"operator (user id {uid}): {request.action[:32]}: {answer.result}")
        with suppress(OSError):
            send_answer(sock, answer)
            sock.shutdown(socket.SHUT_RDWR)
        desk.finish(failed=failed)

    def close(self) -> None:
        """Let no more in, once what is being answered is answered."""
        with self._busy:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._listener.close()
