"""PKCS#11 return values and what each of them means for a signature: one table.

    verdict(CKR.DEVICE_REMOVED, "C_Sign")      # Verdict(unknown=True, retry=True, …)

The rule for whoever adds a row: an error of C_Sign is `unknown` unless the specification excludes
that a signature was made; an error of any call before C_Sign never is. Source: PKCS#11 3.1
section 5.1, and what real modules answer (design notes on tokens).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple


class CKR(IntEnum):
    """Return values by the names of the specification, without their prefix."""

    OK = 0x000
    CANCEL = 0x001
    HOST_MEMORY = 0x002
    SLOT_ID_INVALID = 0x003
    GENERAL_ERROR = 0x005
    FUNCTION_FAILED = 0x006
    ARGUMENTS_BAD = 0x007
    NO_EVENT = 0x008
    NEED_TO_CREATE_THREADS = 0x009
    CANT_LOCK = 0x00A
    ATTRIBUTE_READ_ONLY = 0x010
    ATTRIBUTE_SENSITIVE = 0x011
    ATTRIBUTE_TYPE_INVALID = 0x012
    ATTRIBUTE_VALUE_INVALID = 0x013
    ACTION_PROHIBITED = 0x01B
    DATA_INVALID = 0x020
    DATA_LEN_RANGE = 0x021
    DEVICE_ERROR = 0x030
    DEVICE_MEMORY = 0x031
    DEVICE_REMOVED = 0x032
    ENCRYPTED_DATA_INVALID = 0x040
    ENCRYPTED_DATA_LEN_RANGE = 0x041
    AEAD_DECRYPT_FAILED = 0x042
    FUNCTION_CANCELED = 0x050
    FUNCTION_NOT_PARALLEL = 0x051
    FUNCTION_NOT_SUPPORTED = 0x054
    KEY_HANDLE_INVALID = 0x060
    KEY_SIZE_RANGE = 0x062
    KEY_TYPE_INCONSISTENT = 0x063
    KEY_NOT_NEEDED = 0x064
    KEY_CHANGED = 0x065
    KEY_NEEDED = 0x066
    KEY_FUNCTION_NOT_PERMITTED = 0x068
    KEY_NOT_WRAPPABLE = 0x069
    KEY_UNEXTRACTABLE = 0x06A
    MECHANISM_INVALID = 0x070
    MECHANISM_PARAM_INVALID = 0x071
    OBJECT_HANDLE_INVALID = 0x082
    OPERATION_ACTIVE = 0x090
    OPERATION_NOT_INITIALIZED = 0x091
    PIN_INCORRECT = 0x0A0
    PIN_INVALID = 0x0A1
    PIN_LEN_RANGE = 0x0A2
    PIN_EXPIRED = 0x0A3
    PIN_LOCKED = 0x0A4
    SESSION_CLOSED = 0x0B0
    SESSION_COUNT = 0x0B1
    SESSION_HANDLE_INVALID = 0x0B3
    SESSION_PARALLEL_NOT_SUPPORTED = 0x0B4
    SESSION_READ_ONLY = 0x0B5
    SESSION_EXISTS = 0x0B6
    SESSION_READ_ONLY_EXISTS = 0x0B7
    SESSION_READ_WRITE_SO_EXISTS = 0x0B8
    SIGNATURE_INVALID = 0x0C0
    SIGNATURE_LEN_RANGE = 0x0C1
    TEMPLATE_INCOMPLETE = 0x0D0
    TEMPLATE_INCONSISTENT = 0x0D1
    TOKEN_NOT_PRESENT = 0x0E0
    TOKEN_NOT_RECOGNIZED = 0x0E1
    TOKEN_WRITE_PROTECTED = 0x0E2
    UNWRAPPING_KEY_HANDLE_INVALID = 0x0F0
    UNWRAPPING_KEY_SIZE_RANGE = 0x0F1
    UNWRAPPING_KEY_TYPE_INCONSISTENT = 0x0F2
    USER_ALREADY_LOGGED_IN = 0x100
    USER_NOT_LOGGED_IN = 0x101
    USER_PIN_NOT_INITIALIZED = 0x102
    USER_TYPE_INVALID = 0x103
    USER_ANOTHER_ALREADY_LOGGED_IN = 0x104
    USER_TOO_MANY_TYPES = 0x105
    WRAPPED_KEY_INVALID = 0x110
    WRAPPED_KEY_LEN_RANGE = 0x112
    WRAPPING_KEY_HANDLE_INVALID = 0x113
    WRAPPING_KEY_SIZE_RANGE = 0x114
    WRAPPING_KEY_TYPE_INCONSISTENT = 0x115
    RANDOM_SEED_NOT_SUPPORTED = 0x120
    RANDOM_NO_RNG = 0x121
    DOMAIN_PARAMS_INVALID = 0x130
    CURVE_NOT_SUPPORTED = 0x140
    BUFFER_TOO_SMALL = 0x150
    SAVED_STATE_INVALID = 0x160
    INFORMATION_SENSITIVE = 0x170
    STATE_UNSAVEABLE = 0x180
    CRYPTOKI_NOT_INITIALIZED = 0x190
    CRYPTOKI_ALREADY_INITIALIZED = 0x191
    MUTEX_BAD = 0x1A0
    MUTEX_NOT_LOCKED = 0x1A1
    NEW_PIN_MODE = 0x1B0
    NEXT_OTP = 0x1B1
    EXCEEDED_MAX_ITERATIONS = 0x1B5
    FIPS_SELF_TEST_FAILED = 0x1B6
    LIBRARY_LOAD_FAILED = 0x1B7
    PIN_TOO_WEAK = 0x1B8
    PUBLIC_KEY_INVALID = 0x1B9
    FUNCTION_REJECTED = 0x200
    TOKEN_RESOURCE_EXCEEDED = 0x201
    OPERATION_CANCEL_FAILED = 0x202
    KEY_EXHAUSTED = 0x203


def ckr_name(value: int) -> str:
    """`CKR_DEVICE_ERROR`, or the number for one that the specification does not know."""
    try:
        return f"CKR_{CKR(value).name}"
    except ValueError:
        kind = "vendor-defined " if value & 0x80000000 else ""
        return f"{kind}CKR 0x{value:08x}"


NO_SESSION_LEFT: Final = frozenset({CKR.SESSION_COUNT, CKR.DEVICE_MEMORY})
"""What C_OpenSession answers where the token works with the sessions that it has, and opens no more."""


class Verdict(NamedTuple):
    """What an error of C_Sign means.

    `unknown`: the token may have signed. `retry`: the same request may succeed later. `locked`: an
    operator is needed. `again`: the token cannot have signed and a new session may cure it, so the
    host asks once more by itself. `fresh_host`: nothing in this process will work any more.
    """

    unknown: bool
    retry: bool
    locked: bool = False
    again: bool = False
    fresh_host: bool = False


_SESSION_LOST: Final = Verdict(unknown=False, retry=True, again=True)
_REFUSED: Final = Verdict(unknown=False, retry=False)
_PIN: Final = Verdict(unknown=False, retry=False, locked=True)
_DEVICE: Final = Verdict(unknown=True, retry=True, fresh_host=True)
_AMBIGUOUS: Final = Verdict(unknown=True, retry=True)
_DEAD: Final = Verdict(unknown=False, retry=True, fresh_host=True)

VERDICTS: Final[dict[CKR, Verdict]] = {
    # The session or the object's handle is gone: whatever was asked for was not begun.
    CKR.SESSION_HANDLE_INVALID: _SESSION_LOST,
    CKR.SESSION_CLOSED: _SESSION_LOST,
    CKR.OBJECT_HANDLE_INVALID: _SESSION_LOST,
    CKR.KEY_HANDLE_INVALID: _SESSION_LOST,
    CKR.OPERATION_NOT_INITIALIZED: _SESSION_LOST,
    # Login state is the process's, not the session's; also how always-authenticate keys answer C_Sign.
    CKR.USER_NOT_LOGGED_IN: _DEAD,
    CKR.CRYPTOKI_NOT_INITIALIZED: _DEAD,
    # The token refused the request itself.
    CKR.ARGUMENTS_BAD: _REFUSED,
    CKR.DATA_INVALID: _REFUSED,
    CKR.DATA_LEN_RANGE: _REFUSED,
    CKR.MECHANISM_INVALID: _REFUSED,
    CKR.MECHANISM_PARAM_INVALID: _REFUSED,
    CKR.KEY_TYPE_INCONSISTENT: _REFUSED,
    CKR.KEY_SIZE_RANGE: _REFUSED,
    CKR.KEY_FUNCTION_NOT_PERMITTED: _REFUSED,
    CKR.FUNCTION_NOT_SUPPORTED: _REFUSED,
    CKR.ACTION_PROHIBITED: _REFUSED,
    CKR.BUFFER_TOO_SMALL: _REFUSED,
    CKR.CURVE_NOT_SUPPORTED: _REFUSED,
    CKR.DOMAIN_PARAMS_INVALID: _REFUSED,
    CKR.KEY_EXHAUSTED: _REFUSED,
    # The holder of the token said no on its own keys; it was asked and declined before signing.
    CKR.FUNCTION_REJECTED: Verdict(unknown=False, retry=True),
    CKR.PIN_INCORRECT: _PIN,
    CKR.PIN_INVALID: _PIN,
    CKR.PIN_LEN_RANGE: _PIN,
    CKR.PIN_EXPIRED: _PIN,
    CKR.PIN_LOCKED: _PIN,
    CKR.USER_PIN_NOT_INITIALIZED: _PIN,
    # Removed or cut off, perhaps after it had signed.
    CKR.DEVICE_REMOVED: _DEVICE,
    CKR.TOKEN_NOT_PRESENT: _DEVICE,
    CKR.TOKEN_NOT_RECOGNIZED: _DEVICE,
    CKR.DEVICE_ERROR: _DEVICE,
    CKR.GENERAL_ERROR: _DEVICE,
    # Out of order until it is started again.
    CKR.FIPS_SELF_TEST_FAILED: _DEVICE,
    CKR.LIBRARY_LOAD_FAILED: _DEVICE,
    # Throttled, short of memory, or not telling.
    CKR.FUNCTION_FAILED: _AMBIGUOUS,
    CKR.FUNCTION_CANCELED: _AMBIGUOUS,
    CKR.CANCEL: _AMBIGUOUS,
    CKR.OPERATION_ACTIVE: _AMBIGUOUS,
    CKR.DEVICE_MEMORY: _AMBIGUOUS,
    CKR.HOST_MEMORY: _AMBIGUOUS,
    CKR.TOKEN_RESOURCE_EXCEEDED: _AMBIGUOUS,
    CKR.OPERATION_CANCEL_FAILED: _AMBIGUOUS,
}


def verdict(value: int, function: str) -> Verdict:
    """What return value `value` of `function` means for the signature that was being made.

    Values without a row, vendor-defined ones among them, are ambiguous. What fails before C_Sign
    was certainly not signed, so there the answer is never unknown.
    """
    try:
        row = VERDICTS.get(CKR(value), _AMBIGUOUS)
    except ValueError:
        row = _AMBIGUOUS
    return row if function == "C_Sign" else row._replace(unknown=False)


class LoginVerdict(IntEnum):
    """What an error of C_Login says of the PIN."""

    REFUSED = 1
    """The token tried the PIN and refused it, or cannot accept any."""
    NOT_TRIED = 2
    """The PIN cannot have reached the token."""
    AMBIGUOUS = 3
    """It may have been tried."""


_PIN_REFUSED: Final = frozenset({
    CKR.PIN_INCORRECT, CKR.PIN_INVALID, CKR.PIN_LEN_RANGE, CKR.PIN_EXPIRED, CKR.PIN_LOCKED,
    CKR.PIN_TOO_WEAK, CKR.USER_PIN_NOT_INITIALIZED,
})  # fmt: skip
_PIN_NOT_TRIED: Final = frozenset({
    CKR.HOST_MEMORY, CKR.ARGUMENTS_BAD, CKR.DEVICE_REMOVED, CKR.TOKEN_NOT_PRESENT, CKR.TOKEN_NOT_RECOGNIZED,
    CKR.SESSION_CLOSED, CKR.SESSION_HANDLE_INVALID, CKR.CRYPTOKI_NOT_INITIALIZED, CKR.FUNCTION_NOT_SUPPORTED,
    CKR.OPERATION_NOT_INITIALIZED, CKR.USER_TYPE_INVALID, CKR.USER_ANOTHER_ALREADY_LOGGED_IN,
    CKR.USER_TOO_MANY_TYPES, CKR.SESSION_READ_ONLY_EXISTS,
})  # fmt: skip


def login_verdict(value: int) -> LoginVerdict:
    """What return value `value` of C_Login says of the PIN; an unknown value may have tried it."""
    if value in _PIN_REFUSED:
        return LoginVerdict.REFUSED
    return LoginVerdict.NOT_TRIED if value in _PIN_NOT_TRIED else LoginVerdict.AMBIGUOUS


_NEW_PIN_REFUSED: Final = frozenset({CKR.PIN_INVALID, CKR.PIN_LEN_RANGE, CKR.PIN_TOO_WEAK})
"""What C_SetPIN and C_InitPIN say of a new PIN: its characters, its length, its quality (PKCS#11 3.1, 5.1.6)."""


def is_new_pin_refused(value: int) -> bool:
    """Whether return value `value` of a call that sets a PIN says that the new one does not do."""
    return value in _NEW_PIN_REFUSED
