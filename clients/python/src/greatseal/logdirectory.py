"""A log as a directory of tiles: exported while it is verified, and verified offline.

The directory is C2SP tlog-tiles: `checkpoint`, `tile/<L>/<N>`, `tile/entries/<N>`. The checkpoint is
written last: what a reader finds under it is there. An export that was cut off goes on where it was.

    exported = LogDirectory(path, key).export(client)
    checkpoint, check = LogDirectory(path, key).verify()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from greatseal import tlog
from greatseal.checkpoint import HASH_BYTES, Checkpoint, open_checkpoint
from greatseal.errors import VerificationFailed
from greatseal.logcheck import LogCheck, Problem, find_repeated_nonce
from greatseal.logtail import LogTail
from greatseal.note import MAX_NOTE_BYTES, VerifierKey
from greatseal.tilefiles import TileFiles
from greatseal.tiles import MAX_BUNDLE_BYTES, TILE_BYTES, WIDTH, Tile, TileTree, tile_path, unpack
from greatseal.tilewriter import CHECKPOINT, TileWriter

if TYPE_CHECKING:
    from greatseal.client import Client
    from greatseal.logsignatures import SignatureCheck

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
        self._files = TileFiles(path)

    def checkpoint(self) -> Checkpoint:
        """Return the directory's checkpoint, verified.

        Raises:
            VerificationFailed: it is malformed, or the log's key did not sign it.
            OSError: it cannot be read.
        """
        return open_checkpoint(self._files.read(CHECKPOINT, MAX_NOTE_BYTES), self._key)

    def export(self, client: Client, report: Report = _quiet) -> tuple[int, int]:
        """Bring the directory up to the newest checkpoint; return the sizes before and after, in entries.

        Raises:
            VerificationFailed: what the daemon gives, or what the directory holds, is not this log.
            DirectoryBusy: another process writes to it.
            DaemonError: the log cannot be read now; what is written stays, and the next export goes on there.
            OSError: a file cannot be written.
        """
        with TileWriter(self.path, self._key) as writer:
            before, old = writer.before, writer.covered
            newest = client.audit.checkpoint()
            if not newest.verified or newest.size < old:
                message = (
                    f"the log's checkpoint (size {newest.size}) is not signed, or older than the directory's ({old})"
                )
                raise VerificationFailed(message)
            if before is not None:
                hashes = client.audit.consistency(old, newest.size).hashes if 0 < old < newest.size else ()
                tlog.verify_consistency(old, newest.size, hashes, before.root, newest.root)
            writer.begin(newest.size)
            log = LogTail(client, writer.size)
            for page in log.step():
                writer.add(entry.data for entry in page.entries)
                report(writer.size, page.log_size)
            head = log.checkpoint
            if head is None or writer.size != head.size:
                message = f"the log's entries end at {writer.size}, and its checkpoint covers more"
                raise VerificationFailed(message)
            writer.finish(head.root, head.note)
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
            yield from enumerate(unpack(self._files.read(path, MAX_BUNDLE_BYTES), width, what), first)

    def _difference(self, tile: Tile) -> Problem | None:
        """The first entry under a computed tile that the stored one does not cover."""
        if not tile.data:
            return None
        stored = self._files.read(tile.path(), TILE_BYTES)
        if stored == tile.data:
            return None
        places = range(0, len(tile.data), HASH_BYTES)
        at = next((at for at in places if stored[at : at + HASH_BYTES] != tile.data[at : at + HASH_BYTES]), 0)
        index = (tile.number * WIDTH + at // HASH_BYTES) << 8 * tile.level
        return Problem(index, f"does not lead to the hash that stands in {tile.path()}")
