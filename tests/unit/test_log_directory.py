"""An exported log: both verifiers accept the sound one and catch every kind of tampering."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from client_peer import Peer, served
from greatseal.algorithms import Algorithm
from greatseal.checkpoint import Checkpoint
from greatseal.client import Client
from greatseal.errors import DaemonError, VerificationFailed
from greatseal.logdirectory import LogDirectory
from greatseal.logsignatures import SignatureCheck
from greatseal.tiles import WIDTH, TileTree, pack, tile_path
from greatseal.tlog import leaf_hash
from greatseal.verification import CheckpointInvalid
from sample_log import SampleLog, as_json, new_key, oms_document

VERIFIER = Path(__file__).resolve().parents[2] / "clients" / "verifier" / "greatseal_verify.py"
KEY = new_key()
LOG = SampleLog()
LOG.grow(2)
FIRST = LOG.sign(KEY, hashlib.sha256(b"1").digest())
SECOND = LOG.sign(KEY, hashlib.sha256(b"2").digest(), between=2)
LOG.grow(2 * WIDTH)
KEPT = LOG.note()
KEPT_SIZE = len(LOG.entries)
LAST = LOG.sign(KEY, hashlib.sha256(b"3").digest(), between=5)


def _write(directory: Path, entries: list[bytes], note: str | None = None) -> None:
    """What the holder of the log's key could publish: tiles and a signed checkpoint of any entries."""
    tree = TileTree()
    tiles = [tile for data in entries for tile in tree.append(leaf_hash(data))]
    for tile in [*tiles, *(tile for tile in tree.partial() if tile.data)]:
        path = directory / tile.path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tile.data)
    for first in range(0, len(entries), WIDTH):
        part = entries[first : first + WIDTH]
        path = directory / tile_path("entries", first // WIDTH, len(part))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack(part))
    signed = Checkpoint(LOG.origin, tree.size, tree.root()).sign(LOG.signer)
    (directory / "checkpoint").write_text(note or signed)


def _changed(index: int, change: Callable[[dict[str, Any]], Any]) -> list[bytes]:
    entries = list(LOG.entries)
    entry = json.loads(entries[index])
    change(entry)
    entries[index] = as_json(entry)
    return entries


def _entry(index: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(LOG.entries[index])
    return found


def _swapped() -> list[bytes]:
    entries = list(LOG.entries)
    one, other = _entry(FIRST.outcome), _entry(SECOND.outcome)
    entries[FIRST.outcome], entries[SECOND.outcome] = (
        as_json(one | {"sig": other["sig"], "tbs": other["tbs"]}),
        as_json(other | {"sig": one["sig"], "tbs": one["tbs"]}),
    )
    return entries


def _replaced(path: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        file = directory / path
        data = file.read_bytes()
        assert old in data
        file.write_bytes(data.replace(old, new, 1))

    return change


def _reordered(directory: Path) -> None:
    one, other = directory / tile_path("entries", 0), directory / tile_path("entries", 1)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def _edit_with_tile(directory: Path) -> None:
    """An entry and its leaf's hash, but not the tiles above."""
    changed = LOG.entries[5].replace(b"reload", b"forged")
    _replaced(tile_path("entries", 0), LOG.entries[5], changed)(directory)
    _replaced(tile_path("0", 0), leaf_hash(LOG.entries[5]), leaf_hash(changed))(directory)


def _edit_all_tiles(directory: Path) -> None:
    """All that can be made without the log's key."""
    _write(directory, [*LOG.entries[:5], LOG.entries[5].replace(b"reload", b"forged"), *LOG.entries[6:]], LOG.note())


def _other_key(directory: Path) -> None:
    other = SampleLog()
    (directory / "checkpoint").write_text(
        Checkpoint(LOG.origin, len(LOG.entries), LOG.tree.prover(len(LOG.entries)).root()).sign(other.signer)
    )


def _published(entries: list[bytes]) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        shutil.rmtree(directory)
        _write(directory, entries)

    return change


CUT = len(LOG.entries) - 3
# What was done, and the index that is to be named (None: the fact only).
MUTATIONS: dict[str, tuple[Callable[[Path], None], int | None]] = {
    "an entry edited": (_replaced(tile_path("entries", 0), b"reload", b"forged"), 0),
    "an entry edited and its hash": (_edit_with_tile, None),
    "an entry edited and all tiles": (_edit_all_tiles, None),
    "a tile edited": (lambda d: (d / tile_path("0", 1)).write_bytes(b"x" * 32 * WIDTH), WIDTH),
    "a tile cut": (lambda d: (d / tile_path("0", 0)).write_bytes(b""), 0),
    "a tile deleted": (lambda d: (d / tile_path("0", 0)).unlink(), None),
    "a bundle deleted": (lambda d: (d / tile_path("entries", 1)).unlink(), None),
    "a bundle cut": (lambda d: (d / tile_path("entries", 1)).write_bytes(pack(LOG.entries[WIDTH:-9])), None),
    "a bundle too large": (lambda d: (d / tile_path("entries", 1)).write_bytes(bytes(6 << 20)), None),
    "bundles reordered": (_reordered, None),
    "a checkpoint of another key": (_other_key, None),
    "a checkpoint's size edited": (_replaced("checkpoint", f"\n{len(LOG.entries)}\n".encode(), b"\n9\n"), None),
    "a checkpoint's signature edited": (lambda d: (d / "checkpoint").write_text(LOG.note()[:-9] + "AAAAAAA=\n"), None),
    "no checkpoint": (lambda d: (d / "checkpoint").write_bytes(b""), None),
    "the tail cut": (_published(LOG.entries[: KEPT_SIZE - 1]), None),
    "a fork": (_published([b'{"a":1}', *LOG.entries[1:]]), None),
    "an entry deleted": (_published(LOG.entries[:7] + LOG.entries[8:]), None),
    "entries reordered": (_published([LOG.entries[1], LOG.entries[0], *LOG.entries[2:]]), None),
    "an outcome before its intent": (_published([*LOG.entries[:-7], LOG.entries[-1], *LOG.entries[-7:-1]]), None),
    "outcomes swapped": (_published(_swapped()), FIRST.outcome),
    "a second outcome": (_published([*LOG.entries, LOG.entries[-1]]), len(LOG.entries)),
    "an outcome of nothing": (
        _published([*LOG.entries, as_json(_entry(LAST.outcome) | {"intent": {"index": 0, "leaf_hash": "00" * 32}})]),
        len(LOG.entries),
    ),
    "a foreign leaf": (_published([*LOG.entries, b"\xff\xfe"]), len(LOG.entries)),
    "a leaf of another log": (
        _published([*LOG.entries, as_json(_entry(0) | {"log": "another/log"})]),
        len(LOG.entries),
    ),
    "a key twice": (_published([*LOG.entries, LOG.entries[0][:-1] + b',"v":1}']), len(LOG.entries)),
    "an unknown kind": (_published([*LOG.entries, as_json(_entry(0) | {"t": "erased"})]), len(LOG.entries)),
    "a result that is none": (
        _published(_changed(LAST.outcome, lambda e: e.update(res="released"))),
        LAST.outcome,
    ),
    "a signature left out": (_published(_changed(LAST.outcome, lambda e: e.pop("sig"))), LAST.outcome),
    "a signature of another digest": (
        _published(_changed(LAST.outcome, lambda e: e.update(sig=_entry(FIRST.outcome)["sig"]))),
        LAST.outcome,
    ),
}


def _ours(directory: Path, keys: Path) -> str:
    pems = [path.read_bytes() for path in keys.glob("*.pem")]
    kept = [("the kept checkpoint", Checkpoint(LOG.origin, KEPT_SIZE, LOG.tree.prover(KEPT_SIZE).root()))]
    try:
        LogDirectory(directory, LOG.vkey).verify(signatures=SignatureCheck(pems), checkpoints=kept)
    except VerificationFailed as error:
        return error.message
    return ""


def _lone(directory: Path, keys: Path) -> str:
    kept = keys / "kept"
    kept.write_text(KEPT)
    command = [sys.executable, str(VERIFIER), str(directory), "--log-key", LOG.vkey.line()]
    done = subprocess.run(
        [*command, "--checkpoint", str(kept), "--keys", str(keys)], capture_output=True, text=True, check=False
    )
    assert done.returncode in {0, 6}, done.stderr
    return done.stderr if done.returncode else ""


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.mkdir()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (path / "release.pem").write_bytes(KEY.public_key().public_bytes(serialization.Encoding.PEM, form))
    return path


@pytest.mark.parametrize("verify", [_ours, _lone])
def test_a_sound_export_verifies(tmp_path: Path, keys: Path, verify: Callable[[Path, Path], str]):
    _write(tmp_path / "log", LOG.entries)
    assert verify(tmp_path / "log", keys) == ""


@pytest.mark.parametrize("verify", [_ours, _lone])
@pytest.mark.parametrize("name", MUTATIONS)
def test_every_kind_of_tampering_is_caught(tmp_path: Path, keys: Path, name: str, verify: Callable[[Path, Path], str]):
    change, index = MUTATIONS[name]
    directory = tmp_path / "log"
    _write(directory, LOG.entries)
    change(directory)
    said = verify(directory, keys)
    assert said
    if index is not None:
        assert f"bad from entry {index} on" in said


@pytest.mark.parametrize("verify", [_ours, _lone])
def test_a_repeated_nonce_is_found_without_the_public_key(
    tmp_path: Path, keys: Path, verify: Callable[[Path, Path], str]
):
    (keys / "release.pem").unlink()
    _write(tmp_path / "log", _changed(LAST.outcome, lambda e: e.update(sig=_entry(FIRST.outcome)["sig"])))
    said = verify(tmp_path / "log", keys)
    assert f"bad from entry {LAST.outcome} on" in said
    assert f"entry {FIRST.outcome}" in said
    assert "nonce" in said


def test_the_lone_verifier_needs_nothing_but_python(tmp_path: Path, keys: Path):
    _write(tmp_path / "log", LOG.entries)
    command = [sys.executable, "-I", "-S", str(VERIFIER), str(tmp_path / "log"), "--log-key", LOG.vkey.line()]
    done = subprocess.run([*command, "--keys", str(keys)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 not checked" in done.stdout
    assert "not installed" in done.stderr


def test_its_ed25519_agrees_with_another():
    spec = importlib.util.spec_from_file_location("greatseal_verify", VERIFIER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    public = LOG.private_key.public_key().public_bytes_raw()
    for number in range(8):
        message = bytes([number]) * number
        signature = LOG.private_key.sign(message)
        assert module.ed25519_verifies(public, message, signature)
        for at in (0, 31, 32, 63):
            wrong = bytearray(signature)
            wrong[at] ^= 1
            assert not module.ed25519_verifies(public, message, bytes(wrong))
        assert not module.ed25519_verifies(public, message + b"x", signature)
        # The same signature with its scalar not reduced is none (RFC 8032, 5.1.7).
        scalar = int.from_bytes(signature[32:], "little") + module.L
        assert not module.ed25519_verifies(public, message, signature[:32] + scalar.to_bytes(32, "little"))


def test_an_export_goes_on_where_it_was_and_equals_one_made_at_once(tmp_path: Path):
    peer = Peer()
    peer.log = SampleLog(private_key=peer.log.private_key)
    sizes = [10, 20, WIDTH, WIDTH + 1, 3 * WIDTH + 7]
    with served(peer, tmp_path) as profile, Client(profile) as client:
        for before, size in zip([0, *sizes], sizes, strict=False):
            peer.log.grow(size - before)
            directory = LogDirectory(tmp_path / "log", peer.log.vkey)
            assert directory.export(client) == (before, size)
            assert directory.verify()[0].size == size
        LogDirectory(tmp_path / "again", peer.log.vkey).export(client)
    files = {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()}
    for path in files:
        assert (tmp_path / "again" / path).read_bytes() == (tmp_path / "log" / path).read_bytes()


def test_an_export_that_was_cut_off_takes_up_its_tiles_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    peer = Peer()
    peer.log = SampleLog(private_key=peer.log.private_key)
    peer.log.grow(10_000)
    directory = LogDirectory(tmp_path / "log", peer.log.vkey)
    with served(peer, tmp_path) as profile, Client(dataclasses.replace(profile, timeout=2)) as client:
        honest = peer.ListEntries
        asked: list[int] = []

        def answer(request: Any) -> Any:
            asked.append(int(request.page_token or request.start_index))
            if asked[-1] >= 8000 and len(asked) < 12:
                raise DaemonErrorRaised
            return honest(request)

        monkeypatch.setattr(peer, "ListEntries", answer)
        with pytest.raises((DaemonError, DaemonErrorRaised)):
            directory.export(client)
        assert not (tmp_path / "log" / "checkpoint").exists()
        asked.clear()
        asked += [0] * 20
        directory.export(client)
        assert min(asked[20:]) >= 4096
    assert directory.verify()[0].size == 10_000


class DaemonErrorRaised(Exception):
    """Ends a call of the peer."""


def test_a_directory_that_was_changed_is_not_gone_on_with(tmp_path: Path):
    peer = Peer()
    peer.log = SampleLog(private_key=peer.log.private_key)
    peer.log.grow(2 * WIDTH)
    directory = LogDirectory(tmp_path / "log", peer.log.vkey)
    with served(peer, tmp_path) as profile, Client(profile) as client:
        directory.export(client)
        (tmp_path / "log" / tile_path("0", 0)).write_bytes(b"x" * 32 * WIDTH)
        (tmp_path / "log" / tile_path("1", 0, 2)).write_bytes(b"x" * 64)
        peer.log.grow(3)
        with pytest.raises((VerificationFailed, CheckpointInvalid)):
            directory.export(client)


@pytest.mark.parametrize("verify", [_ours, _lone])
def test_an_export_with_every_algorithm_is_sound_and_ed25519_is_not_called_false(
    tmp_path: Path, keys: Path, verify: Callable[[Path, Path], str], monkeypatch: pytest.MonkeyPatch
):
    """The log has the digest of a message that Ed25519 signed, which is not enough to verify with, nor to accuse."""
    log = SampleLog(private_key=LOG.private_key)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    for algorithm in Algorithm:
        key = new_key(algorithm)
        (keys / f"{algorithm.value}.pem").write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
        if algorithm.is_pure:
            log.sign_statement(key, as_json(oms_document()), algorithm)
        else:
            log.sign(key, hashlib.new(algorithm.hash_name, b"x").digest(), algorithm)
    log.grow(KEPT_SIZE)
    monkeypatch.setattr(sys.modules[__name__], "KEPT", log.note())
    monkeypatch.setattr(sys.modules[__name__], "KEPT_SIZE", len(log.entries))
    monkeypatch.setattr(sys.modules[__name__], "LOG", log)
    _write(tmp_path / "log", log.entries)
    assert verify(tmp_path / "log", keys) == ""
    forged = json.loads(log.entries[1]) | {"sig": json.loads(log.entries[3])["sig"]}
    _write(tmp_path / "forged", [log.entries[0], as_json(forged), *log.entries[2:]])
    assert "bad from entry 1 on" in verify(tmp_path / "forged", keys)
