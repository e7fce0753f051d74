"""A log as a directory of tiles: exported while it is verified, and verified offline.

The directory is C2SP tlog-tiles: `checkpoint`, `tile/<L>/<N>`, `tile/entries/<N>`. The checkpoint is
written last: what a reader finds under it is there. An export that was cut off goes on where it was.

    exported = LogDirectory(path, key).export(client)
    checkpoint, check = LogDirectory(path, key).verify()
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from greatseal import tlog
from greatseal.checkpoint import HASH_BYTES, Checkpoint, open_checkpoint
from greatseal.errors import VerificationFailed
from greatseal.files import write_whole
from greatseal.logcheck import LogCheck, Problem, find_repeated_nonce
from greatseal.logtail import LogTail
from greatseal.note import MAX_NOTE_BYTES, VerifierKey
from greatseal.tiles import MAX_BUNDLE_BYTES, TILE_BYTES, WIDTH, Tile, TileTree, pack, tile_path, unpack

if TYPE_CHECKING:
    from greatseal.client import Client
    from greatseal.logsignatures import SignatureCheck

_CHECKPOINT: Final = "checkpoint"
_PROGRESS: Final = ".greatseal-export"
_MAX_DIGITS: Final = 19

Report = Callable[[int, int], None]


def _quiet(_done: int, _total: int) -> None:
    """Report nothing."""


class LogDirectory:
    """One directory of one log.

    Args:
        path: the directory.
        key: the log's verifier key.
    """

    def __init__(self, path: Path, key: VerifierKey) -> None:
        self.path = path
        self._key = key

    def checkpoint(self) -> Checkpoint:
        """Return the directory's checkpoint, verified.

        Raises:
            VerificationFailed: it is malformed, or the log's key did not sign it.
            OSError: it cannot be read.
        """
        return open_checkpoint(self._read(_CHECKPOINT, MAX_NOTE_BYTES), self._key)

    def export(self, client: Client, report: Report = _quiet) -> tuple[int, int]:
        """Bring the directory up to the newest checkpoint; return the sizes before and after, in entries.

        Raises:
            VerificationFailed: what the daemon gives, or what the directory holds, is not this log.
            DaemonError: the log cannot be read now; what is written stays, and the next export goes on there.
            OSError: a file cannot be written.
        """
        before = self.checkpoint() if (self.path / _CHECKPOINT).exists() else None
        old = before.size if before is not None else 0
        newest = client.audit.checkpoint()
        if not newest.verified or newest.size < old:
            message = f"the log's checkpoint (size {newest.size}) is not signed, or older than the directory's ({old})"
            raise VerificationFailed(message)
        if before is not None:
            hashes = client.audit.consistency(old, newest.size).hashes if 0 < old < newest.size else ()
            tlog.verify_consistency(old, newest.size, hashes, before.root, newest.root)
        (self.path / "tile").mkdir(parents=True, exist_ok=True)
        start = max(self._progress(newest.size), old // WIDTH * WIDTH)
        tree = self._load(start)
        log = LogTail(client, start)
        bundle: list[bytes] = []
        for page in log.step():
            for entry in page.entries:
                bundle.append(entry.data)
                for tile in tree.append(tlog.leaf_hash(entry.data)):
                    self._write(tile.path(), tile.data)
                if len(bundle) == WIDTH:
                    self._write(tile_path("entries", (tree.size - 1) // WIDTH), pack(bundle))
                    bundle = []
            self._write(_PROGRESS, str(tree.size // WIDTH * WIDTH).encode())
            report(tree.size, page.log_size)
        head = log.checkpoint
        if head is None or tree.size != head.size or tree.root() != head.root:
            (self.path / _PROGRESS).unlink(missing_ok=True)
            message = f"the tiles in {self.path} do not lead to the log's checkpoint: files in it were changed; export to an empty directory"
            raise VerificationFailed(message)
        for tile in tree.partial():
            if tile.data:
                self._write(tile.path(), tile.data)
        if bundle:
            self._write(tile_path("entries", tree.size // WIDTH, len(bundle)), pack(bundle))
        os.sync()
        write_whole(self.path / _CHECKPOINT, head.note.encode())
        self._drop_partials(old)
        (self.path / _PROGRESS).unlink(missing_ok=True)
        return old, head.size

    def verify(
        self,
        report: Report = _quiet,
        signatures: SignatureCheck | None = None,
        checkpoints: Sequence[tuple[str, Checkpoint]] = (),
        entries: Sequence[tuple[str, int, bytes]] = (),
    ) -> tuple[Checkpoint, LogCheck]:
        """Verify all tiles and entries, and what the entries say of each other.

        Args:
            report: called with the entries read and those to read.
            signatures: verifies what was signed.
            checkpoints: verified ones that were kept, each with its source: beginnings of this log.
            entries: sources, indexes and leaf hashes of entries that stand in it.

        Raises:
            VerificationFailed: something is wrong; the message names the first bad entry.
            OSError: a file is missing or cannot be read.
        """
        checkpoint = self.checkpoint()
        check, tree = LogCheck(checkpoint.origin, signatures=signatures), TileTree()
        found: Problem | None = None
        roots = {kept.size: tree.root() for _, kept in checkpoints}
        leaves = {index: b"" for _, index, _ in entries}
        for index, data in self.entries(checkpoint.size):
            leaf = tlog.leaf_hash(data)
            check.read(index, leaf, data)
            for tile in tree.append(leaf):
                found = found or self._difference(tile)
            if index in leaves:
                leaves[index] = leaf
            if tree.size in roots:
                roots[tree.size] = tree.root()
            if tree.size % WIDTH == 0:
                report(tree.size, checkpoint.size)
        for tile in tree.partial():
            found = found or self._difference(tile)
        if found is None and tree.root() != checkpoint.root:
            message = (
                f"the entries and tiles of {self.path} agree with each other and not with the checkpoint that the log's key "
                f"signed: both were changed, so that the directory does not tell where"
            )
            raise VerificationFailed(message)
        marks = check.repeated_nonces()
        repeated = find_repeated_nonce(marks, self.entries(checkpoint.size)) if marks and not check.problem else None
        found = min(filter(None, (found, check.problem, repeated)), key=lambda problem: problem.index, default=None)
        if found is not None:
            message = f"the log is bad from entry {found.index} on: entry {found.index} {found.message}"
            raise VerificationFailed(message)
        for source, kept in checkpoints:
            if kept.size > checkpoint.size or roots[kept.size] != kept.root:
                message = (
                    f"{source} (size {kept.size}) is not the beginning of this log of {checkpoint.size} entries: "
                    f"it was cut off, rolled back or forked"
                )
                raise VerificationFailed(message)
        for source, index, leaf in entries:
            if leaves[index] != leaf:
                message = f"entry {index} is not the one that {source} holds: the log was rewritten or cut off"
                raise VerificationFailed(message)
        return checkpoint, check

    def entries(self, size: int) -> Iterator[tuple[int, bytes]]:
        """Iterate over the indexes and bytes of the first `size` entries; `verify` says whether they are the log's.

        Raises:
            VerificationFailed: a bundle is missing or malformed.
        """
        for first in range(0, size, WIDTH):
            width = min(WIDTH, size - first)
            path = tile_path("entries", first // WIDTH, width)
            what = f"the log is bad from entry {first} on: {path}"
            yield from enumerate(unpack(self._read(path, MAX_BUNDLE_BYTES), width, what), first)

    def _difference(self, tile: Tile) -> Problem | None:
        """The first entry under a computed tile that the stored one does not cover."""
        if not tile.data:
            return None
        stored = self._read(tile.path(), TILE_BYTES)
        if stored == tile.data:
            return None
        places = range(0, len(tile.data), HASH_BYTES)
        at = next((at for at in places if stored[at : at + HASH_BYTES] != tile.data[at : at + HASH_BYTES]), 0)
        index = (tile.number * WIDTH + at // HASH_BYTES) << 8 * tile.level
        return Problem(index, f"does not lead to the hash that stands in {tile.path()}")

    def _load(self, size: int) -> TileTree:
        """The tree of the first `size` entries, a multiple of 256, from the full tiles that hold its right edge."""
        tiles = []
        for level in range(9):
            count = size >> 8 * level
            width = count % WIDTH
            number = count // WIDTH
            data = b"".join(self._edge(level, number, width)) if width else b""
            tiles.append(Tile(level, number, data))
        return TileTree.from_tiles(tiles)

    def _edge(self, level: int, number: int, width: int) -> list[bytes]:
        """The first hashes of a tile that may not be full yet, from the full tiles below it."""
        path = tile_path(str(level), number)
        if (self.path / path).exists():
            data = self._read(path, TILE_BYTES)
            return [data[at : at + HASH_BYTES] for at in range(0, width * HASH_BYTES, HASH_BYTES)]
        found = []
        for below in range(number * WIDTH, number * WIDTH + width):
            tree = TileTree()
            for leaf in self._edge(level - 1, below, WIDTH):
                list(tree.append(leaf))
            found.append(tree.root())
        return found

    def _drop_partials(self, size: int) -> None:
        """Remove the partial tiles of an earlier size where the full tile stands there now."""
        for level in ("entries", *map(str, range(9))):
            count = size >> (0 if level == "entries" else 8 * int(level))
            full = self.path / tile_path(level, count // WIDTH)
            if full.exists():
                shutil.rmtree(full.with_name(full.name + ".p"), ignore_errors=True)

    def _progress(self, size: int) -> int:
        try:
            text = self._read(_PROGRESS, _MAX_DIGITS).decode("ascii", "replace")
        except OSError:
            return 0
        done = int(text) if text.isascii() and text.isdigit() else 0
        return done if done % WIDTH == 0 and done <= size else 0

    def _read(self, name: str, limit: int) -> bytes:
        path = self.path / name
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            if not name.startswith("tile/"):
                raise
            message = f"{path} is missing: the directory holds less than its checkpoint covers"
            raise VerificationFailed(message) from None
        if len(data) > limit:
            message = f"{path} is over {limit} bytes, more than any file of its kind"
            raise VerificationFailed(message)
        return data

    def _write(self, name: str, data: bytes) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(data)
        part.replace(path)
