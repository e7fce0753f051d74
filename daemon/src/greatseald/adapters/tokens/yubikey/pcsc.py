"""YubiKeys through PC/SC, by pyscard's C calls: which are there, and a connection to one that nobody shares.

ykman's device layer is not used: it kills other programs that hold a device, and shows an empty
list where pcscd does not run. A device is looked at shared and within a transaction, so that several
hosts may look for theirs at once, and is then held exclusively: another program on the machine could
otherwise sign with the PIN that we verified.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from smartcard import scard
from yubikit.core import TRANSPORT, ApplicationNotAvailableError, BadResponseError, NotSupportedError
from yubikit.core.smartcard import ApduError, SmartCardConnection
from yubikit.management import DeviceInfo, ManagementSession
from yubikit.piv import PivSession

from greatseald.adapters.tokens.device import TokenNotFound
from greatseald.adapters.tokens.yubikey.errors import describe_pcsc

_READER_WORD: Final = "yubikey"
_SHARING_VIOLATION: Final = 0x8010000B
_ABSENT: Final = frozenset({0x80100009, 0x8010000C, 0x8010002E, 0x80100066, 0x80100067, 0x80100068, 0x80100069})
_BUSY_SECONDS: Final = 5.0
"""How long a device may be held by others, who look for theirs or are being cleaned up by pcscd."""
_PAUSE_SECONDS: Final = 0.1
_MAX_PARTS: Final = 64
"""Parts (61xx) of one answer: the largest objects have 3 kB, in parts of 256 bytes."""


class PcscError(Exception):
    """A PC/SC call failed; `code` is its unsigned return value."""

    def __init__(self, code: int) -> None:
        super().__init__(describe_pcsc(code))
        self.code = code


class AnswerEndless(Exception):
    """A device has always more to say."""


def _check(code: int) -> None:
    if code != scard.SCARD_S_SUCCESS:
        raise PcscError(code & 0xFFFFFFFF)


class CardConnection(SmartCardConnection):
    """yubikit's connection, over one handle of PC/SC. Nothing of what passes is logged."""

    def __init__(self, context: Any, reader: str, *, exclusive: bool) -> None:
        """Connect.

        Raises:
            PcscError: no card, held by another program, or pcscd cannot be reached.
        """
        mode = scard.SCARD_SHARE_EXCLUSIVE if exclusive else scard.SCARD_SHARE_SHARED
        protocols = scard.SCARD_PROTOCOL_T0 | scard.SCARD_PROTOCOL_T1
        code, self._handle, self._protocol = scard.SCardConnect(context, reader, mode, protocols)
        _check(code)
        self._parts = 0

    @property
    def transport(self) -> TRANSPORT:
        """Always USB: a server's YubiKey is not tapped on a reader."""
        return TRANSPORT.USB

    def send_and_receive(self, apdu: bytes) -> tuple[bytes, int]:
        """Send a command and return the response's data and status word.

        Raises:
            PcscError: the device, its reader or pcscd is gone; the device may have done what it was told.
            AnswerEndless: it answers with more than `_MAX_PARTS` parts.
        """
        code, response = scard.SCardTransmit(self._handle, self._protocol, list(apdu))
        _check(code)
        if len(response) < 2:
            raise PcscError(0x8010002F)
        word = response[-2] << 8 | response[-1]
        self._parts = self._parts + 1 if word >> 8 == 0x61 else 0
        if self._parts > _MAX_PARTS:
            raise AnswerEndless
        return bytes(response[:-2]), word

    def check_present(self) -> None:
        """Ask pcscd, not the device, whether the handle still works.

        Raises:
            PcscError: it does not.
        """
        _check(scard.SCardStatus(self._handle)[0])

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep others who share the device off for a while."""
        _check(scard.SCardBeginTransaction(self._handle))
        try:
            yield
        finally:
            scard.SCardEndTransaction(self._handle, scard.SCARD_LEAVE_CARD)

    def close(self, *, reset: bool = True) -> None:
        """Let go of the device; `reset` it, so that no login is left in it."""
        scard.SCardDisconnect(self._handle, scard.SCARD_RESET_CARD if reset else scard.SCARD_LEAVE_CARD)


@dataclass(frozen=True, slots=True)
class Found:
    """A reader with a YubiKey. `serial` and `info` are empty where `problem` says why it cannot be looked at."""

    reader: str
    serial: str = ""
    info: DeviceInfo | None = None
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.serial or 'unknown serial'} in {self.reader}" + (f" ({self.problem})" if self.problem else "")


class Pcsc:
    """One context with pcscd."""

    def __init__(self) -> None:
        """Reach pcscd.

        Raises:
            PcscError: it does not run, or does not let us.
        """
        code, self._context = scard.SCardEstablishContext(scard.SCARD_SCOPE_USER)
        _check(code)

    def close(self) -> None:
        """Leave pcscd."""
        scard.SCardReleaseContext(self._context)

    def readers(self) -> list[str]:
        """The readers that are YubiKeys, by name.

        Raises:
            PcscError: pcscd does not answer.
        """
        code, names = scard.SCardListReaders(self._context, [])
        if code & 0xFFFFFFFF == 0x8010002E:
            return []
        _check(code)
        return [name for name in names if _READER_WORD in name.lower()]

    def look(self) -> Iterator[Found]:
        """Every YubiKey that is there, one after the other.

        Raises:
            PcscError: pcscd does not answer.
        """
        for reader in self.readers():
            try:
                info = self._info(reader)
            except PcscError as error:
                if error.code not in _ABSENT:
                    yield Found(reader, problem=str(error))
                continue
            except (
                ApduError,
                ApplicationNotAvailableError,
                BadResponseError,
                NotSupportedError,
                AnswerEndless,
                ValueError,
                KeyError,
            ) as error:
                yield Found(reader, problem=f"does not answer as a YubiKey does: {str(error) or type(error).__name__}")
                continue
            serial = str(info.serial) if info.serial else ""
            yield Found(reader, serial, info, "" if serial else "it tells no serial number")

    def _info(self, reader: str) -> DeviceInfo:
        connection = CardConnection(self._context, reader, exclusive=False)
        try:
            with connection.transaction():
                return ManagementSession(connection).read_device_info()
        finally:
            connection.close(reset=False)

    def open(self, serial: str) -> tuple[CardConnection, PivSession, DeviceInfo]:
        """Hold the YubiKey with this serial number, exclusively, with its PIV applet selected.

        Raises:
            TokenNotFound: it is not there, or another program holds it; the message says what is there.
            PcscError, ApduError, BadResponseError: it, or pcscd, does not answer.
        """
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            present = []
            for each in self.look():
                present.append(each)
                if each.serial == serial:
                    break
            mine = present[-1] if present and present[-1].serial == serial else None
            if mine is not None and mine.info is not None:
                try:
                    connection = CardConnection(self._context, mine.reader, exclusive=True)
                except PcscError as error:
                    if error.code != _SHARING_VIOLATION or time.monotonic() > deadline:
                        raise
                else:
                    return connection, PivSession(connection), mine.info
            elif time.monotonic() > deadline or not any(each.problem for each in present):
                listed = "; ".join(str(each) for each in present) or "none"
                message = f"no YubiKey with serial number {serial} is there; present: {listed}"
                raise TokenNotFound(message)
            time.sleep(_PAUSE_SECONDS)
