"""The host's ledger: what it was permitted to sign, in order, each record chained to all before it.

A record is appended before C_Sign is called for it, one write() for all of a frame, so the ledger
holds at least every signature that the token made through this host. It is not flushed to the disk
record by record: it survives a killed host, and a power loss may cut its end.

    header   16 bytes   "greatseal-led-1" and a newline
    record  160 bytes   sequence u64 · intent index u64 · highest intent index so far u64 · length of the
                        digest u8 · 7 zero bytes · intent leaf hash 32 · digest 64 (zero-padded) ·
                        chain 32 = SHA-256(chain of the record before ‖ the 128 bytes before)
                        — all big-endian; the first record chains to the SHA-256 of the header

    for record in read_ledger(path): print(record.sequence, record.intent_index)

The host also refuses a replay: an intent signs once. The latest `WINDOW` records are remembered;
for an older index, which an honest front never sends, the file itself is searched.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from greatseald.ports.tokens import Operation

FILE_NAME: Final = "ledger"
HEADER: Final = b"greatseal-led-1\n"
RECORD_BYTES: Final = 160
WINDOW: Final = 1 << 16
MAX_DIGEST_BYTES: Final = 64
_BODY: Final = struct.Struct(">QQQB7x32s64s")
_LEAF_OFFSET: Final = 32


class LedgerBroken(Exception):
    """The file is not a whole chain; the message says at which record."""


class LedgerUnwritable(Exception):
    """The file cannot be written, so nothing may be signed."""


class LedgerRecord(NamedTuple):
    """One operation that the host let through to the token."""

    sequence: int
    intent_index: int
    highest_index: int
    leaf_hash: bytes
    digest: bytes
    chain: bytes


def _parse(body: bytes, chain: bytes) -> LedgerRecord:
    sequence, index, highest, length, leaf, digest = _BODY.unpack(body)
    return LedgerRecord(sequence, index, highest, leaf, digest[:length], chain)


def _start_of_chain() -> bytes:
    return hashlib.sha256(HEADER).digest()


def read_ledger(path: Path) -> Iterator[LedgerRecord]:
    """Yield every record of a ledger file, in order; a torn last record is left out.

    Raises:
        LedgerBroken: the header is missing, or a record does not continue the one before it.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        header = file.read(len(HEADER))
        if header != HEADER:
            message = f"{path} is not a token host's ledger"
            raise LedgerBroken(message)
        yield from _records(path, file.read, _start_of_chain(), 0)


def _records(path: Path, read: Callable[[int], bytes], chain: bytes, sequence: int) -> Iterator[LedgerRecord]:
    """Verify and yield records from where `read` stands, the first being number `sequence` + 1."""
    while len(data := read(RECORD_BYTES)) == RECORD_BYTES:
        body = data[: _BODY.size]
        chain = hashlib.sha256(chain + body).digest()
        sequence += 1
        record = _parse(body, chain)
        if chain != data[_BODY.size :] or record.sequence != sequence:
            message = f"{path} is broken at record {sequence}: it does not continue the record before it"
            raise LedgerBroken(message)
        yield record


