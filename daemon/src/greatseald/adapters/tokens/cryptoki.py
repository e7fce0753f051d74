"""The C interface of PKCS#11 that the hot path and logins use directly, through ctypes.

python-pkcs11 finds tokens and objects. What it cannot do is here: C_Initialize with OS locking and
a parameter string, the exact return value of every call (its exceptions lose vendor-defined ones),
a PIN as bytes, and one C_Sign per signature where it makes two (the first asks for the length).
ctypes lets go of the GIL during every call, so threads sign side by side.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_char_p, c_ubyte, c_ulong, c_void_p
from pathlib import Path
from typing import Any, Final

from greatseald.adapters.tokens.ckr import CKR, LoginVerdict, Verdict, ckr_name, login_verdict, verdict
from greatseald.adapters.tokens.device import DeviceError

CKF_OS_LOCKING_OK: Final = 0x2
CKF_RW_SESSION: Final = 0x2
CKF_SERIAL_SESSION: Final = 0x4
CKU_SO: Final = 0
CKU_USER: Final = 1
CKU_CONTEXT_SPECIFIC: Final = 2
CKM_RSA_PKCS: Final = 0x1
CKM_RSA_PKCS_PSS: Final = 0xD
CKM_ECDSA: Final = 0x1041
CKM_EDDSA: Final = 0x1057
_HASHES: Final = {"sha256": (0x250, 0x2, 32), "sha384": (0x260, 0x3, 48), "sha512": (0x270, 0x4, 64)}
"""CKM_SHAxxx, CKG_MGF1_SHAxxx, and the digest's bytes, which are the salt's too."""
CKA_PUBLIC_KEY_INFO: Final = 0x129
ATTRIBUTE_BUFFER_BYTES: Final = 4096
"""Several times the SubjectPublicKeyInfo of the largest accepted key."""
SIGNATURE_BUFFER_BYTES: Final = 1024
"""Twice what the largest accepted key (RSA-4096) gives."""

# CK_FUNCTION_LIST, PKCS#11 2.40 section 5: a version, then function pointers in this order.
_FUNCTIONS: Final = [
    "C_Initialize",
    "C_Finalize",
    "C_GetInfo",
    "C_GetFunctionList",
    "C_GetSlotList",
    "C_GetSlotInfo",
    "C_GetTokenInfo",
    "C_GetMechanismList",
    "C_GetMechanismInfo",
    "C_InitToken",
    "C_InitPIN",
    "C_SetPIN",
    "C_OpenSession",
    "C_CloseSession",
    "C_CloseAllSessions",
    "C_GetSessionInfo",
    "C_GetOperationState",
    "C_SetOperationState",
    "C_Login",
    "C_Logout",
    "C_CreateObject",
    "C_CopyObject",
    "C_DestroyObject",
    "C_GetObjectSize",
    "C_GetAttributeValue",
    "C_SetAttributeValue",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_FindObjectsFinal",
    "C_EncryptInit",
    "C_Encrypt",
    "C_EncryptUpdate",
    "C_EncryptFinal",
    "C_DecryptInit",
    "C_Decrypt",
    "C_DecryptUpdate",
    "C_DecryptFinal",
    "C_DigestInit",
    "C_Digest",
    "C_DigestUpdate",
    "C_DigestKey",
    "C_DigestFinal",
    "C_SignInit",
    "C_Sign",
    "C_SignUpdate",
    "C_SignFinal",
    "C_SignRecoverInit",
    "C_SignRecover",
    "C_VerifyInit",
    "C_Verify",
    "C_VerifyUpdate",
    "C_VerifyFinal",
    "C_VerifyRecoverInit",
    "C_VerifyRecover",
    "C_DigestEncryptUpdate",
    "C_DecryptDigestUpdate",
    "C_SignEncryptUpdate",
    "C_DecryptVerifyUpdate",
    "C_GenerateKey",
    "C_GenerateKeyPair",
    "C_WrapKey",
    "C_UnwrapKey",
    "C_DeriveKey",
    "C_SeedRandom",
    "C_GenerateRandom",
    "C_GetFunctionStatus",
    "C_CancelFunction",
    "C_WaitForSlotEvent",
]


_PIN_CALLS: Final = frozenset({"C_Login", "C_SetPIN"})
"""The calls that try a PIN."""
CString = bytes | ctypes.Array[ctypes.c_char]
"""What a function that reads characters is given: bytes, or where a secret lies."""


class CryptokiError(DeviceError):
    """A call returned something else than CKR_OK."""

    def __init__(self, function: str, value: int) -> None:
        self.answer = ckr_name(value)
        super().__init__(f"{function} answered {self.answer}")
        self.function = function
        self.value = self.ckr = value
        self.in_login = function in _PIN_CALLS
        # How always-authenticate keys answer C_Sign.
        self.wants_login = (value, function) == (CKR.USER_NOT_LOGGED_IN, "C_Sign")
        self.refuses_algorithm = function == "C_SignInit" and value in (
            CKR.MECHANISM_INVALID,
            CKR.MECHANISM_PARAM_INVALID,
        )

    @property
    def verdict(self) -> Verdict:
        """By the table of return values."""
        return verdict(self.value, self.function)

    @property
    def login(self) -> LoginVerdict:
        """By the table of return values."""
        return login_verdict(self.value)


class TokenInfo(Structure):
    """CK_TOKEN_INFO, PKCS#11 2.40 section 3.2."""

    _fields_ = (
        ("label", c_ubyte * 32),
        ("manufacturerID", c_ubyte * 32),
        ("model", c_ubyte * 16),
        ("serialNumber", c_ubyte * 16),
        ("flags", c_ulong),
        ("ulMaxSessionCount", c_ulong),
        ("ulSessionCount", c_ulong),
        ("ulMaxRwSessionCount", c_ulong),
        ("ulRwSessionCount", c_ulong),
        ("ulMaxPinLen", c_ulong),
        ("ulMinPinLen", c_ulong),
        ("ulTotalPublicMemory", c_ulong),
        ("ulFreePublicMemory", c_ulong),
        ("ulTotalPrivateMemory", c_ulong),
        ("ulFreePrivateMemory", c_ulong),
        ("hardwareVersion", c_ubyte * 2),
        ("firmwareVersion", c_ubyte * 2),
        ("utcTime", c_ubyte * 16),
    )


