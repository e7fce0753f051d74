"""Dropping entries that an export holds: what may go, the log's word on it, and then the dropping.

Nothing goes before the log says so: an admin entry `prune` names the size pruned to, the root of that tree,
and the SHA-256 of the checkpoint of the export. Hash tiles stay, so that every proof can be made as before,
and what was dropped verifies by its hash from the export. What stays as well: admin entries, which say who
might do what; the newest entries; and whatever an open intent, a request on record, an outbox or the
published tiles still need.

    done = await Retention(...).prune(before=100_000, older_than=None, directory="/srv/audit", note=note)
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from greatseal.checkpoint import open_checkpoint
from greatseal.errors import VerificationFailed
from greatseal.tlog import leaf_hash, split_hashes, verify_inclusion
from greatseal.verification import ProofInvalid
from greatseald.app.search import first_at
from greatseald.domain.entries import timestamp
from greatseald.domain.errors import ArgumentInvalid
from greatseald.domain.tree import TreeDisagrees
from greatseald.ports.store import EntriesPruned, Store, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from greatseal.note import VerifierKey
    from greatseald.app.audit import AuditLog
    from greatseald.domain.tree import Tree
    from greatseald.ports.store import Pruned

NEWEST_KEPT: Final = 16_384
"""Entries that always stay: another front that lags behind reads them."""
_SPAN: Final = 2048
"""Entries dropped in one round of the writer: few enough that nobody waits for it."""
_PAUSE_SECONDS: Final = 0.05
_MAX_DIRECTORY: Final = 1024


class Limit(NamedTuple):
    """The first index that something still needs, and what that is, for people."""

    first: int
    why: str


@dataclass(frozen=True, slots=True)
class PruneBegun:
    """Entries below `target` go, by the admin entry at `entry`; `root` is of the tree of `target` entries.

    `limit` says what kept it from going further; empty where it went as far as was asked. `by_owner` says that
    this daemon's role may not drop them, and that the owner of the schema has to.
    """

    target: int
    root: bytes
    entry: int
    limit: str
    by_owner: bool


class Retention:
    """What is dropped of one log, and when."""

    def __init__(
        self,
        log: AuditLog,
        store: Store,
        key: VerifierKey,
        *,
        needed: Callable[[], list[Limit]],
        by_owner: bool,
    ) -> None:
        """Prune `log`, whose verifier key is `key`. `needed` tells what outboxes and tiles have not taken yet."""
        self._log = log
        self._store = store
        self._key = key
        self._needed = needed
        self._by_owner = by_owner
        self._one_at_a_time = asyncio.Lock()
        self._begun = asyncio.Event()

    async def prune(self, *, before: int | None, older_than: float | None, directory: str, note: str) -> PruneBegun:
        """Record that the entries below a size go, and begin to drop them.

        Args:
            before: the first index that must stay, as far as the caller cares.
            older_than: or an age in seconds.
            directory: where the export is, for the log.
            note: the export's checkpoint, which the caller has verified the export against.

        Raises:
            ArgumentInvalid: the checkpoint is not this log's, or nothing may go.
            LogUnavailable: the log cannot be read or written.
        """
        if len(directory) > _MAX_DIRECTORY:
            raise ArgumentInvalid(f"directory is over {_MAX_DIRECTORY} characters", field="directory")
        async with self._one_at_a_time:
            exported = await self._checked(note)
            target, limit = await self._target(before, older_than, exported)
            root = await asyncio.to_thread(self._log.root, target)
            entry = await self._log.record_admin(
                "prune",
                size=target,
                root=root.hex(),
                export_size=exported,
                export_checkpoint_sha256=hashlib.sha256(note.encode()).hexdigest(),
                directory=directory,
            )
            if not self._by_owner:
                await self._log.on_writer(lambda: self._store.begin_pruning(target, entry))
                self._begun.set()
        return PruneBegun(target, root, entry, limit, self._by_owner)

    async def run(self) -> None:
        """Drop what was noted, also before a restart, a little at a time. Runs until cancelled."""
        self._begun.set()
        while True:
            await self._begun.wait()
            self._begun.clear()
            more = True
            while more:
                more = bool(await self._log.on_writer(lambda: self._store.prune(_SPAN)))
                await asyncio.sleep(_PAUSE_SECONDS)  # signatures come in between

    async def _checked(self, note: str) -> int:
        """The size of the export's checkpoint, which must be one of this log."""
        try:
            exported = open_checkpoint(note, self._key)
        except VerificationFailed as error:
            raise ArgumentInvalid(
                f"the export's checkpoint is not this log's: {error.message}", field="checkpoint"
            ) from error
        size = await self._log.size_for(exported.size)
        if exported.size > size or await asyncio.to_thread(self._log.root, exported.size) != exported.root:
            raise ArgumentInvalid(
                f"the export's checkpoint (size {exported.size}) is not the beginning of this log of {size} entries: "
                "one of the two was forked or rewritten, and nothing is dropped",
                field="checkpoint",
            )
        return exported.size

    async def _target(self, before: int | None, older_than: float | None, exported: int) -> tuple[int, str]:
        limits = [
            Limit(exported, "the export ends there"),
            Limit(max(0, self._log.size - NEWEST_KEPT), f"the newest {NEWEST_KEPT} entries stay"),
            *self._needed(),
        ]
        held = await asyncio.to_thread(self._log.reading, self._store.held_from)
        if held is not None:
            limits.append(
                Limit(held, "open intents, and request ids on record ([log] request_retention_days), need the rest")
            )
        asked = self._log.size if before is None else before
        if older_than is not None:
            moment = timestamp(self._log.clock() - older_than)
            asked = min(asked, await first_at(self._log.entries, moment, await self._log.pruned_size(), self._log.size))
        nearest = min(limits)
        why = nearest.why if nearest.first < asked else ""
        target = await asyncio.to_thread(self._log.reading, lambda: self._store.boundary(min(asked, nearest.first)))
        pruned = await asyncio.to_thread(self._log.reading, self._store.pruned)
        done = 0 if pruned is None else pruned.size
        if target <= done:
            there = f"entries below {done} went already; " if done else ""
            raise ArgumentInvalid(
                f"nothing is dropped: {there}{why or 'no commit ended between there and what was asked for'}",
                field="before",
            )
        return target, why


