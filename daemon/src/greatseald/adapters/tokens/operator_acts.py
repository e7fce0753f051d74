"""What operators did at a token's host, until a front has it in the log.

    acts = ActJournal(state_dir, "soft")
    act = acts.begin("unlock", uid)             # durable before anything is done
    acts.end(act, "unlocked")                   # durable before anybody is told
    acts.noted([act.id])                        # a front has it in the log: forgotten here

The file holds no PIN and nothing derived from one. A host that dies over an act leaves it as
"interrupted". No more than `MAX_ACTS` wait: then operators can do nothing before a front has run.
"""

from __future__ import annotations

import pwd
import threading
import time
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from greatseald.adapters.durable import write_durably
from greatseald.ports.tokens import OperatorAct

FILE_NAME: Final = "operator-acts"
MAX_ACTS: Final = 32
_MAX_BYTES: Final = 64 * 1024
_MAX_DETAIL: Final = 400


class ActsUnusable(Exception):
    """What operators did cannot be noted, so they can do nothing; the message says why."""


class ActJournal:
    """The acts of one token's operators that are not in the log yet. May be used by several threads."""

    def __init__(self, directory: Path, token: str) -> None:
        """Read what an earlier host left.

        Raises:
            ActsUnusable: the file cannot be read, or is not one of ours.
        """
        self.path = directory / FILE_NAME
        self._token = token
        self._lock = threading.Lock()
        self._under_way = ""
        self._acts = self._read()

    @property
    def waiting(self) -> list[OperatorAct]:
        """Those that have ended and are in no log yet, oldest first."""
        with self._lock:
            return [act for act in self._acts if act.id != self._under_way]

    @property
    def settled(self) -> bool:
        """Whether nothing is under way, and nothing is missing in the log."""
        with self._lock:
            return not self._acts

    def begin(self, action: str, uid: int) -> OperatorAct:
        """Note durably that somebody is about to do something.

        Raises:
            ActsUnusable: it cannot be noted, or too many wait.
        """
        act = OperatorAct(str(uuid.uuid4()), _now(), action, uid, _user(uid))
        with self._lock:
            if len(self._acts) >= MAX_ACTS:
                message = (
                    f"token {self._token}: {MAX_ACTS} acts of operators wait to be written into the audit log: start the "
                    "daemon, or see why it cannot write its log"
                )
                raise ActsUnusable(message)
            self._under_way = act.id
            self._write([*self._acts, act])
        return act

    def end(self, act: OperatorAct, result: str, detail: str = "") -> None:
        """Note durably how it ended.

        Raises:
            ActsUnusable: it cannot be noted; it stands as interrupted.
        """
        with self._lock:
            ended = act._replace(result=result, detail=detail[:_MAX_DETAIL])
            self._under_way = ""
            self._write([ended if each.id == act.id else each for each in self._acts])

    def noted(self, ids: Collection[str]) -> None:
        """Forget those that are in the log.

        Raises:
            ActsUnusable: the file cannot be written; they will be told again.
        """
        with self._lock:
            left = [act for act in self._acts if act.id not in ids or act.id == self._under_way]
            if len(left) != len(self._acts):
                self._write(left)

    def _read(self) -> list[OperatorAct]:
        try:
            with self.path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return []
        except OSError as error:
            message = f"token {self._token}: the acts of operators in {self.path} cannot be read: {error.strerror}"
            raise ActsUnusable(message) from error
        try:
            return msgspec.json.decode(data, type=list[OperatorAct])[:MAX_ACTS]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            message = f"token {self._token}: {self.path} is not what a host wrote: move it away, and find out who did"
            raise ActsUnusable(message) from error

    def _write(self, acts: list[OperatorAct]) -> None:
        try:
            write_durably(self.path, msgspec.json.encode(acts) + b"\n")
        except OSError as error:
            message = f"token {self._token}: the acts of operators cannot be written to {self.path}: {error.strerror}"
            raise ActsUnusable(message) from error
        self._acts = acts


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
