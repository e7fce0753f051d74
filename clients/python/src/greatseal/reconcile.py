"""Comparing what tokens were made to sign with what the log says: ledgers against entries.

An honest host appends a record before each call of its token, for an intent that stands in the log; the
outcome repeats the record's sequence number. So every record must have its intent, with that leaf hash
and digest, and every outcome with a sequence number must have its record. `Reconciliation` is fed the
log's entries in order and names each disagreement, with the record or entry where it shows.

What it cannot show: what a token signed without its host. Neither has a trace of that.

    comparison = Reconciliation(ledgers)
    for index, data in entries: comparison.add(index, data)
    comparison.finish(); comparison.findings
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from greatseal import strictjson, tlog
from greatseal.errors import VerificationFailed
from greatseal.ledger import LedgerFile, LedgerRecord
from greatseal.logcheck import MAX_ENTRY_BYTES

MAX_FINDINGS: Final = 1000
"""Findings that are kept; further ones are counted."""
_JUDGED: Final = 1
_MAX_SERIALS: Final = 64


class Finding(NamedTuple):
    """One disagreement.

    Attributes:
        kind: `chain`, `gap`, `doubled`, `content`, `tail` (of the file itself), `no-intent`, `other-intent`,
            `not-asked` (of a record), `no-record`, `other-sequence`, `no-sequence`, `other-token` (of an entry).
        ledger: the file, empty where the finding is of the log.
        record: the record's place in it from 1, 0 where there is none.
        entry: the entry's index, -1 where there is none.
        message: what is wrong, for people.
    """

    kind: str
    ledger: str
    record: int
    entry: int
    message: str


class Reconciliation:
    """Compares opened ledgers with the entries of one log.

    Args:
        ledgers: not loaded yet.
        serials: only what these tokens signed is looked for in the ledgers; all tokens where empty.
        settled: outcomes from this index on may be newer than the ledgers, and need no record.
        first: the index of the first entry that will be added; records of intents before it are not judged.

    Attributes:
        findings: the first `MAX_FINDINGS` disagreements.
        total: how many there are.
        matched: outcomes that have their record.
        signed_records: records whose intent has a signed outcome.
        unjudged: records of intents that are newer, or older, than the log that was read.
        serials_of: the serial numbers that outcomes name, for each ledger.
    """

    def __init__(
        self, ledgers: Sequence[LedgerFile], serials: Collection[str] = (), settled: int = 1 << 63, first: int = 0
    ) -> None:
        self._ledgers = ledgers
        self._first = first
        self._serials = frozenset(serials)
        self._settled = settled
        self._marks: list[array[int]] = []
        self._size = 0
        self.findings: list[Finding] = []
        self.total = 0
        self.matched = 0
        self.signed_records = 0
        self.unjudged = 0
        self.serials_of: list[set[str]] = [set() for _ in ledgers]
        for ledger in ledgers:
            for fault in ledger.load():
                self._find(
                    Finding(fault.kind, str(ledger.path), fault.record, -1, f"record {fault.record} {fault.message}")
                )
            self._marks.append(array("B", bytes(ledger.count + 1)))

    @property
    def without_signature(self) -> int:
        """Records whose intent has no signed outcome: failed, unknown, or still open."""
        return sum(ledger.count for ledger in self._ledgers) - self.signed_records

    def add(self, index: int, data: bytes) -> None:
        """Take the next entry of the log; its hash is the caller's to check."""
        self._size = index + 1
        entry = _read(data)
        if entry.get("t") == "intent":
            self._intent(index, tlog.leaf_hash(data), entry)
        elif entry.get("t") == "outcome":
            self._outcome(index, entry)

    def finish(self, *, whole: bool) -> None:
        """Judge the records for which no intent came.

        Args:
            whole: all of the log was read, so that a record of an intent beyond its end has none. Of an
                export, which may be older than the ledger, such records are counted in `unjudged`.
        """
        for number, ledger in enumerate(self._ledgers):
            marks = self._marks[number]
            for place in range(1, ledger.count + 1):
                if marks[place] == _JUDGED:
                    continue
                index = ledger.record(place).intent_index
                if index < self._first or (index >= self._size and not whole):
                    self.unjudged += 1
                    continue
                where = "is no intent" if index < self._size else f"is beyond the log's {self._size} entries"
                message = f"record {place} is for entry {index}, which {where}: the token was used without one"
                self._find(Finding("no-intent", str(ledger.path), place, index, message))

    def _intent(self, index: int, leaf: bytes, entry: dict[str, Any]) -> None:
        for number, ledger in enumerate(self._ledgers):
            places = ledger.places_of(index)
            for place in places:
                self._marks[number][place] = _JUDGED
                record = ledger.record(place)
                if record.leaf_hash != leaf:
                    message = f"record {place} names entry {index} with another leaf hash than that intent has"
                elif record.digest.hex() != entry.get("tbs"):
                    message = f"record {place} has another digest than the intent at entry {index}"
                else:
                    continue
                self._find(Finding("other-intent", str(ledger.path), place, index, message))
            if len(places) > 1:
                which = ", ".join(map(str, places[:10]))
                message = f"records {which} are all for entry {index}: an intent permits one signature"
                self._find(Finding("doubled", str(ledger.path), places[1], index, message))

    def _outcome(self, index: int, entry: dict[str, Any]) -> None:
        intent, hsm = _part(entry, "intent").get("index"), _part(entry, "hsm")
        sequence, serial, result = hsm.get("seq", 0), hsm.get("serial", ""), entry.get("res")
        if type(intent) is not int or not 0 <= intent < index:
            message = f"entry {index} is an outcome that names no intent"
            self._find(Finding("content", "", 0, index, message))
            return
        found = [(number, record) for number, ledger in enumerate(self._ledgers) for record in ledger.of_intent(intent)]
        if result == "aborted":
            for number, record in found:
                path = str(self._ledgers[number].path)
                message = f"record {record.place} is for entry {intent}, of which outcome {index} says that the token was never asked"
                self._find(Finding("not-asked", path, record.place, index, message))
            return
        if result == "signed":
            self.signed_records += len(found)
        if (result != "signed" and not sequence) or (self._serials and serial not in self._serials and not found):
            return
        if not sequence:
            self._find(Finding("no-sequence", "", 0, index, f"entry {index} is a signature and names no sequence"))
            return
        if not found:
            self._missing(index, intent, sequence, str(serial))
            return
        exact = [(number, record) for number, record in found if record.sequence == sequence]
        if not exact:
            self._other(index, sequence, found)
            return
        if self._serials and serial not in self._serials:
            message = f"entry {index} names token {serial!r:.120}, whose ledger this is not said to be"
            self._find(Finding("other-token", str(self._ledgers[exact[0][0]].path), exact[0][1].place, index, message))
        self.matched += 1
        for number, record in exact:
            if record.digest.hex() != entry.get("tbs"):
                path = str(self._ledgers[number].path)
                message = (
                    f"entry {index} has another digest than record {record.place}, which has its sequence {sequence}"
                )
                self._find(Finding("other-intent", path, record.place, index, message))
            if len(self.serials_of[number]) < _MAX_SERIALS:
                self.serials_of[number].add(str(serial)[:120])

    def _missing(self, index: int, intent: int, sequence: int, serial: str) -> None:
        if index >= self._settled:
            return  # signed after the ledger was read
        beyond = [ledger for ledger in self._ledgers if sequence > ledger.last]
        if len(beyond) == len(self._ledgers):
            last = ", ".join(f"{ledger.path} ends at {ledger.last}" for ledger in beyond)
            message = f"entry {index} has sequence {sequence} of token {serial:.120}, and {last}: the tail was cut off, or this token's ledger was not given"
            self._find(Finding("tail", str(beyond[0].path) if len(beyond) == 1 else "", 0, index, message))
            return
        message = f"entry {index} has sequence {sequence} of token {serial:.120}, and no ledger that was given has a record for its intent {intent}"
        self._find(Finding("no-record", "", 0, index, message))

    def _other(self, index: int, sequence: int, found: Sequence[tuple[int, LedgerRecord]]) -> None:
        number, record = found[0]
        message = (
            f"entry {index} has sequence {sequence}, and record {record.place} for its intent has {record.sequence}"
        )
        self._find(Finding("other-sequence", str(self._ledgers[number].path), record.place, index, message))

    def _find(self, finding: Finding) -> None:
        self.total += 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)


def _read(data: bytes) -> dict[str, Any]:
    try:
        entry = strictjson.decode(data, max_bytes=MAX_ENTRY_BYTES, what="the entry")
    except VerificationFailed:
        return {}
    return entry if isinstance(entry, dict) else {}


def _part(entry: dict[str, Any], name: str) -> dict[str, Any]:
    value = entry.get(name)
    return value if isinstance(value, dict) else {}