class _Version(Structure):
    _fields_ = (("major", c_ubyte), ("minor", c_ubyte))


class _FunctionList(Structure):
    _fields_ = (("version", _Version), *((name, c_void_p) for name in _FUNCTIONS))


class _InitializeArguments(Structure):
    # The last field is not the specification's: NSS reads a longer structure, in which the
    # parameter string stands where pReserved is here and another pointer follows.
    _fields_ = (
        ("CreateMutex", c_void_p),
        ("DestroyMutex", c_void_p),
        ("LockMutex", c_void_p),
        ("UnlockMutex", c_void_p),
        ("flags", c_ulong),
        ("pReserved", c_char_p),
        ("behind", c_void_p),
    )


class Mechanism(Structure):
    """CK_MECHANISM."""

    _fields_ = (("mechanism", c_ulong), ("pParameter", c_void_p), ("ulParameterLen", c_ulong))


class _Attribute(Structure):
    _fields_ = (("type", c_ulong), ("pValue", c_void_p), ("ulValueLen", c_ulong))


class PssParameters(Structure):
    """CK_RSA_PKCS_PSS_PARAMS."""

    _fields_ = (("hashAlg", c_ulong), ("mgf", c_ulong), ("sLen", c_ulong))


_PSS: Final = {name: PssParameters(*numbers) for name, numbers in _HASHES.items()}


def mechanism(kind: int, hash_name: str) -> Mechanism:
    """The CK_MECHANISM of a mechanism that this daemon signs with.

    RSA-PSS takes the digest of `hash_name`, MGF1 with the same hash and a salt as long as the digest. Of
    Ed25519 the parameter stays empty, which means PureEdDSA (PKCS#11 3.0, 2.3.14).
    """
    if kind == CKM_RSA_PKCS_PSS:
        parameters = _PSS[hash_name]
        return Mechanism(kind, ctypes.cast(ctypes.pointer(parameters), c_void_p), ctypes.sizeof(parameters))
    return Mechanism(kind, None, 0)


def _is_mapped(address: int, size: int) -> bool:
    """Whether this process may read `size` bytes at `address`, by the kernel's word."""
    with Path("/proc/self/maps").open() as maps:
        for line in maps:
            span, mode = line.split(maxsplit=2)[:2]
            start, end = (int(bound, 16) for bound in span.split("-"))
            if start <= address and address + size <= end:
                return mode.startswith("r")
    return False


