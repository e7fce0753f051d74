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

from greatseald.domain import entries as entry_format
from greatseald.domain.heads import HeadForged, HeadSeal
from greatseald.domain.tree import Tree, TreeDisagrees, leaf_hash
from greatseald.ports.anchor import Anchor, Anchored, AnchorError
from greatseald.ports.store import Append, Closing, FencesLost, Head, HeadMoved, OpenIntent, Store, Tile

if TYPE_CHECKING:
    from collections.abc import Callable

_CLOSE_AT_ONCE: Final = 1000


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
        seal.check(head.size, head.root, head.frontier, head.mac)
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

    Such an intent may have been signed and was certainly not released.
    """
    closed = 0
    while open_intents := store.open_intents()[:_CLOSE_AT_ONCE]:
        written = [_unknown(store, intent, instance, origin, clock()) for intent in open_intents]
        mark = tree.mark()
        size = tree.size
        tiles = [Tile(*tile) for tile in tree.append([leaf_hash(entry) for entry in written])]
        root, frontier = tree.root(), tree.frontier()
        head = Head(tree.size, root, frontier, seal.mac(tree.size, root, frontier))
        closings = [Closing(intent.intent, size + offset) for offset, intent in enumerate(open_intents)]
        batch = Append(size, written, head, boot, int(clock() * 1000), tiles, closed=closings)
        try:
            store.append(batch)
        except (HeadMoved, FencesLost):
            # Another front recovers at the same time: begin again from what it wrote.
            tree.rewind(mark)
            _extend(store, tree, seal)
            continue
        closed += len(written)
    return closed


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


def _extend(store: Store, tree: Tree, seal: HeadSeal) -> None:
    head = store.head()
    if head is None or head.size < tree.size:
        message = f"the log went back while it was being recovered (it had {tree.size} entries)"
        raise LogRefused(message)
    seal.check(head.size, head.root, head.frontier, head.mac)
    tree.append([leaf_hash(entry) for entry in store.entries(tree.size, head.size)])
