"""A witness of transparency logs: it cosigns a checkpoint only where that extends the last one that it cosigned.

For each log it keeps one file, the last checkpoint, which is on the disk before its cosignature leaves. So it never
cosigns two histories of one log, nor a shorter log after a longer one, restarts included. Losing the directory
loses exactly this: a witness without its state is a new witness, and needs a new key.

    witness = Witness(WitnessSigner(name, key), [log_key], Path("state"))
    status, kind, body = witness.add_checkpoint(request_body)       # HTTP is greatseal.witnessserver

Source: c2sp.org/tlog-witness.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from greatseal import tlogwitness
from greatseal.checkpoint import EMPTY_ROOT, Checkpoint, parse_text
from greatseal.cosignature import WitnessSigner
from greatseal.errors import UsageError, VerificationFailed
from greatseal.files import PRIVATE, write_whole
from greatseal.note import MAX_NOTE_BYTES, VerifierKey, open_note, parse_note
from greatseal.tlog import verify_consistency
from greatseal.verification import CheckpointInvalid, ProofInvalid

_TEXT: Final = "text/plain; charset=utf-8"


class Reply(NamedTuple):
    """An HTTP answer: status, content type, body; `origin` and `size` of the log it was about, for the witness's own log."""

    status: int
    content_type: str
    body: bytes
    origin: str = ""
    size: int = 0


class Witness:
    """Cosigns checkpoints of the logs whose keys it was given. Thread-safe; one process at a time has the state.

    Args:
        signer: the witness's own key.
        log_keys: keys of the logs; a key's name is its log's origin. A log may have several.
        state: the directory of the last checkpoints, which exists.
        clock: POSIX seconds.

    Raises:
        UsageError: another process has the state, or a file in it is not what this witness wrote.
        OSError: the state cannot be read.
    """

    def __init__(
        self,
        signer: WitnessSigner,
        log_keys: Iterable[VerifierKey],
        state: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._signer = signer
        self._clock = clock
        self._state = state
        self._keys: dict[str, list[VerifierKey]] = {}
        for key in log_keys:
            self._keys.setdefault(key.name, []).append(key)
        self._guard = threading.Lock()
        self._lock = _lock(state / "lock")
        try:
            self._last = {origin: self._load(origin) for origin in self._keys}
        except BaseException:
            self.close()
            raise

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each log that was cosigned last; 0 where none was."""
        return {origin: last.size if last else 0 for origin, last in self._last.items()}

    def close(self) -> None:
        """Let the state go; idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def add_checkpoint(self, body: bytes) -> Reply:
        """Answer one request.

        Raises:
            OSError: the checkpoint cannot be kept; nothing was cosigned.
        """
        try:
            request = tlogwitness.parse_request(body)
            text = parse_note(request.note).text
            checkpoint = _checkpoint(text)
        except VerificationFailed as error:
            return _refusal(400, error.message)
        keys = self._keys.get(checkpoint.origin)
        if keys is None:
            return _refusal(404, "this witness does not know that log")
        if not _signed_by_one(request.note, keys):
            return _refusal(403, "no key that this witness trusts signed the checkpoint", checkpoint)
        if request.old_size > checkpoint.size:
            return _refusal(400, "the old size is larger than the checkpoint's", checkpoint)
        # From here to the durable record nobody else may decide for the same log.
        with self._guard:
            return self._decide(request, checkpoint, text)

    def _decide(self, request: tlogwitness.AddCheckpoint, checkpoint: Checkpoint, text: str) -> Reply:
        last = self._last[checkpoint.origin]
        size = last.size if last is not None else 0
        if request.old_size != size or (last is not None and last.size == checkpoint.size and last != checkpoint):
            return Reply(409, tlogwitness.SIZE_TYPE, f"{size}\n".encode(), checkpoint.origin, checkpoint.size)
        try:
            verify_consistency(
                size, checkpoint.size, request.proof, last.root if last is not None else EMPTY_ROOT, checkpoint.root
            )
        except ProofInvalid as error:
            return _refusal(422, error.message, checkpoint)
        if last != checkpoint:
            write_whole(self._file(checkpoint.origin), request.note.encode(), mode=PRIVATE)
            self._last[checkpoint.origin] = checkpoint
        line = self._signer.cosign(text, int(self._clock()))
        return Reply(200, _TEXT, line.encode(), checkpoint.origin, checkpoint.size)

    def _file(self, origin: str) -> Path:
        return self._state / f"{hashlib.sha256(origin.encode()).hexdigest()}.checkpoint"

    def _load(self, origin: str) -> Checkpoint | None:
        path = self._file(origin)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_NOTE_BYTES + 1)
        except FileNotFoundError:
            return None
        try:
            checkpoint = _checkpoint(parse_note(data).text)
        except VerificationFailed as error:
            message = f"{path} is not a checkpoint of {origin}: {error.message}; find out who changed it, and retire this witness's key if nobody knows"
            raise UsageError(message) from error
        if checkpoint.origin != origin or not _signed_by_one(data, self._keys[origin]):
            message = f"{path} is not a checkpoint that a given key of {origin} signed: give the key of that log that signed it as well"
            raise UsageError(message)
        return checkpoint


def _checkpoint(text: str) -> Checkpoint:
    """Read the three lines that a witness judges by; a log may put further lines behind them."""
    lines = text.split("\n")
    if not all(lines[3:-1]):
        message = "an extension line of the checkpoint is empty"
        raise CheckpointInvalid(message)
    return parse_text("\n".join([*lines[:3], ""]))


def _signed_by_one(note: str | bytes, keys: Iterable[VerifierKey]) -> bool:
    """Whether one of several keys signed. A line that names a key and is wrong counts as none."""
    for key in keys:
        try:
            open_note(note, key)
        except VerificationFailed:
            continue
        return True
    return False


def _refusal(status: int, message: str, checkpoint: Checkpoint | None = None) -> Reply:
    body = f"{message}\n".encode()
    if checkpoint is None:
        return Reply(status, _TEXT, body)
    return Reply(status, _TEXT, body, checkpoint.origin, checkpoint.size)


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        message = f"{path.parent} is in use by another witness: each needs a directory of its own"
        raise UsageError(message) from error
    return descriptor
