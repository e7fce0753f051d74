"""Ledgers against the log: every kind of tampering with either shows, and says where."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployment import Deployment

pytestmark = pytest.mark.softhsm
HEADER, RECORD, BODY = 16, 160, 128
SIGNATURES = 6


@pytest.fixture(scope="module")
def signed(shared_deployment: Deployment) -> Deployment:
    """A daemon that has signed six digests."""
    for number in range(SIGNATURES):
        digest = hashlib.sha256(f"file {number}".encode()).hexdigest()
        done = shared_deployment.client("sign", "digest", "--sha256", digest, "--key", "scratch")
        assert done.returncode == 0, done.stderr
    return shared_deployment


@pytest.fixture(scope="module")
def export(signed: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log as a directory."""
    directory = tmp_path_factory.mktemp("export") / "log"
    done = signed.client("audit", "export", directory)
    assert done.returncode == 0, done.stderr
    return directory


def _ledger(deployment: Deployment) -> Path:
    (found,) = deployment.directory.rglob("ledger")
    return found


def _records(data: bytes) -> list[bytes]:
    return [data[at : at + BODY] for at in range(HEADER, len(data), RECORD)]


def _chained(bodies: list[bytes], header: bytes = b"greatseal-led-1\n") -> bytes:
    """A ledger whose chain is right: what somebody writes who knows the format."""
    chain, out = hashlib.sha256(header).digest(), header
    for body in bodies:
        chain = hashlib.sha256(chain + body).digest()
        out += body + chain
    return out


def _number(body: bytes, **change: int) -> bytes:
    fields = dict(zip(("sequence", "index", "highest"), struct.unpack_from(">QQQ", body), strict=True)) | change
    return struct.pack(">QQQ", *fields.values()) + body[24:]


def _reconcile(deployment: Deployment, ledger: Path, *options: str | Path) -> tuple[int, dict[str, Any], str]:
    done = deployment.client("audit", "reconcile", "--json", "--ledger", ledger, *options)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_an_honest_ledger_agrees_with_daemon_and_export(signed: Deployment, export: Path):
    for options in ((), ("--directory", export)):
        code, found, stderr = _reconcile(signed, _ledger(signed), *options)
        assert (code, found["agree"], found["findings"]) == (0, True, []), stderr
        assert found["outcomes_matched"] == SIGNATURES
        assert found["ledgers"][0]["last_sequence"] == SIGNATURES
        assert found["ledgers"][0]["serials"][0]
        assert "without its host" in found["limits"]
    done = signed.client("audit", "reconcile", "--ledger", _ledger(signed))
    assert done.returncode == 0
    assert "OK: every record has its intent" in done.stderr


Change = Callable[[list[bytes]], list[bytes]]
REWRITTEN: dict[str, tuple[Change, set[str]]] = {
    # The chain is computed again over what was changed, so only the comparison can tell.
    "tail": (lambda r: r[:-2], {"tail"}),
    "emptied": (lambda _: [], {"tail"}),
    "gap": (lambda r: r[:2] + r[3:], {"gap", "no-record"}),
    "cut and renumbered": (
        lambda r: r[:2] + [_number(b, sequence=n) for n, b in enumerate(r[3:], 3)],
        {"no-record", "other-sequence"},
    ),
    "doubled sequence": (lambda r: [*r[:3], _number(r[3], sequence=3), *r[4:]], {"doubled", "gap", "other-sequence"}),
    "jump": (lambda r: [*r[:-1], _number(r[-1], sequence=1000)], {"gap", "other-sequence"}),
    "without an intent": (lambda r: [*r, _number(r[-1], sequence=SIGNATURES + 1, index=0)], {"no-intent"}),
    "an intent twice": (lambda r: [*r, _number(r[-1], sequence=SIGNATURES + 1)], {"doubled"}),
    "another digest": (lambda r: [r[0][:64] + b"\x01" * 32 + r[0][96:], *r[1:]], {"other-intent"}),
    "another leaf hash": (lambda r: [r[0][:32] + b"\x01" * 32 + r[0][64:], *r[1:]], {"other-intent"}),
    "another highest": (lambda r: [*r[:-1], _number(r[-1], highest=1 << 40)], {"content"}),
    "long digest": (lambda r: [*r[:-1], r[-1][:24] + b"\xff" + r[-1][25:]], {"content", "other-intent"}),
}


