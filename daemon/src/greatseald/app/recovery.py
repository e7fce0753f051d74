"""Opening the audit log: is this our log, is it whole, and what did the last boot leave open.

    tree = open_tree(store, seal)                       # the head is ours and its entries are there
    anchored = check_anchor(tree, anchor)        # it is not older than what was released
    close_dead_intents(...)                             # every intent gets exactly one outcome

Whatever does not fit raises `LogRefused`, whose message names what disagrees with what and what an
operator can do. A daemon that cannot trust its log does not start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from greatseal.tlog import split_hashes, verify_inclusion
from greatseal.verification import ProofInvalid
from greatseald.domain import entries as entry_format
from greatseald.domain.heads import NO_AUTHORITY, HeadForged, HeadSeal
from greatseald.domain.tree import Prover, Tree, TreeDisagrees, leaf_hash
from greatseald.ports.anchor import Anchor, Anchored, AnchorError
from greatseald.ports.store import Append, Closing, FencesLost, Head, HeadMoved, OpenIntent, Store, Tile

if TYPE_CHECKING:
    from collections.abc import Callable

CLOSE_AT_ONCE: Final = 1000
_READ_AT_ONCE: Final = 1000


class LogRefused(Exception):
    """The log cannot be gone on with as it is; the message says what disagrees and what to do."""


def open_tree(store: Store, seal: HeadSeal) -> Tree:
    """Load the tree that the head row describes, after checking the row's MAC and its entries.

    Raises:
        LogRefused: the head was edited, or the entries are not those it was made of.
    """
    head = store.head()
    if head is None:
        return Tree.load(0, b"", store.tile, store.entries)
    try:
        seal.check(head.size, head.root, head.frontier, head.mac, head.authority)
    except HeadForged as error:
        message = (
            f"{error}: it was edited, or [log] head_mac_key_file is not the one it was made with. "
            "Restore the database from a backup, or put the right key back; signing stays off until then"
        )
        raise LogRefused(message) from error
    try:
        tree = Tree.load(head.size, head.frontier, store.tile, store.entries)
    except TreeDisagrees as error:
        message = (
            f"the log's entries do not match its head (size {head.size}): {error}. Restore the database from a backup"
        )
        raise LogRefused(message) from error
    if tree.root() != head.root:
        message = f"the log's head row (size {head.size}) has a root that its own frontier does not give. Restore the database from a backup"
        raise LogRefused(message)
    return tree


def check_anchor(tree: Tree, anchor: Anchor) -> int:
    """Check that the log equals or extends what the anchor remembers; return the anchored size.

    Raises:
        LogRefused: the log is older than the anchor, or another one.
    """
    try:
        anchored = anchor.read()
    except AnchorError as error:
        message = f"the anchor cannot be read, so a rolled-back log could not be told: {error}"
        raise LogRefused(message) from error
    if anchored is None:
        return 0
    if anchored.size > tree.size:
        message = (
            f"the log has {tree.size} entries, and the anchor {anchor.name} remembers {anchored.size} released: "
            "the database is an older copy, and signing on it would fork the log. Restore the newest copy"
        )
        raise LogRefused(message)
    if anchored.size and tree.prover(anchored.size).root() != anchored.root:
        message = (
            f"the log's first {anchored.size} entries are not those that the anchor {anchor.name} remembers: "
            "this is another log, or its history was rewritten. Restore the database that belongs to this anchor"
        )
        raise LogRefused(message)
    return anchored.size


def advance_anchor(anchor: Anchor, tree: Tree) -> None:
    """Prove at start that the anchor can be written, with the head as it is.

    Raises:
        LogRefused: it cannot.
    """
    try:
        anchor.advance(Anchored(tree.size, tree.root()))
    except AnchorError as error:
        message = f"the anchor cannot be written: {error}"
        raise LogRefused(message) from error


class RecoveredIntent(msgspec.Struct):
    """What recovery needs of an intent's entry."""

    tbs: str
    key: entry_format.KeyVersion
    log: str


def close_dead_intents(
    store: Store, tree: Tree, seal: HeadSeal, *, boot: bytes, instance: str, origin: str, clock: Callable[[], float]
) -> int:
    """Close with `unknown` every intent that a dead boot left open; return how many.

    Such an intent may have been signed and was certainly not released. The fences that name them are rows that
    whoever writes the database can plant: an intent counts as open only if the log has no outcome of it.

    Raises:
        LogRefused: a fence names an entry that is no open intent, or an entry was edited.
    """
    closed = 0
    checked: set[int] = set()
    while found := store.open_intents():
        authority = _follow(store, tree, seal)
        fresh = {intent.intent for intent in found} - checked
        if fresh:
            _require_open(store, tree, fresh)
            checked |= fresh
        open_intents = found[:CLOSE_AT_ONCE]
        written = [_unknown(store, intent, instance, origin, clock()) for intent in open_intents]
        mark = tree.mark()
        size = tree.size
        tiles = [Tile(*tile) for tile in tree.append([leaf_hash(entry) for entry in written])]
        root, frontier = tree.root(), tree.frontier()
        head = Head(tree.size, root, frontier, seal.mac(tree.size, root, frontier, authority), authority)
        closings = [Closing(intent.intent, size + offset) for offset, intent in enumerate(open_intents)]
        batch = Append(size, written, head, boot, int(clock() * 1000), tiles, closed=closings)
        try:
            store.append(batch)
        except (HeadMoved, FencesLost):
            # Another front recovers at the same time: begin again from what it wrote.
            tree.rewind(mark)
            continue
        closed += len(written)
    store.check_alive()
    return closed


