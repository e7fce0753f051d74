"""The first entry of a log that follows another one: it names the one before, and how far that went.

A log that lost entries which others have seen cannot be gone on with: its next entry would be a second one at that
place. So it ends, unchanged, and a new log begins, under a name and keys of its own, and says so in its entry 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greatseald.domain import entries as entry_format
from greatseald.domain.heads import NO_AUTHORITY
from greatseald.domain.tree import Tree, leaf_hash
from greatseald.ports.store import Append, Head, Store, Tile

if TYPE_CHECKING:
    from greatseald.domain.heads import HeadSeal


class LogNotEmpty(Exception):
    """The store holds a log already; nothing was written."""


def begin_log(
    store: Store, seal: HeadSeal, *, boot: bytes, instance: str, origin: str, now: float, info: dict[str, Any]
) -> None:
    """Commit entry 0 of a new log, of the kind `admin` and about `new-origin`, with `info`.

    Raises:
        LogNotEmpty: the store holds a log already.
        StoreError: it cannot be written.
    """
    if store.head() is not None:
        message = "the store that the new log would be written to holds a log already"
        raise LogNotEmpty(message)
    entry = entry_format.encode(
        entry_format.Admin(info=info, inst=instance, log=origin, ts=entry_format.timestamp(now), what="new-origin")
    )
    tree = Tree.load(0, b"", store.tile, store.entries)
    tiles = [Tile(*tile) for tile in tree.append([leaf_hash(entry)])]
    root, frontier = tree.root(), tree.frontier()
    head = Head(1, root, frontier, seal.mac(1, root, frontier, NO_AUTHORITY), NO_AUTHORITY)
    store.append(Append(0, [entry], head, boot, int(now * 1000), tiles))
