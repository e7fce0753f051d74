"""The withdrawn tokens in a small file beside the anchor, so that a restart does not put them back to work.

    {"tokens":{"hsm1":{"state":"quarantined","why":"INC-42"}}}

A file that cannot be read, or is something else, halts the daemon's start: which tokens it held back is not known.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from greatseald.adapters.state_file import StateFile, StateFileUnusable
from greatseald.ports.tokens import TokenState
from greatseald.ports.withdrawals import Withdrawal, WithdrawalsUnusable

if TYPE_CHECKING:
    from pathlib import Path

_NOT_A_LIST: Final = (
    ". Look in the log for the `admin` entries `token`, and move the file away, or write it anew as "
    '{"tokens":{"NAME":{"state":"quarantined","why":"why"}}}, before you start again'
)


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    state: Literal["drained", "quarantined"]
    why: str


class _File(msgspec.Struct, forbid_unknown_fields=True):
    tokens: dict[str, _Row]


class FileWithdrawals:
    """`ports.withdrawals.Withdrawals` over one file of mode 0600."""

    def __init__(self, path: Path) -> None:
        self._file = StateFile(path, _File, "list of withdrawn tokens")
        self._guard = threading.Lock()

    def read(self) -> dict[str, Withdrawal]:
        with self._guard:
            return {name: Withdrawal(TokenState(row.state), row.why) for name, row in self._read().items()}

    def put(self, token: str, withdrawal: Withdrawal) -> None:
        row = _Row(withdrawal.state.value, withdrawal.why)  # type: ignore[arg-type]
        with self._guard:
            self._write(self._read() | {token: row})

    def remove(self, token: str) -> None:
        with self._guard:
            rows = self._read()
            if rows.pop(token, None) is not None:
                self._write(rows)

    def _read(self) -> dict[str, _Row]:
        try:
            found = self._file.read()
        except StateFileUnusable as error:
            raise WithdrawalsUnusable(f"{error}{_NOT_A_LIST}") from error
        return found.tokens if found is not None else {}

    def _write(self, rows: dict[str, _Row]) -> None:
        try:
            self._file.write(_File(rows))
        except StateFileUnusable as error:
            raise WithdrawalsUnusable(str(error)) from error