class Ledger:
    """The ledger as its host writes it; one open writer per file, held by a lock."""

    def __init__(self, path: Path) -> None:
        """Open or create the file, verify its latest `WINDOW` records, cut off a torn last one.

        Raises:
            LedgerBroken: the file is no ledger or its tail is not a chain.
            LedgerUnwritable: it cannot be opened, or another host has it open.
        """
        self.path = path
        self.note = ""
        self._recent: set[tuple[int, bytes]] = set()
        self._order: deque[tuple[int, bytes]] = deque()
        self._forgotten_highest = -1
        self._highest = 0
        self._chain = _start_of_chain()
        self.sequence = 0
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            message = f"ledger {path} cannot be opened: {error.strerror}"
            raise LedgerUnwritable(message) from error
        try:
            self._load()
        except BaseException:
            os.close(self._file)
            raise

    def _load(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            message = f"ledger {self.path} is held by another token host"
            raise LedgerUnwritable(message) from error
        size = os.fstat(self._file).st_size
        if size < len(HEADER):
            if os.pread(self._file, len(HEADER), 0) != HEADER[:size]:
                message = f"{self.path} is not a token host's ledger: move it away"
                raise LedgerBroken(message)
            os.ftruncate(self._file, 0)
            self._write(HEADER, 0)
            size = len(HEADER)
        if os.pread(self._file, len(HEADER), 0) != HEADER:
            message = f"{self.path} is not a token host's ledger: move it away"
            raise LedgerBroken(message)
        count, torn = divmod(size - len(HEADER), RECORD_BYTES)
        if torn:
            os.ftruncate(self._file, size - torn)
            self.note = (
                f"the ledger's last record was torn ({torn} of {RECORD_BYTES} bytes) and was cut off: "
                f"the host was stopped while writing record {count + 1}, for which nothing was signed"
            )
        first = max(0, count - WINDOW)
        os.lseek(self._file, len(HEADER) + max(0, first - 1) * RECORD_BYTES, os.SEEK_SET)
        if first:
            before = os.read(self._file, RECORD_BYTES)
            self._chain = before[_BODY.size :]
            self._forgotten_highest = _parse(before[: _BODY.size], self._chain).highest_index
        tail = memoryview(os.pread(self._file, WINDOW * RECORD_BYTES, len(HEADER) + first * RECORD_BYTES))
        position = 0

        def read(length: int) -> bytes:
            nonlocal position
            position += length
            return bytes(tail[position - length : position])

        self.sequence = first
        for record in _records(self.path, read, self._chain, first):
            self._remember(record.intent_index, record.leaf_hash)
            self._chain, self._highest, self.sequence = record.chain, record.highest_index, record.sequence

    def _remember(self, index: int, leaf_hash: bytes) -> None:
        pair = (index, leaf_hash)
        self._recent.add(pair)
        self._order.append(pair)
        if len(self._order) > WINDOW:
            oldest = self._order.popleft()
            self._recent.discard(oldest)
            self._forgotten_highest = max(self._forgotten_highest, oldest[0])

    def has_signed(self, index: int, leaf_hash: bytes) -> bool:
        """Whether this intent was let through before."""
        if (index, leaf_hash) in self._recent:
            return True
        if index > self._forgotten_highest:
            return False
        end = len(HEADER) + self.sequence * RECORD_BYTES
        with mmap.mmap(self._file, end, access=mmap.ACCESS_READ) as data:
            at = data.find(leaf_hash)
            while at >= 0:
                record, offset = divmod(at - len(HEADER), RECORD_BYTES)
                start = len(HEADER) + record * RECORD_BYTES
                if offset == _LEAF_OFFSET and int.from_bytes(data[start + 8 : start + 16], "big") == index:
                    return True
                at = data.find(leaf_hash, at + 1)
        return False

    def append(self, operations: Sequence[Operation]) -> int:
        """Append one record for each operation with one write(); returns the first one's sequence.

        Raises:
            LedgerUnwritable: nothing was appended and nothing may be signed.
        """
        first = self.sequence + 1
        chain, highest, sequence = self._chain, self._highest, self.sequence
        out = bytearray()
        pack, sha256 = _BODY.pack, hashlib.sha256
        for index, leaf_hash, digest, _ in operations:
            sequence += 1
            highest = max(highest, index)
            body = pack(sequence, index, highest, len(digest), leaf_hash, digest)
            chain = sha256(chain + body).digest()
            out += body
            out += chain
        self._write(bytes(out), len(HEADER) + self.sequence * RECORD_BYTES)
        self._chain, self._highest, self.sequence = chain, highest, sequence
        for index, leaf_hash, *_ in operations:
            self._remember(index, leaf_hash)
        return first

    def _write(self, data: bytes, offset: int) -> None:
        """Write all of `data` at `offset` or leave the file as it was."""
        try:
            written = os.pwrite(self._file, data, offset)
        except OSError as error:
            message = f"ledger {self.path} cannot be written: {error.strerror}"
            raise LedgerUnwritable(message) from error
        if written != len(data):
            os.ftruncate(self._file, offset)
            message = f"ledger {self.path} cannot be written: the volume is full"
            raise LedgerUnwritable(message)

    def close(self) -> None:
        """Flush the file to the disk and let go of it."""
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)
