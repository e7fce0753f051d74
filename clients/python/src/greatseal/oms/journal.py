"""What a run over many models has asked for, so that a run that was killed goes on where it was.

A line of JSON for each request, written and synced before the request is sent: which key signs which
payload under which request id. The daemon gives the same signature for the same id, so that whoever
starts the run again with the same journal has every model signed once, however often it was cut. A
model that has changed since has another payload, and is another request.

    with Journal(Path("release.journal")) as journal:
        request_id = journal.request_id("keys/release", payload_sha256)
        journal.sync()      # before the request is sent
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from pathlib import Path
from typing import Any, Final, Self

from greatseal.errors import UsageError
from greatseal.ids import new_request_id

_HEADER: Final = {"greatseal": "sign-models-journal", "version": 1}
_MAX_BYTES: Final = 256 << 20
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Journal:
    """Request ids by key and payload, in a file that one run at a time holds. Without a path, in memory alone."""

    def __init__(self, path: Path | None) -> None:
        """Read the journal at `path`, or begin one.

        Raises:
            UsageError: the file is no journal, is in use by another run, or cannot be read and written.
        """
        self._path = path
        self._ids: dict[tuple[str, str], str] = {}
        self._unsynced: list[str] = []
        self._file = -1
        if path is not None:
            try:
                self._open(path)
            except OSError as error:
                message = f"the journal {path} cannot be used: {error.strerror}"
                raise UsageError(message) from error

    def _open(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"the journal {path} is in use by another run: wait for it, or name another journal"
                raise UsageError(message) from None
            self._load(path)
        except BaseException:
            self.close()
            raise

    def _load(self, path: Path) -> None:
        with os.fdopen(os.dup(self._file), "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            message = f"the journal {path} is over {_MAX_BYTES} bytes"
            raise UsageError(message)
        if not data:
            self._unsynced.append(json.dumps(_HEADER))
            self.sync()
            return
        whole, _, torn = data.rpartition(b"\n")
        lines = whole.split(b"\n")
        try:
            header, *requests = [json.loads(line) for line in lines]
            self._take(header, requests)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            message = f"{path} is no journal of `sign models`, or damaged: name another file, or move it away"
            raise UsageError(message) from error
        if torn:  # a crash has torn the last line: it was not synced, so its request was not sent
            os.ftruncate(self._file, len(whole) + 1)

    def _take(self, header: object, requests: list[Any]) -> None:
        if header != _HEADER:
            raise ValueError
        for request in requests:
            key, payload, request_id = str(request["key"]), request["payload_sha256"], request["request_id"]
            if not _SHA256.fullmatch(payload) or not _UUID.fullmatch(request_id):
                raise ValueError
            self._ids[key, payload] = request_id

    def request_id(self, key: str, payload_sha256: str) -> str:
        """Return the id under which this key was, or is to be, asked to sign this payload. Not durable before `sync`."""
        known = self._ids.get((key, payload_sha256))
        if known is None:
            known = self._ids[key, payload_sha256] = new_request_id()
            if self._file >= 0:
                line = {"key": key, "payload_sha256": payload_sha256, "request_id": known}
                self._unsynced.append(json.dumps(line))
        return known

    def sync(self) -> None:
        """Write what is new, durably.

        Raises:
            UsageError: it cannot be written; nothing may be sent.
        """
        if not self._unsynced:
            return
        data = "".join(f"{line}\n" for line in self._unsynced).encode()
        try:
            os.lseek(self._file, 0, os.SEEK_END)
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            message = f"the journal {self._path} cannot be written: {error.strerror}; nothing was sent"
            raise UsageError(message) from error
        self._unsynced.clear()

    def close(self) -> None:
        """Let the file go."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