def unknown_outcomes(
    store: Store, tree: Tree, found: list[OpenIntent], *, instance: str, origin: str, now: float
) -> list[bytes]:
    """Return the outcomes, `unknown`, of intents that another front died over, while this one runs.

    The tree must reach beyond them.

    Raises:
        LogRefused: as `close_dead_intents`.
    """
    _require_open(store, tree, {intent.intent for intent in found})
    return [_unknown(store, intent, instance, origin, now) for intent in found]


class _Intent(msgspec.Struct):
    """Whose outcome it is."""

    index: int


class _Kind(msgspec.Struct):
    """What an entry is."""

    t: str
    intent: _Intent | None = None


def _require_open(store: Store, tree: Tree, intents: set[int]) -> None:
    """Read the log from the oldest of the intents on: each is an intent of the tree, and none has an outcome."""
    prover = tree.prover(tree.size)
    outcomes: dict[int, int] = {}
    for start in range(min(intents), tree.size, _READ_AT_ONCE):
        data = store.entries(start, min(start + _READ_AT_ONCE, tree.size))
        for index, entry in enumerate(data, start):
            kind = _kind(entry)
            if index in intents:
                _require_entry(index, entry, prover)
                if kind.t != "intent":
                    message = f"the fences name entry {index} as an open intent, and it is none: somebody wrote into the database"
                    raise LogRefused(message)
            elif kind.t == "outcome" and kind.intent is not None and kind.intent.index in intents:
                outcomes[kind.intent.index] = index
    if not outcomes:
        return
    # An outcome and the end of its fence are one commit, so that a fence which is still there was put there.
    for intent in store.open_intents():
        if intent.intent in outcomes:
            message = (
                f"the fences name intent {intent.intent} as open, and entry {outcomes[intent.intent]} is its outcome: "
                "somebody wrote into the database. Delete that row of open_intents, and find out who did"
            )
            raise LogRefused(message)


def _require_entry(index: int, entry: bytes, prover: Prover) -> None:
    try:
        verify_inclusion(index, prover.size, leaf_hash(entry), split_hashes(prover.inclusion(index)), prover.root())
    except (ValueError, ProofInvalid, TreeDisagrees) as error:
        message = f"entry {index} of the log is not the one that its tree has: it was edited. Restore the database from a backup"
        raise LogRefused(message) from error


def _kind(entry: bytes) -> _Kind:
    try:
        return msgspec.json.decode(entry, type=_Kind)
    except msgspec.MsgspecError:
        return _Kind("")


def _unknown(store: Store, intent: OpenIntent, instance: str, origin: str, now: float) -> bytes:
    data = store.entries(intent.intent, intent.intent + 1)[0]
    try:
        recovered = msgspec.json.decode(data, type=RecoveredIntent)
    except msgspec.MsgspecError as error:
        message = f"entry {intent.intent} stands in the fences as an open intent and is none: {error}"
        raise LogRefused(message) from error
    outcome = entry_format.Outcome(
        dur_us=0,
        inst=instance,
        intent=entry_format.IntentRef(index=intent.intent, leaf_hash=leaf_hash(data).hex()),
        key=entry_format.KeyRef(spki_sha256=recovered.key.spki_sha256),
        log=origin,
        res="unknown",
        tbs=recovered.tbs,
        ts=entry_format.timestamp(now),
        why="the daemon that began it ended first; it may have been signed and was not released",
    )
    return entry_format.encode(outcome)


def _follow(store: Store, tree: Tree, seal: HeadSeal) -> int:
    """Take in what another front has written meanwhile, if its head is genuine; return the newest authority's index."""
    head = store.head()
    size = head.size if head is not None else 0
    if size < tree.size:
        message = f"the log went back while it was being recovered (it had {tree.size} entries, and has {size})"
        raise LogRefused(message)
    if head is None:
        return NO_AUTHORITY
    seal.check(head.size, head.root, head.frontier, head.mac, head.authority)
    tree.append([leaf_hash(entry) for entry in store.entries(tree.size, head.size)])
    if tree.size != head.size or tree.root() != head.root:
        message = f"the entries of the log up to {head.size} do not have the root that its head row says"
        raise LogRefused(message)
    return NO_AUTHORITY if head.authority is None else head.authority
