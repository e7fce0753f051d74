"""Following a log: every entry once and in order, and proof that the log only grows.

Each step reads the newest checkpoint and hands out what stands below it and was not handed out yet.
Without a filter the tree is recomputed from the entries, so that whatever is handed out was found
under the checkpoint before. With one the daemon chooses the entries; the checkpoints are compared by
consistency proofs all the same.

A step that fails in between can be taken again, over another connection to a restarted daemon too:
what was handed out is not handed out twice, and nothing is left out.

    tail = LogTail(client, start=client.audit.checkpoint().size)
    while True:
        for page in tail.step(): ...
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

from greatseal import tlog
from greatseal.errors import LogRegressed, UsageError, VerificationFailed
from greatseal.messages import EntryPage
from greatseal.verification import ProofInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from greatseal.client import Client
    from greatseal.messages import Entry, EntryFilter, SignedCheckpoint

STEP: Final = 4096
"""Entries that are held until they are found under the checkpoint."""
_PAGE: Final = 1000


class LogTail:
    """One reader of one log.

    Args:
        client: takes the action `readAudit`.
        start: the first index that is wanted.
        wanted: which entries; all where None.

    Attributes:
        following: the index of the next entry that was not handed out.
        checkpoint: the newest that was seen; None before the first step.
    """

    def __init__(self, client: Client, start: int, wanted: EntryFilter | None = None) -> None:
        self._client = client
        self._wanted = wanted
        self._tree: tlog.RootHash | None = None
        self.following = start
        self.checkpoint: SignedCheckpoint | None = None

    def reconnect(self, client: Client) -> None:
        """Go on over another connection."""
        self._client = client

    def step(self) -> Iterator[EntryPage]:
        """Hand out what is new, in pages; none where nothing is.

        Raises:
            LogRegressed: the log went back or is another than before.
            VerificationFailed: entries do not lead to the checkpoint, or one is missing.
            UsageError: the log ends before the index wanted first, or that was pruned.
            DaemonError: it cannot be read now; call again.
        """
        newest = self._client.audit.checkpoint()
        self._compare(newest)
        if self.following > newest.size:
            message = f"the log has {newest.size} entries: it does not reach {self.following} yet"
            raise UsageError(message)
        if self._wanted is None:
            yield from self._all(newest)
        else:
            yield from self._chosen(newest)

    def _compare(self, newest: SignedCheckpoint) -> None:
        before = self.checkpoint
        if before is not None:
            if newest.size < before.size:
                raise _regressed("is shorter than", before, newest)
            try:
                proof = self._consistency(before.size, newest.size)
                tlog.verify_consistency(before.size, newest.size, proof, before.root, newest.root)
            except ProofInvalid as error:
                raise _regressed("does not continue", before, newest) from error
        self.checkpoint = newest

    def _all(self, newest: SignedCheckpoint) -> Iterator[EntryPage]:
        if self._tree is None:
            self._tree = self._seed()
        while self.following < newest.size:
            end = min(self.following + STEP, newest.size)
            entries, intents = self._read(self.following, end)
            tree = self._tree.copy()
            for entry in entries:
                tree.append(tlog.leaf_hash(entry.data))
            try:
                proof = self._consistency(end, newest.size)
                tlog.verify_consistency(end, newest.size, proof, tree.root(), newest.root)
            except ProofInvalid as error:
                message = (
                    f"the entries from {self.following} to {end - 1} are not those that the checkpoint of size "
                    f"{newest.size} covers: {error.message}"
                )
                raise VerificationFailed(message) from error
            self._tree, self.following = tree, end
            yield EntryPage(tuple(entries), tuple(intents), newest.size)

    def _chosen(self, newest: SignedCheckpoint) -> Iterator[EntryPage]:
        if self.following < newest.size:
            pages = self._client.audit.pages(self.following, page_size=_PAGE, wanted=self._wanted, with_intents=True)
            for page in pages:
                # What was written meanwhile stands under the next checkpoint.
                entries = tuple(entry for entry in page.entries if entry.index < newest.size)
                if entries:
                    self.following = entries[-1].index + 1
                    yield EntryPage(entries, page.intents + page.entries, newest.size)
                if len(entries) < len(page.entries):
                    break
            self.following = newest.size

    def _seed(self) -> tlog.RootHash:
        """The tree of the entries before the first that is wanted; the checkpoint proves it with what follows."""
        size = self.following
        if size == 0:
            return tlog.RootHash()
        leaf = tlog.leaf_hash(self._client.audit.entry(size - 1).data)
        return tlog.RootHash.from_last(size, leaf, self._client.audit.inclusion(size - 1, size).hashes)

    def _read(self, start: int, end: int) -> tuple[list[Entry], list[Entry]]:
        entries: list[Entry] = []
        intents: list[Entry] = []
        for page in self._client.audit.pages(start, page_size=min(_PAGE, end - start), with_intents=True):
            if page.pruned_size > start:
                message = (
                    f"the entries below {page.pruned_size} were dropped from the daemon's store after an export: go on with "
                    f"a copy of that export, or begin at {page.pruned_size}"
                )
                raise UsageError(message)
            for entry in page.entries:
                if entry.index >= end:
                    return entries, intents
                if entry.index != start + len(entries):
                    break
                entries.append(entry)
            intents += page.intents
            if start + len(entries) == end:
                return entries, intents
        message = f"entry {start + len(entries)} is missing: the daemon did not give it"
        raise VerificationFailed(message)

    def _consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        return () if old in {0, new} else self._client.audit.consistency(old, new).hashes


def joinable(page: EntryPage) -> dict[int, Entry]:
    """What may be the intent of an outcome of this page, by index."""
    return {entry.index: entry for entry in chain(page.intents, page.entries)}


def _regressed(how: str, before: SignedCheckpoint, newest: SignedCheckpoint) -> LogRegressed:
    message = (
        f"the log's new checkpoint (size {newest.size}, root {newest.root.hex()[:16]}…) {how} the one before "
        f"(size {before.size}, root {before.root.hex()[:16]}…): the log was rolled back or forked, or an older copy "
        f"of it was restored; ask the operator"
    )
    return LogRegressed(message, remembered=before.note, presented=newest.note)
