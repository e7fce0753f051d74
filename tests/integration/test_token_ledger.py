"""The host's ledger: chained, reloaded, and the memory of which intents were used."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from greatseald.adapters.tokens import ledger as module
from greatseald.adapters.tokens.ledger import HEADER, RECORD_BYTES, Ledger, LedgerBroken, LedgerUnwritable, read_ledger
from greatseald.ports.tokens import Operation


def operations(first: int, count: int) -> list[Operation]:
    return [
        Operation(first + n, secrets.token_bytes(32), secrets.token_bytes(48 if n % 2 else 32)) for n in range(count)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def written(path: Path, *batches: list[Operation]) -> None:
    ledger = Ledger(path)
    for batch in batches:
        ledger.append(batch)
    ledger.close()


def test_what_was_appended_is_read_back_in_order(path: Path):
    first, second = operations(10, 3), operations(20, 2)
    written(path, first, second)
    records = list(read_ledger(path))
    assert [record.sequence for record in records] == [1, 2, 3, 4, 5]
    assert [Operation(r.intent_index, r.leaf_hash, r.digest) for r in records] == first + second


def test_the_sequence_continues_after_a_restart(path: Path):
    written(path, operations(0, 3))
    ledger = Ledger(path)
    assert ledger.sequence == 3
    assert ledger.append(operations(3, 2)) == 4
    ledger.close()
    assert len(list(read_ledger(path))) == 5


def test_a_torn_last_record_is_cut_off_and_said(path: Path):
    written(path, operations(0, 3))
    os.truncate(path, len(HEADER) + 2 * RECORD_BYTES + 17)
    ledger = Ledger(path)
    assert ledger.sequence == 2
    assert "torn" in ledger.note
    ledger.append(operations(5, 1))
    ledger.close()
    assert [record.sequence for record in read_ledger(path)] == [1, 2, 3]


def test_a_torn_header_of_a_host_that_died_at_once_is_made_whole(path: Path):
    path.write_bytes(HEADER[:5])
    written(path, operations(0, 1))
    assert len(list(read_ledger(path))) == 1


@pytest.mark.parametrize("position", [0, 9, 24, 40, 80, 140])
def test_a_flipped_bit_breaks_the_chain_at_that_record(path: Path, position: int):
    written(path, operations(0, 4))
    data = bytearray(path.read_bytes())
    data[len(HEADER) + 2 * RECORD_BYTES + position] ^= 1
    path.write_bytes(data)
    with pytest.raises(LedgerBroken, match="record 3"):
        list(read_ledger(path))
    with pytest.raises(LedgerBroken, match="record 3"):
        Ledger(path)


def test_a_removed_record_breaks_the_chain(path: Path):
    written(path, operations(0, 4))
    data = path.read_bytes()
    path.write_bytes(data[: len(HEADER) + RECORD_BYTES] + data[len(HEADER) + 2 * RECORD_BYTES :])
    with pytest.raises(LedgerBroken, match="record 2"):
        list(read_ledger(path))


def test_another_file_is_not_taken_for_a_ledger(path: Path):
    path.write_bytes(b"something else entirely, and long enough")
    with pytest.raises(LedgerBroken):
        Ledger(path)
    assert path.read_bytes() == b"something else entirely, and long enough"


def test_two_hosts_do_not_share_a_ledger(path: Path):
    ledger = Ledger(path)
    with pytest.raises(LedgerUnwritable, match="another token host"):
        Ledger(path)
    ledger.close()


def test_a_ledger_that_cannot_be_written_refuses_and_stays_whole(path: Path, monkeypatch: pytest.MonkeyPatch):
    ledger = Ledger(path)
    ledger.append(operations(0, 2))
    real = os.pwrite
    monkeypatch.setattr(module.os, "pwrite", lambda fd, data, offset: real(fd, data[: len(data) // 2], offset))
    with pytest.raises(LedgerUnwritable, match="full"):
        ledger.append(operations(2, 2))
    monkeypatch.undo()
    assert ledger.append(operations(2, 1)) == 3
    ledger.close()
    assert len(list(read_ledger(path))) == 3


def test_an_intent_is_remembered_even_when_it_is_older_than_the_window(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "WINDOW", 8)
    old, recent = operations(0, 20), operations(100, 4)
    written(path, old, recent)
    for ledger in (Ledger(path),):
        for operation in [*old, *recent]:
            assert ledger.has_signed(operation.intent_index, operation.leaf_hash)
        assert not ledger.has_signed(0, recent[0].leaf_hash)
        assert not ledger.has_signed(3, secrets.token_bytes(32))
        assert not ledger.has_signed(1000, old[0].leaf_hash)
        late = operations(50, 1)  # an intent that comes late, after newer ones
        assert not ledger.has_signed(50, late[0].leaf_hash)
        ledger.append(late)
        assert ledger.has_signed(50, late[0].leaf_hash)
        ledger.close()
