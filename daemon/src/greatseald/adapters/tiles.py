"""The directory that the log is published to, in the client's own layout code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from greatseal.errors import VerificationFailed
from greatseal.note import VerifierKey
from greatseal.tilewriter import CHECKPOINT, DirectoryBusy, TileWriter, read_checkpoint
from greatseald.ports.anchor import Anchored
from greatseald.ports.tiles import ReadEntries, TilesDisagree, TilesUnavailable

_AT_ONCE: Final = 1024
"""Entries read and written at a time: at most 16 MiB, as a rule less than one."""
_DIRECTORY_MODE: Final = 0o750


class TileDirectory:
    """The `TilePlace` port over one directory.

    Args:
        path: the directory; it is made, for its owner and group, where it is missing.
        key: the log's verifier key.
    """

    def __init__(self, path: Path, key: VerifierKey) -> None:
        self._path = path
        self._key = key

    @property
    def name(self) -> str:
        return str(self._path)

    def read(self) -> Anchored | None:
        try:
            found = read_checkpoint(self._path, self._key)
        except VerificationFailed as error:
            raise TilesDisagree(f"the checkpoint in {self._path} is not this log's: {error.message}") from error
        except OSError as error:
            raise TilesUnavailable(f"{self._path} cannot be read: {error.strerror}") from error
        return None if found is None else Anchored(found.size, found.root)

    def publish(self, head: Anchored, note: str, entries: ReadEntries, root_of: Callable[[int], bytes]) -> int:
        try:
            self._path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            with TileWriter(self._path, self._key) as writer:
                return self._extend(writer, head, note, entries, root_of)
        except DirectoryBusy as error:
            raise TilesUnavailable(error.message) from error
        except VerificationFailed as error:
            raise TilesDisagree(error.message) from error
        except OSError as error:
            raise TilesUnavailable(f"{self._path} cannot be written: {error.strerror}") from error

    def _extend(
        self, writer: TileWriter, head: Anchored, note: str, entries: ReadEntries, root_of: Callable[[int], bytes]
    ) -> int:
        before = writer.before
        if before is not None and before.size > head.size:
            return before.size  # another front was faster; what it wrote is compared when this one knows that size
        if before is not None and root_of(before.size) != before.root:
            raise TilesDisagree(
                f"the checkpoint in {self._path} covers {before.size} entries under another root than this log's: "
                "one of the two was forked or rewritten"
            )
        if before is not None and before.size == head.size:
            # The same tree; only a note with more signatures, those of witnesses, is news.
            if len(note.encode()) > (self._path / CHECKPOINT).stat().st_size:
                writer.begin(head.size)
                writer.finish(head.root, note)
            return head.size
        writer.begin(head.size)
        while writer.size < head.size:
            start = writer.size
            writer.add(entries(start, min(start + _AT_ONCE, head.size)))
            if writer.size == start:
                raise TilesUnavailable(f"the log did not give the entries from {start} on")
        writer.finish(head.root, note)
        return head.size
