"""log-verify, log-verify-hashes: entries a second of CPU that the offline verifier reads, against bare SHA-256.

    log_verify.py        commands: make{entries}, semantic, hashes, bare → {count, cpu, checked}

Half of the entries are intents and half their outcomes, as the daemon writes them, in a directory of tiles.
`semantic` is `audit verify --directory` as a whole: files, tiles, root, checkpoint, and what every entry says
of the others. `hashes` is its first half: bundles, leaf hashes, tiles and root. `bare` reads the same
bundles and hashes their bytes, nothing else. All three count CPU time of one core, in one process.
"""

from __future__ import annotations

import base64
import hashlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from workers import serve

from greatseal.checkpoint import Checkpoint
from greatseal.logdirectory import LogDirectory
from greatseal.note import NoteSigner
from greatseal.tiles import MAX_BUNDLE_BYTES, WIDTH, TileTree, pack, tile_path, unpack
from greatseal.tlog import leaf_hash
from greatseald.domain import entries as entry_format

ORIGIN: Final = "greatseal.local/log"
SPKI: Final = hashlib.sha256(b"key").hexdigest()
_BOOT: Final = "0197f3f0-0000-7000-8000-000000000001"
_AT_ONCE: Final = WIDTH // 2


def pairs(count: int, seed: int = 7) -> Iterator[bytes]:
    """Entries of `count` blind signatures in groups: intents, then their outcomes. The signatures are random numbers."""
    numbers = random.Random(seed)
    client = entry_format.Client(
        cert_sha256="11" * 32, id="spiffe://greatseal.local/pipeline", issuer="CN=Greatseal local CA", serial="0a0b"
    )
    policy = entry_format.Policy(ids=("allow[0]",), set="00" * 32)
    key = entry_format.KeyVersion(name="keys/release", spki_sha256=SPKI, version=1)
    start = 0
    while count > 0:
        size = min(count, _AT_ONCE)
        intents = [
            entry_format.Intent(
                att=1, blind=True, cli=client, inst=_BOOT, key=key, log=ORIGIN, mech="ecdsa-p256-sha256",
                peer="ipv4:127.0.0.1:50000", pol=policy, req=f"0197f3f0-1111-7000-8000-{numbers.getrandbits(48):012x}",
                tbs=numbers.randbytes(32).hex(), ts="2026-01-02T03:04:05.678901Z",
            )
            for _ in range(size)
        ]  # fmt: skip
        encoded = [entry_format.encode(intent) for intent in intents]
        yield from encoded
        for place, (intent, data) in enumerate(zip(intents, encoded, strict=True), start):
            signature = encode_dss_signature(numbers.getrandbits(255) | 1, numbers.getrandbits(255) | 1)
            yield entry_format.encode(
                entry_format.Outcome(
                    dur_us=1234, hsm=entry_format.Hsm(fw="2.6", seq=place, serial="0123456789abcdef"), inst=_BOOT,
                    intent=entry_format.IntentRef(index=place, leaf_hash=leaf_hash(data).hex()),
                    key=entry_format.KeyRef(spki_sha256=SPKI), log=ORIGIN, res="signed",
                    sig=base64.b64encode(signature).decode(), tbs=intent.tbs, ts="2026-01-02T03:04:05.678901Z",
                )
            )  # fmt: skip
        start += 2 * size
        count -= size


class Sides:
    """A log's directory, read in three ways."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._signer = NoteSigner(ORIGIN, Ed25519PrivateKey.generate())
        self._size = 0

    def make(self, entries: int) -> dict[str, Any]:
        """Write the directory."""
        tree, bundle = TileTree(), []
        for data in pairs(entries // 2):
            bundle.append(data)
            for tile in tree.append(leaf_hash(data)):
                self._write(tile.path(), tile.data)
            if len(bundle) == WIDTH:
                self._write(tile_path("entries", (tree.size - 1) // WIDTH), pack(bundle))
                bundle = []
        for tile in tree.partial():
            if tile.data:
                self._write(tile.path(), tile.data)
        if bundle:
            self._write(tile_path("entries", tree.size // WIDTH, len(bundle)), pack(bundle))
        self._size, self._root = tree.size, tree.root()
        note = Checkpoint(ORIGIN, tree.size, self._root).sign(self._signer)
        self._write("checkpoint", note.encode())
        return {"count": tree.size}

    def semantic(self) -> dict[str, Any]:
        def work() -> int:
            checkpoint, check = LogDirectory(self._directory, self._signer.verifier).verify()
            assert check.counts["outcome signed"] * 2 == checkpoint.size
            return checkpoint.size

        return _timed(work)

    def hashes(self) -> dict[str, Any]:
        def work() -> int:
            tree = TileTree()
            for data, width in self._bundles():
                for entry in unpack(data, width, "a bundle"):
                    for tile in tree.append(leaf_hash(entry)):
                        assert (self._directory / tile.path()).read_bytes() == tile.data
            assert tree.root() == self._root
            return tree.size

        return _timed(work)

    def bare(self) -> dict[str, Any]:
        def work() -> int:
            for data, _ in self._bundles():
                hashlib.sha256(data).digest()
            return 0

        return _timed(work)

    def _bundles(self) -> Iterator[tuple[bytes, int]]:
        for first in range(0, self._size, WIDTH):
            width = min(WIDTH, self._size - first)
            with (self._directory / tile_path("entries", first // WIDTH, width)).open("rb") as file:
                yield file.read(MAX_BUNDLE_BYTES), width

    def _write(self, name: str, data: bytes) -> None:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _timed(work: Callable[[], int]) -> dict[str, Any]:
    begun = time.process_time()
    checked = work()
    return {"cpu": time.process_time() - begun, "checked": checked}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="greatseal-bench-") as directory:
        sides = Sides(Path(directory))
        serve(lambda command, arguments: getattr(sides, command)(**arguments))


if __name__ == "__main__":
    main()