class Cryptoki:
    """The functions of one loaded module."""

    def __init__(self, path: Path) -> None:
        """Load the module and get its function list.

        Raises:
            OSError: it cannot be loaded.
            CryptokiError: it gives no function list.
            AttributeError: it is no PKCS#11 module.
        """
        self._library = ctypes.CDLL(str(path))
        pointer = POINTER(_FunctionList)()
        get_list = self._library.C_GetFunctionList
        get_list.restype = c_ulong
        value = get_list(byref(pointer))
        if value != CKR.OK or not bool(pointer):
            raise CryptokiError("C_GetFunctionList", value)
        self._bind(pointer.contents)

    def adopt(self, address: int) -> None:
        """Use the function list at `address`, which another loader got from the same module, from now on.

        Most modules have one list. Some (p11-kit's client) make a new one, with a connection and an
        initialisation of its own, whenever they are asked: sessions and handles of one mean nothing in another.

        Raises:
            CryptokiError: no function list stands there.
        """
        functions = _FunctionList.from_address(address) if _is_mapped(address, ctypes.sizeof(_FunctionList)) else None
        if functions is None or functions.version.major not in (2, 3) or not _is_mapped(functions.C_Initialize or 0, 1):
            raise CryptokiError("C_GetFunctionList", CKR.GENERAL_ERROR)
        self._bind(functions)

    def _bind(self, functions: _FunctionList) -> None:
        def bind(name: str, *arguments: Any) -> Callable[..., int]:
            address = getattr(functions, name)
            if not address:
                return lambda *_: int(CKR.FUNCTION_NOT_SUPPORTED)
            bound: Callable[..., int] = ctypes.CFUNCTYPE(c_ulong, *arguments)(address)
            return bound

        self._initialize = bind("C_Initialize", c_void_p)
        self._finalize = bind("C_Finalize", c_void_p)
        self._open = bind("C_OpenSession", c_ulong, c_ulong, c_void_p, c_void_p, POINTER(c_ulong))
        self._login = bind("C_Login", c_ulong, c_ulong, c_char_p, c_ulong)
        self._init_token = bind("C_InitToken", c_ulong, c_char_p, c_ulong, c_char_p)
        self._init_pin = bind("C_InitPIN", c_ulong, c_char_p, c_ulong)
        self._set_pin = bind("C_SetPIN", c_ulong, c_char_p, c_ulong, c_char_p, c_ulong)
        self._token_info = bind("C_GetTokenInfo", c_ulong, POINTER(TokenInfo))
        self._logout = bind("C_Logout", c_ulong)
        self._close = bind("C_CloseSession", c_ulong)
        self._close_all = bind("C_CloseAllSessions", c_ulong)
        self._random = bind("C_GenerateRandom", c_ulong, c_char_p, c_ulong)
        self._get_attribute = bind("C_GetAttributeValue", c_ulong, c_ulong, POINTER(_Attribute), c_ulong)
        self.sign_init = bind("C_SignInit", c_ulong, POINTER(Mechanism), c_ulong)
        self.sign = bind("C_Sign", c_ulong, c_char_p, c_ulong, c_void_p, POINTER(c_ulong))

    def initialize(self, init_args: str, *, os_locking: bool = True) -> None:
        """C_Initialize, promising several threads and letting the module lock with the system's primitives.

        Raises:
            CryptokiError: it answered something else than CKR_OK.
        """
        arguments = _InitializeArguments(
            flags=CKF_OS_LOCKING_OK if os_locking else 0, pReserved=init_args.encode() if init_args else None
        )
        value = self._initialize(ctypes.cast(byref(arguments), c_void_p))
        if value not in (CKR.OK, CKR.CRYPTOKI_ALREADY_INITIALIZED):
            raise CryptokiError("C_Initialize", value)

    def token_info(self, slot: int) -> TokenInfo:
        """C_GetTokenInfo.

        Raises:
            CryptokiError: it answered something else than CKR_OK.
        """
        info = TokenInfo()
        value = self._token_info(slot, byref(info))
        if value != CKR.OK:
            raise CryptokiError("C_GetTokenInfo", value)
        return info

    def login(self, session: int, user: int, pin: CString | None) -> int:
        """C_Login; the return value. None asks for the token's own PIN pad."""
        return self._login(session, user, pin, len(pin) if pin is not None else 0)

    def touch(self, session: int) -> int:
        """Make the device do the least it can, so that an idle session stays or its loss is seen; the return value."""
        return self._random(session, ctypes.create_string_buffer(8), 8)

    def attribute(self, session: int, handle: int, kind: int) -> bytes:
        """The value of an attribute that python-pkcs11 has no name for; empty where the object has none."""
        buffer = ctypes.create_string_buffer(ATTRIBUTE_BUFFER_BYTES)
        asked = _Attribute(kind, ctypes.addressof(buffer), ATTRIBUTE_BUFFER_BYTES)
        value = self._get_attribute(session, handle, byref(asked), 1)
        # What is not there has the length of all ones (PKCS#11 2.40, C_GetAttributeValue).
        return buffer.raw[: asked.ulValueLen] if value == CKR.OK and asked.ulValueLen <= ATTRIBUTE_BUFFER_BYTES else b""

    def open_session(self, slot: int, *, writable: bool = False) -> int:
        """C_OpenSession; the session's handle.

        Raises:
            CryptokiError: it answered something else than CKR_OK.
        """
        handle = c_ulong()
        flags = CKF_SERIAL_SESSION | (CKF_RW_SESSION if writable else 0)
        value = self._open(slot, flags, None, None, byref(handle))
        if value != CKR.OK:
            raise CryptokiError("C_OpenSession", value)
        return handle.value

    def init_token(self, slot: int, so_pin: bytes, label: str) -> None:
        """C_InitToken with a label padded to 32 bytes. Destroys what is in the token.

        Raises:
            CryptokiError: it answered something else than CKR_OK.
        """
        padded = label.encode("utf-8").ljust(32)
        value = self._init_token(slot, so_pin, len(so_pin), padded)
        if value != CKR.OK:
            raise CryptokiError("C_InitToken", value)

    def set_pin(self, slot: int, current: CString, new: CString) -> None:
        """C_SetPIN of the user, in a session of its own that can write.

        Raises:
            CryptokiError: a call answered something else than CKR_OK.
        """
        session = self.open_session(slot, writable=True)
        try:
            value = self._set_pin(session, current, len(current), new, len(new))
        finally:
            self._close(session)
        if value != CKR.OK:
            raise CryptokiError("C_SetPIN", value)

    def set_user_pin(self, slot: int, so_pin: CString, pin: CString) -> None:
        """Log in as security officer, C_InitPIN, log out.

        Raises:
            CryptokiError: a call answered something else than CKR_OK.
        """
        session = self.open_session(slot, writable=True)
        steps: tuple[tuple[str, Callable[..., int], tuple[object, ...]], ...] = (
            ("C_Login", self._login, (session, CKU_SO, so_pin, len(so_pin))),
            ("C_InitPIN", self._init_pin, (session, pin, len(pin))),
            ("C_Logout", self._logout, (session,)),
            ("C_CloseSession", self._close, (session,)),
        )
        for function, call, arguments in steps:
            value = call(*arguments)
            if value != CKR.OK:
                self._close(session)
                raise CryptokiError(function, value)

    def close_sessions(self, slot: int) -> None:
        """C_CloseAllSessions: this process's with the token; it is logged out by that."""
        self._close_all(slot)

    def finalize(self, slot: int | None) -> None:
        """Close the token's sessions and finish with the module; what it answers changes nothing any more."""
        if slot is not None:
            self._close_all(slot)
        self._finalize(None)