class _Info(msgspec.Struct):
    size: int = -1
    directory: str = ""


class _Admin(msgspec.Struct):
    t: str = ""
    what: str = ""
    info: _Info = msgspec.field(default_factory=_Info)


def _prune_entry(store: Store, pruned: Pruned) -> tuple[bytes, _Admin]:
    """The admin entry that a row of what was pruned names, and what it says; nothing where there is none."""
    try:
        found = store.entries(pruned.entry, pruned.entry + 1)
    except EntriesPruned:
        found = []
    try:
        return (found[0], msgspec.json.decode(found[0], type=_Admin)) if found else (b"", _Admin())
    except msgspec.MsgspecError:
        return found[0], _Admin()


def exported_to(store: Store, pruned: Pruned) -> str:
    """Where the log says that what was pruned was exported to; nothing where that cannot be read."""
    try:
        return _prune_entry(store, pruned)[1].info.directory
    except StoreError:
        return ""


def wrongly_pruned(store: Store, tree: Tree) -> str:
    """Why what the database says was pruned is not what the log says; nothing where they agree.

    Whoever can write the database could drop entries and say that they were pruned.

    Raises:
        StoreError: it cannot be read.
    """
    pruned = store.pruned()
    if pruned is None:
        return ""
    entry, said = _prune_entry(store, pruned)
    if (said.t, said.what, said.info.size) != ("admin", "prune", pruned.target) or pruned.size > pruned.target:
        return (
            f"the database says that the entries below {pruned.size} were pruned, and entry {pruned.entry} of the log, "
            "which it names, does not: somebody wrote into it"
        )
    try:
        prover = tree.prover(tree.size)
        verify_inclusion(
            pruned.entry, tree.size, leaf_hash(entry), split_hashes(prover.inclusion(pruned.entry)), prover.root()
        )
    except (ValueError, ProofInvalid, TreeDisagrees):
        return (
            f"entry {pruned.entry}, by which entries were pruned, is not the one that the log's tree has: it was edited"
        )
    return ""
