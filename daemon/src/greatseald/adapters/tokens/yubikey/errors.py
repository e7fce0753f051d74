"""What a YubiKey's, and PC/SC's, answers mean for a signature and for a PIN: one table each.

    SignFailed(0x6983).verdict     # Verdict(unknown=False, retry=False, locked=True, …)

A status word is the device's own answer: of those listed, the device says that it made no
signature. A PC/SC error in the middle of a signature leaves that open: the device may have signed
before it was pulled out. Sources: Yubico's PIV extensions, SP 800-73-4 part 2, PC/SC part 5.
"""

from __future__ import annotations

from typing import Final

from greatseald.adapters.tokens.ckr import LoginVerdict, Verdict
from greatseald.adapters.tokens.device import DeviceError

PIN_MISSING: Final = 0x6982
"""No PIN verified, or no touch in time: the device says the same to both."""
PIN_BLOCKED: Final = 0x6983

_REFUSED: Final = Verdict(unknown=False, retry=False)
_AMBIGUOUS: Final = Verdict(unknown=True, retry=True)
_LOGIN_LOST: Final = Verdict(unknown=False, retry=True, fresh_host=True)
_CUT: Final = Verdict(unknown=True, retry=True, fresh_host=True)
_NO_TOUCH: Final = Verdict(unknown=False, retry=True)

STATUS_WORDS: Final[dict[int, tuple[str, Verdict]]] = {
    0x6581: ("memory failure", _AMBIGUOUS),
    0x6700: ("wrong length", _REFUSED),
    PIN_MISSING: ("the PIN is not verified", _LOGIN_LOST),
    PIN_BLOCKED: ("the PIN is blocked", Verdict(unknown=False, retry=False, locked=True)),
    0x6984: ("data invalid", _REFUSED),
    0x6985: ("conditions of use not satisfied", _REFUSED),
    0x6986: ("command not allowed", _REFUSED),
    0x6A80: ("incorrect parameters", _REFUSED),
    0x6A81: ("function not supported", _REFUSED),
    0x6A82: ("object not found", _REFUSED),
    0x6A86: ("incorrect P1 or P2", _REFUSED),
    0x6A88: ("no such key", _REFUSED),
    0x6B00: ("wrong P1 or P2", _REFUSED),
    # Another applet is selected, or none: somebody else used the device, or it was reset.
    0x6D00: ("instruction not supported", _LOGIN_LOST),
    0x6E00: ("class not supported", _LOGIN_LOST),
    0x6F00: ("the device's own fault", _AMBIGUOUS),
}

PCSC_ERRORS: Final[dict[int, str]] = {
    0x80100002: "cancelled",
    0x80100003: "the handle is no longer valid",
    0x80100009: "its reader is gone",
    0x8010000A: "it did not answer in time",
    0x8010000B: "another program holds it",
    0x8010000C: "no card is in the reader",
    0x80100016: "the command was cut off",
    0x80100017: "its reader cannot be reached",
    0x8010001D: "pcscd does not run: start pcscd.service",
    0x8010001E: "pcscd has stopped",
    0x8010002E: "no reader is there",
    0x8010002F: "communication with the device failed",
    0x80100066: "it does not answer",
    0x80100067: "it has no power",
    0x80100068: "it was reset by another program",
    0x80100069: "it was pulled out",
    0x8010006A: "access is denied: the user of the token host may not use pcscd (polkit)",
}


class YubiKeyError(DeviceError):
    """Something a YubiKey, or the way to it, answered before a signature was asked for."""

    _LOGIN: LoginVerdict = LoginVerdict.AMBIGUOUS

    def __init__(self, what: str, answer: str, row: Verdict) -> None:
        super().__init__(f"{what}: {answer}")
        self.answer = answer
        self._row = row

    @property
    def verdict(self) -> Verdict:
        """What it means for the signature."""
        return self._row

    @property
    def login(self) -> LoginVerdict:
        """What it says of the PIN, if it was a login that failed."""
        return self._LOGIN


class PinRefused(YubiKeyError):
    """The device tried the PIN and refused it."""

    _LOGIN = LoginVerdict.REFUSED
    in_login = True

    def __init__(self, answer: str, command: str = "VERIFY") -> None:
        super().__init__(command, answer, Verdict(unknown=False, retry=False, locked=True))


class PinNotTried(YubiKeyError):
    """The PIN cannot have reached the device."""

    _LOGIN = LoginVerdict.NOT_TRIED
    in_login = True


class PinUnanswered(YubiKeyError):
    """The device did not say whether it tried the PIN."""

    in_login = True


def describe_pcsc(code: int) -> str:
    """A PC/SC error in words, with its number."""
    return f"{PCSC_ERRORS.get(code, 'PC/SC error')} (0x{code:08X})"


def describe_word(word: int) -> str:
    """A status word in words, with its number."""
    return f"{STATUS_WORDS.get(word, ('unexpected', _AMBIGUOUS))[0]} (SW {word:04X})"


def pcsc_failed(what: str, code: int, *, signing: bool) -> YubiKeyError:
    """The error for a PC/SC code: nothing works any more in this process."""
    return YubiKeyError(what, describe_pcsc(code), _CUT if signing else _LOGIN_LOST)


def word_failed(what: str, word: int, *, signing: bool) -> YubiKeyError:
    """The error for a status word; before a signature was asked for it is never unknown."""
    row = STATUS_WORDS.get(word, ("", _AMBIGUOUS))[1]
    error = YubiKeyError(what, describe_word(word), row if signing else row._replace(unknown=False))
    error.wants_login = signing and word == PIN_MISSING
    return error


def no_touch(seconds: float) -> YubiKeyError:
    """Nobody touched the device: it made no signature, and is asked again by the next request."""
    return YubiKeyError("signing", f"nobody touched the YubiKey within {seconds:.0f} s", _NO_TOUCH)


def endless() -> YubiKeyError:
    """The device went on and on with its answer."""
    return YubiKeyError("signing", "its answer does not end", _CUT)
