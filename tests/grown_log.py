"""Making a log large: entries appended to a stopped deployment's store as its daemon would append them, tiles included.

grow(deployment, [b"{...}", ...])
"""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Iterable, Iterator

from deployment import Deployment
from greatseald.adapters.store.opening import open_store
from greatseald.app.recovery import open_tree
from greatseald.bootstrap.compose import read_settings, store_options
from greatseald.config import read_head_mac_key
from greatseald.domain.heads import HeadSeal
from greatseald.domain.tree import leaf_hash
from greatseald.ports.store import Append, Head, Tile

AT_ONCE = 16 * 1024


def grow(deployment: Deployment, entries: Iterable[bytes], at_once: int = AT_ONCE) -> int:
    """Append entries, `at_once` in each commit; return the log's size."""
    settings = read_settings(deployment.config, {})
    boot = uuid.uuid4()
    seal = HeadSeal(read_head_mac_key(settings.log.head_mac_key_file))
    store = open_store(settings.store.url, boot.bytes, store_options(settings))
    try:
        tree = open_tree(store, seal)
        newest = store.head()
        authority = newest.authority if newest is not None else None
        rest = iter(entries)
        while batch := list(itertools.islice(rest, at_once)):
            start = tree.size
            tree.mark()
            tiles = [Tile(*tile) for tile in tree.append([leaf_hash(entry) for entry in batch])]
            root, frontier = tree.root(), tree.frontier()
            head = Head(tree.size, root, frontier, seal.mac(tree.size, root, frontier, authority), authority)
            store.append(Append(start, batch, head, boot.bytes, time.time_ns() // 1_000_000, tiles))
        return tree.size
    finally:
        store.close()


def signatures(origin: str, first: int, count: int, ts: str = "2026-01-02T03:04:05.678901Z") -> Iterator[bytes]:
    """The entries of `count` requests that failed, an intent and its outcome each, from index `first` on."""
    common = {"v": 1, "ts": ts, "inst": "0197f3f0-0000-7000-8000-000000000001", "log": origin}
    key = {"name": "keys/scratch", "version": 1, "spki_sha256": "ab" * 32}
    for number in range(count):
        tbs = f"{first + 2 * number:064x}"[::-1]
        who = {
            "id": f"spiffe://greatseal.local/ci-{number % 7}",
            "cert_sha256": "cd" * 32,
            "serial": "1",
            "issuer": "CN=ca",
        }
        intent = common | {
            "t": "intent", "att": 1, "blind": True, "cli": who, "key": key, "mech": "ecdsa-p256-sha256", "peer": "ipv4:127.0.0.1:1",
            "pol": {"set": "ef" * 32}, "req": f"0197f3f0-1111-7000-8000-{number:012x}", "tbs": tbs,
        }  # fmt: skip
        data = _line(intent)
        yield data
        outcome = common | {
            "t": "outcome", "ckr": 5, "dur_us": 1, "key": {"spki_sha256": "ab" * 32}, "res": "failed", "tbs": tbs,
            "intent": {"index": first + 2 * number, "leaf_hash": leaf_hash(data).hex()},
        }  # fmt: skip
        yield _line(outcome)


def _line(entry: dict[str, object]) -> bytes:
    return json.dumps(entry, separators=(",", ":"), sort_keys=True).encode()
