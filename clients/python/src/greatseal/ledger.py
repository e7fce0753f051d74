"""Reading a token host's ledger: what the host let through to its token, record by record.

The file comes from another machine and perhaps from an attacker: it is read in bounded pieces, and what
is wrong in it is said, record by record, instead of ending the reading. Format (docs/audit-format.md):

    header   16 bytes   "greatseal-led-1" and a newline
    record  160 bytes   sequence u64 · intent index u64 · highest intent index so far u64 · length of the
                        digest u8 · 7 zero bytes · intent leaf hash 32 · digest 64 (zero-padded) ·
                        chain 32 = SHA-256(chain of the record before ‖ the 128 bytes before)

    with LedgerFile.open(path) as ledger:
        for fault in ledger.load(): print(fault.record, fault.message)
        ledger.of_intent(42)
"""

from __future__ import annotations

import os
import stat
import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from greatseal.errors import UsageError

HEADER: Final = b"greatseal-led-1\n"
RECORD_BYTES: Final = 160
MAX_RECORDS: Final = 50_000_000
"""More than a token that signs 1.5 times a second does in a year: 8 GB of ledger, 800 MB of memory."""
MAX_DIGEST_BYTES: Final = 64
_BODY: Final = struct.Struct(">QQQB7s32s64s")
_CHUNK: Final = 4096


class LedgerRecord(NamedTuple):
    """One operation that the host let through to the token; `place` counts the file's records from 1."""

    place: int
    sequence: int
    intent_index: int
    highest_index: int
    leaf_hash: bytes
    digest: bytes


class LedgerFault(NamedTuple):
    """What is wrong at one record of the file, by its place from 1."""

    record: int
    kind: str
    message: str


class LedgerFile:
    """One ledger file; what it held when it was opened.

    Attributes:
        path: the file.
        count: its whole records.
        torn: bytes of a last record that is not whole.
        last: the highest sequence number in it.
    """

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self._file = descriptor
        self.count, self.torn = divmod(size - len(HEADER), RECORD_BYTES)
        self.last = 0
        self._places = array("Q")
        self._indexes = array("Q")

    @classmethod
    def open(cls, path: Path) -> LedgerFile:
        """Open a ledger for reading; the host may go on writing it.

        Raises:
            UsageError: it is no ledger, or too long for one.
            OSError: it cannot be read.
        """
        # Without O_NONBLOCK a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            size = _size_of_ledger(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def load(self) -> Iterator[LedgerFault]:
        """Read all records, once, before anything else is asked; yields what is wrong with the file itself."""
        chain = sha256(HEADER).digest()
        highest = before = 0
        indexes = array("Q")
        for record, kept, data in self._records():
            computed = sha256(chain + data[: _BODY.size]).digest()
            chain = data[_BODY.size :]
            if computed != chain:
                message = (
                    "does not continue the record before it: one of the two was edited, or records between were cut out"
                )
                yield LedgerFault(record.place, "chain", message)
            yield from _counting(record, before)
            highest = max(highest, record.intent_index)
            if record.highest_index != highest:
                message = f"says that intent {record.highest_index} was the highest so far, and {highest} was"
                yield LedgerFault(record.place, "content", message)
                highest = max(highest, record.highest_index)
            if not kept:
                yield LedgerFault(record.place, "content", "is not as a host writes records")
            before = record.sequence
            self.last = max(self.last, record.sequence)
            indexes.append(record.intent_index)
        self.count = len(indexes)
        order = sorted(range(len(indexes)), key=indexes.__getitem__)
        self._places = array("Q", order)
        self._indexes = array("Q", map(indexes.__getitem__, order))

    def of_intent(self, index: int) -> list[LedgerRecord]:
        """The records of an intent, in the file's order; one, or none, in an honest file."""
        return [self.record(place) for place in self.places_of(index)]

    def places_of(self, index: int) -> list[int]:
        """The places, from 1, of the records of an intent."""
        found: list[int] = []
        at = bisect_left(self._indexes, index)
        while at < len(self._indexes) and self._indexes[at] == index and len(found) < _CHUNK:
            found.append(self._places[at] + 1)
            at += 1
        return found

    def highest_intent(self) -> int:
        """The highest intent index of its records; -1 where there are none."""
        return self._indexes[-1] if self._indexes else -1

    def record(self, place: int) -> LedgerRecord:
        """The record at a place, from 1 to `count`.

        Raises:
            UsageError: the file has become shorter meanwhile.
        """
        data = os.pread(self._file, RECORD_BYTES, len(HEADER) + (place - 1) * RECORD_BYTES)
        if len(data) != RECORD_BYTES:
            message = f"{self.path} became shorter while it was read"
            raise UsageError(message)
        return _parse(place, data)[0]

    def _records(self) -> Iterator[tuple[LedgerRecord, bool, bytes]]:
        for first in range(0, self.count, _CHUNK):
            length = min(_CHUNK, self.count - first) * RECORD_BYTES
            data = os.pread(self._file, length, len(HEADER) + first * RECORD_BYTES)
            for at in range(0, len(data) - RECORD_BYTES + 1, RECORD_BYTES):
                raw = data[at : at + RECORD_BYTES]
                yield (*_parse(first + at // RECORD_BYTES + 1, raw), raw)


def _size_of_ledger(path: Path, descriptor: int) -> int:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or os.pread(descriptor, len(HEADER), 0) != HEADER:
        message = f"{path} is not a token host's ledger"
        raise UsageError(message)
    if status.st_size > len(HEADER) + MAX_RECORDS * RECORD_BYTES:
        message = f"{path} has over {MAX_RECORDS} records, more than can be compared in one run"
        raise UsageError(message)
    return status.st_size


def _parse(place: int, data: bytes) -> tuple[LedgerRecord, bool]:
    """A record, and whether its padding and lengths are as they must be."""
    sequence, index, highest, length, zeros, leaf, digest = _BODY.unpack_from(data)
    whole = length <= MAX_DIGEST_BYTES and not any(zeros) and not any(digest[length:])
    return LedgerRecord(place, sequence, index, highest, leaf, digest[:length]), whole


def _counting(record: LedgerRecord, before: int) -> Iterator[LedgerFault]:
    sequence = record.sequence
    if sequence == before + 1:
        return
    if sequence > before + 1:
        missing = f"{before + 1}" if sequence == before + 2 else f"{before + 1} to {sequence - 1}"
        message = f"has sequence {sequence} after {before}: {missing} missing"
        yield LedgerFault(record.place, "gap", message)
    else:
        word = "again" if sequence == before else "back"
        message = f"has sequence {sequence} after {before}: the counting went {word}, so that numbers are doubled"
        yield LedgerFault(record.place, "doubled", message)
