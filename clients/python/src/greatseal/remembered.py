"""The last checkpoint that was seen, kept in a file: who saw a log once notices when it goes back.

The file holds the checkpoint's signed note and nothing else, so that any C2SP tool can read it.
Several processes may share it: it is replaced whole, under a lock, and only where it still is what
the new checkpoint was compared with.

    memory = CheckpointFile(path, VerifierKey.parse(vkey))
    before = memory.read()
    ...                                        # prove that the new checkpoint extends `before`
    memory.replace(before, note)               # False: another process was first, compare again
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from greatseal.checkpoint import Checkpoint, open_checkpoint
from greatseal.errors import ProfileError, VerificationFailed
from greatseal.files import PRIVATE, write_whole
from greatseal.note import MAX_NOTE_BYTES, VerifierKey

_LOCK_SUFFIX: Final = ".lock"


@dataclass(frozen=True, slots=True)
class Seen:
    """A checkpoint whose signature was checked, with its note verbatim."""

    note: str
    checkpoint: Checkpoint


class CheckpointFile:
    """One file that remembers one log's last checkpoint."""

    def __init__(self, path: Path, key: VerifierKey) -> None:
        self.path = path
        self._key = key

    def read(self) -> Seen | None:
        """Return what is remembered; None where nothing is yet.

        Raises:
            VerificationFailed: the file holds something else than a checkpoint of this log.
            ProfileError: it cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_NOTE_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable("read", error) from None
        try:
            checkpoint = open_checkpoint(data, self._key)
        except VerificationFailed as error:
            message = (
                f"checkpoint_file {self.path} holds no checkpoint of the log {self._key.name}: {error.message}; "
                f"if the profile's log_key is right, find out who changed the file before you remove it"
            )
            raise VerificationFailed(message) from error
        return Seen(data.decode(), checkpoint)

    def replace(self, expected: Seen | None, note: str) -> bool:
        """Remember a note instead of `expected`; False where the file no longer holds that.

        Raises:
            ProfileError: it cannot be written; what it held stays.
        """
        with self._locked():
            current = self.read()
            if (current.note if current else None) != (expected.note if expected else None):
                return False
            try:
                write_whole(self.path, note.encode(), mode=PRIVATE)
            except OSError as error:
                raise self._unusable("written", error) from None
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # The lock is on a file of its own: the remembered one is replaced, and a lock would go with it.
        path = self.path.with_name(self.path.name + _LOCK_SUFFIX)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
        except OSError as error:
            raise self._unusable("locked", error) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _unusable(self, verb: str, error: OSError) -> ProfileError:
        message = f"checkpoint_file {self.path} cannot be {verb}: {error.strerror}"
        return ProfileError(message)
