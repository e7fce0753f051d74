"""Checking a whole log: the first bad index is named, whatever was done to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from greatseal.errors import VerificationFailed
from greatseal.logcheck import (
    SNAPSHOT_EVERY,
    LogCheck,
    Problem,
    find_repeated_nonce,
    first_difference,
    nonce_mark,
)
from greatseal.tlog import RootHash, leaf_hash, split_hashes
from sample_log import SampleLog, as_json, new_key


def _check(entries: list[bytes], origin: str = "greatseal.local/log") -> LogCheck:
    check = LogCheck(origin)
    for index, data in enumerate(entries):
        check.add(index, data)
    return check


@pytest.fixture
def log() -> SampleLog:
    log = SampleLog()
    log.grow(2)
    key = new_key()
    for number in range(4):
        log.sign(key, hashlib.sha256(bytes([number])).digest(), between=number)
    return log


def test_a_sound_log_has_no_problem_and_its_root(log: SampleLog):
    check = _check(log.entries)
    assert check.problem is None
    assert check.root() == log.tree.prover(len(log.entries)).root()
    assert check.open_intents == []
    assert check.counts["outcome signed"] == 4
    assert check.repeated_nonces() == frozenset()


def test_an_open_intent_is_counted_and_not_condemned(log: SampleLog):
    check = _check(log.entries[:-1])
    assert check.problem is None
    assert len(check.open_intents) == 1


@pytest.mark.parametrize("size", [1, 2, 7, 100, SNAPSHOT_EVERY, SNAPSHOT_EVERY + 1, 2 * SNAPSHOT_EVERY + 37])
def test_the_first_changed_entry_is_found_by_proofs(size: int):
    log = SampleLog()
    log.grow(size)
    prover = log.tree.prover(size)
    for bad in {0, size // 2, size - 1, min(SNAPSHOT_EVERY - 1, size - 1), min(SNAPSHOT_EVERY, size - 1)}:
        changed = list(log.entries)
        changed[bad] = changed[bad].replace(b"reload", b"forged")
        if bad + 3 < size:
            changed[bad + 3] = changed[bad + 3].replace(b"reload", b"forged")
        check = _check(changed)
        found = first_difference(
            check,
            size,
            prover.root(),
            lambda start, end, changed=changed: list(enumerate(changed))[start:end],
            prover.consistency,
        )
        assert found.index == bad


def test_a_missing_entry_is_named(log: SampleLog):
    check = LogCheck(log.origin)
    check.add(0, log.entries[0])
    with pytest.raises(VerificationFailed, match="entry 1 is missing"):
        check.add(2, log.entries[2])


def _edit(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry.update(changes)


def _nested(outer: str, inner: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry[outer].update({inner: value})


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("outcome", _nested("intent", "leaf_hash", "00" * 32)),
        ("outcome", _nested("intent", "index", 0)),
        ("outcome", _nested("intent", "index", "2")),
        ("outcome", _nested("intent", "index", True)),
        ("outcome", _nested("key", "spki_sha256", "00" * 32)),
        ("outcome", _edit(tbs="00" * 32)),
        ("outcome", _edit(res="released")),
        ("outcome", _edit(res="failed")),
        ("outcome", _edit(sig="")),
        ("outcome", _edit(sig="AAAA")),
        ("outcome", _edit(intent=None)),
        ("outcome", _edit(v=2)),
        ("outcome", _edit(log="another/log")),
        ("outcome", _edit(t="erased")),
        ("intent", _edit(tbs=None)),
        ("intent", _edit(key="x")),
        ("intent", _edit(v="1")),
    ],
)
def test_an_entry_that_contradicts_the_others_is_named(log: SampleLog, kind: str, change: Any):
    entries = list(log.entries)
    index = next(n for n, data in enumerate(entries) if json.loads(data)["t"] == kind)
    entry = json.loads(entries[index])
    change(entry)
    entries[index] = as_json(entry)
    problem = _check(entries).problem
    assert problem is not None
    assert problem.index == index


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"{", b'{"v":1,"v":1}', b"null", b"x" * 20000, b'{"v":1}'])
def test_bytes_that_are_no_entry_are_named(log: SampleLog, data: bytes):
    assert _check([*log.entries, data]).problem == Problem(
        len(log.entries), _check([*log.entries, data]).problem.message
    )


def test_a_second_outcome_of_one_intent_is_named(log: SampleLog):
    last = len(log.entries)
    problem = _check([*log.entries, log.entries[-1]]).problem
    assert problem is not None
    assert problem.index == last
    assert "second outcome" in problem.message


def test_an_outcome_before_its_intent_is_named(log: SampleLog):
    entries = [log.entries[3], log.entries[2]]
    problem = _check(entries).problem
    assert problem is not None
    assert problem.index == 0


def test_a_repeated_nonce_is_found_and_a_repeated_digest_is_harmless(log: SampleLog):
    outcomes = [json.loads(data) for data in log.entries if json.loads(data)["t"] == "outcome"]
    marks = {nonce_mark(each["key"]["spki_sha256"], each["sig"]) for each in outcomes}
    assert len(marks) == len(outcomes)
    # The same signature over another digest: its nonce, and with it the private key, is given away.
    first, second = (index for index, data in enumerate(log.entries) if json.loads(data) in outcomes[:2])
    entries = list(log.entries)
    entries[second] = as_json({**json.loads(entries[second]), "sig": outcomes[0]["sig"]})
    check = _check(entries)
    assert check.problem is None
    found = find_repeated_nonce(check.repeated_nonces(), enumerate(entries))
    assert found is not None
    assert found.index == second
    assert str(first) in found.message
    # Signing one digest twice with one nonce (RFC 6979) gives nothing away.
    entries[second] = as_json({**json.loads(entries[first]), "intent": json.loads(entries[second])["intent"]})
    again = LogCheck(log.origin)
    for index, data in enumerate(entries):
        again.add(index, data)
    assert find_repeated_nonce(frozenset(marks), enumerate(entries)) is None


@pytest.mark.parametrize("first", [1, 5, SNAPSHOT_EVERY - 1, SNAPSHOT_EVERY, SNAPSHOT_EVERY + 3])
def test_a_check_that_begins_later_finds_the_first_changed_entry_too(first: int):
    log = SampleLog()
    size = 2 * SNAPSHOT_EVERY + 50
    log.grow(size)
    prover = log.tree.prover(size)
    last = log.tree.prover(first).inclusion(first - 1)
    beginning = RootHash.from_last(first, leaf_hash(log.entries[first - 1]), split_hashes(last))
    assert beginning.root() == log.tree.prover(first).root()
    for bad in (None, first, first + 1, first + SNAPSHOT_EVERY, size - 1):
        changed = list(log.entries)
        if bad is not None:
            changed[bad] = changed[bad].replace(b"reload", b"forged")
        check = LogCheck(log.origin, beginning)
        for index in range(first, size):
            check.add(index, changed[index])
        assert (check.root() == prover.root()) == (bad is None)
        if bad is not None:
            entries = lambda start, end, changed=changed: list(enumerate(changed))[start:end]  # noqa: E731
            assert first_difference(check, size, prover.root(), entries, prover.consistency).index == bad


def test_an_outcome_of_an_intent_that_was_not_read_is_counted_once():
    log = SampleLog()
    pair = log.sign(new_key(), between=3)
    beginning = RootHash()
    beginning.append(leaf_hash(log.entries[pair.intent]))
    check = LogCheck(log.origin, beginning)
    for index in range(1, len(log.entries)):
        check.add(index, log.entries[index])
    assert check.problem is None
    assert check.counts["outcome of an entry not read"] == 1
    check.add(check.size, log.entries[pair.outcome])
    assert check.problem is not None
    assert "second outcome" in check.problem.message


def test_intents_that_are_never_closed_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("greatseal.logcheck.MAX_OPEN", 3)
    log = SampleLog()
    pair = log.sign(new_key())
    check = _check([log.entries[pair.intent]] * 10)
    assert check.problem is not None
    assert check.problem.index == 3
    assert len(check.open_intents) == 3