class SignatureBuffer:
    """One thread's buffers for C_SignInit and C_Sign."""

    def __init__(self, cryptoki: Cryptoki) -> None:
        self._sign_init = cryptoki.sign_init
        self._sign = cryptoki.sign
        self._buffer = ctypes.create_string_buffer(SIGNATURE_BUFFER_BYTES)
        self._address = ctypes.addressof(self._buffer)
        self._length = c_ulong()
        self._length_reference = byref(self._length)

    def begin(self, session: int, kind: Mechanism, key: int) -> None:
        """C_SignInit.

        Raises:
            CryptokiError: it answered something else than CKR_OK; nothing was signed.
        """
        value = self._sign_init(session, kind, key)
        if value:
            raise CryptokiError("C_SignInit", value)

    def finish(self, session: int, data: bytes) -> bytes:
        """C_Sign with a buffer that is large enough, so it is called once.

        A module that finds it too small nevertheless wants to be asked for the length first. Asking, like
        that answer, leaves the operation as it is (PKCS#11 2.40, 5.2), so nothing is signed twice.

        Raises:
            CryptokiError: it answered something else than CKR_OK.
        """
        self._length.value = SIGNATURE_BUFFER_BYTES
        value = self._sign(session, data, len(data), self._address, self._length_reference)
        if value == CKR.BUFFER_TOO_SMALL:
            value = self._sign(session, data, len(data), None, self._length_reference)
            if not value and self._length.value <= SIGNATURE_BUFFER_BYTES:
                value = self._sign(session, data, len(data), self._address, self._length_reference)
            elif not value:
                value = CKR.BUFFER_TOO_SMALL
        if value:
            raise CryptokiError("C_Sign", value)
        return ctypes.string_at(self._address, self._length.value)