@pytest.mark.parametrize(
    ("how", "offline"), [*((how, False) for how in REWRITTEN), ("tail", True), ("without an intent", True)]
)
def test_a_rewritten_ledger_is_named(signed: Deployment, export: Path, tmp_path: Path, how: str, offline: bool):
    change, kinds = REWRITTEN[how]
    path = tmp_path / "ledger"
    path.write_bytes(_chained(change(_records(_ledger(signed).read_bytes()))))
    code, found, stderr = _reconcile(signed, path, *(("--directory", export) if offline else ()))
    assert code == 6
    assert not found["agree"]
    assert kinds <= {each["kind"] for each in found["findings"]}, found["findings"]
    assert all(each["record"] or each["entry"] >= 0 for each in found["findings"])
    assert "disagree" in stderr


def test_an_edited_or_cut_record_breaks_the_chain_there(signed: Deployment, tmp_path: Path):
    whole = _ledger(signed).read_bytes()
    path = tmp_path / "ledger"
    for at in (0, 8, 40, 70, BODY):  # sequence, index, leaf hash, digest, chain of record 3
        edited = bytearray(whole)
        edited[HEADER + 2 * RECORD + at] ^= 1
        path.write_bytes(edited)
        code, found, _ = _reconcile(signed, path)
        assert code == 6
        assert ("chain", 3) in {(each["kind"], each["record"]) for each in found["findings"]}
    path.write_bytes(whole[: HEADER + 2 * RECORD] + whole[HEADER + 3 * RECORD :])
    code, found, _ = _reconcile(signed, path)
    assert {("chain", 3), ("gap", 3)} <= {(each["kind"], each["record"]) for each in found["findings"]}


def test_a_signature_that_another_ledger_holds_is_missed(signed: Deployment, tmp_path: Path):
    """Of two tokens one ledger is not enough, but where --serial says that only one is looked for."""
    empty = tmp_path / "ledger"
    empty.write_bytes(_chained([]))
    assert _reconcile(signed, empty)[0] == 6
    assert _reconcile(signed, empty, "--ledger", _ledger(signed))[0] == 0
    assert _reconcile(signed, empty, "--serial", "another")[0] == 0
    code, found, _ = _reconcile(signed, _ledger(signed), "--serial", "another")
    assert code == 6
    assert {each["kind"] for each in found["findings"]} == {"other-token"}


def test_records_newer_than_an_export_are_not_condemned_but_counted(signed: Deployment, export: Path, tmp_path: Path):
    records = _records(_ledger(signed).read_bytes())
    path = tmp_path / "ledger"
    path.write_bytes(_chained([*records, _number(records[-1], sequence=SIGNATURES + 1, index=999, highest=999)]))
    code, found, _ = _reconcile(signed, path, "--directory", export)
    assert (code, found["records_not_judged"]) == (0, 1)
    code, found, _ = _reconcile(signed, path)
    assert code == 6
    assert found["findings"][0]["kind"] == "no-intent"


def test_a_torn_last_record_is_said(signed: Deployment, tmp_path: Path):
    path = tmp_path / "ledger"
    path.write_bytes(_ledger(signed).read_bytes() + b"\0" * 7)
    done = signed.client("audit", "reconcile", "--ledger", path)
    assert done.returncode == 0
    assert "torn" in done.stderr


def test_what_is_no_ledger_is_refused(signed: Deployment, tmp_path: Path):
    fifo, short, other = tmp_path / "fifo", tmp_path / "short", tmp_path / "other"
    os.mkfifo(fifo)
    short.write_bytes(b"greatseal")
    other.write_bytes(b"x" * 400)
    for path in (fifo, short, other, tmp_path, tmp_path / "missing"):
        code, _, stderr = _reconcile(signed, path)
        assert code == 2
        assert str(path) in stderr
    ledger = _ledger(signed)
    assert _reconcile(signed, ledger, "--ledger", ledger)[0] == 2
