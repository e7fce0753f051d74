"""A PKCS#11 module, its token, its sessions and signatures by its keys.

Runs in a token host, never in the front; python-pkcs11 is imported here, in `objects.py`, `public_half.py`
and `generate.py` alone. What differs between vendors is in `vendors.py`, what return values mean in
`ckr.py`, the calls that python-pkcs11 cannot make in `cryptoki.py`.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pkcs11
from pkcs11 import Attribute, TokenFlag
from pkcs11._pkcs11 import lib

from greatseal.algorithms import Algorithm
from greatseal.signatures import Verifier, load_public_key
from greatseal.verification import SignatureInvalid
from greatseald.adapters.tokens.ckr import CKR, NO_SESSION_LEFT
from greatseald.adapters.tokens.cryptoki import (
    CKM_ECDSA,
    CKM_EDDSA,
    CKM_RSA_PKCS,
    CKM_RSA_PKCS_PSS,
    CKU_CONTEXT_SPECIFIC,
    CKU_USER,
    Cryptoki,
    CryptokiError,
    SignatureBuffer,
    mechanism,
)
from greatseald.adapters.tokens.device import (
    DeviceUnusable,
    KeyDescription,
    KeyUnusable,
    SignatureMalformed,
    TokenDescription,
    TokenNotFound,
)
from greatseald.adapters.tokens.latch import RetryCounter
from greatseald.adapters.tokens.objects import MAX_LISTED, attribute, find_private_key
from greatseald.adapters.tokens.public_half import find_public_half
from greatseald.adapters.tokens.uris import PkcsUri
from greatseald.adapters.tokens.vendors import (
    VendorProfile,
    ecdsa_candidates,
    profile_of,
)

# DigestInfo of RFC 8017 section 9.2, before the digest.
_DIGEST_INFO: Final[dict[Algorithm, bytes]] = {
    Algorithm.RSA_PKCS1_SHA256: bytes.fromhex("3031300d060960864801650304020105000420"),
    Algorithm.RSA_PKCS1_SHA384: bytes.fromhex("3041300d060960864801650304020205000430"),
    Algorithm.RSA_PKCS1_SHA512: bytes.fromhex("3051300d060960864801650304020305000440"),
}
_MECHANISMS: Final[dict[Algorithm, int]] = {
    Algorithm.ECDSA_P256_SHA256: CKM_ECDSA,
    Algorithm.ECDSA_P384_SHA384: CKM_ECDSA,
    Algorithm.ECDSA_P521_SHA512: CKM_ECDSA,
    Algorithm.RSA_PKCS1_SHA256: CKM_RSA_PKCS,
    Algorithm.RSA_PKCS1_SHA384: CKM_RSA_PKCS,
    Algorithm.RSA_PKCS1_SHA512: CKM_RSA_PKCS,
    Algorithm.RSA_PSS_SHA256: CKM_RSA_PKCS_PSS,
    Algorithm.RSA_PSS_SHA384: CKM_RSA_PKCS_PSS,
    Algorithm.RSA_PSS_SHA512: CKM_RSA_PKCS_PSS,
    Algorithm.ED25519: CKM_EDDSA,
}
_NAME_PARTS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_RENAMED: Final = {
    "ANOTHER_USER_ALREADY_LOGGED_IN": "USER_ANOTHER_ALREADY_LOGGED_IN",
    "FUNCTION_CANCELLED": "FUNCTION_CANCELED",
    "TOKEN_NOT_RECOGNISED": "TOKEN_NOT_RECOGNIZED",
}


class ModuleUnusable(DeviceUnusable):
    """The module cannot be loaded or initialised; the message names its path."""


def return_value(error: pkcs11.PKCS11Error) -> int:
    """The CKR behind an exception of python-pkcs11; what it cannot map counts as FUNCTION_FAILED."""
    name = _NAME_PARTS.sub("_", type(error).__name__).upper()
    return int(CKR.__members__.get(_RENAMED.get(name, name), CKR.FUNCTION_FAILED))


@dataclass(frozen=True, slots=True)
class SlotToken(TokenDescription):
    """The token in a slot."""

    slot: int

    def __str__(self) -> str:
        return (
            f"token={self.label!r} serial={self.serial!r} manufacturer={self.manufacturer!r} model={self.model!r} "
            f"slot-id={self.slot}"
        )

    def fits(self, uri: PkcsUri) -> bool:
        """Whether every attribute that the URI names is this token's."""
        pairs = (
            (uri.token, self.label),
            (uri.serial, self.serial),
            (uri.manufacturer, self.manufacturer),
            (uri.model, self.model),
            (uri.slot_id, self.slot),
        )
        return all(wanted is None or wanted == found for wanted, found in pairs)


@dataclass(slots=True)
class Session:
    """One session of one thread: its handle, its buffers, the handles of keys looked up in it."""

    handle: int
    opened: Any
    buffer: SignatureBuffer
    keys: dict[str, int] = field(default_factory=dict)


def _function_list(library: lib) -> int:
    """Where python-pkcs11 keeps the module's function list: the first C field of its object (0.10, HasFuncList)."""
    return ctypes.c_size_t.from_address(id(library) + object.__basicsize__).value


def _load(path: Path, cryptoki: Cryptoki, init_args: str) -> tuple[lib, bool]:
    """Load the module for python-pkcs11, initialised our way; whether it can be used by several threads."""
    parallel = True

    class Library(lib):
        """`lib` calls C_Initialize(NULL), which promises the module a single thread."""

        def initialize(self) -> None:
            nonlocal parallel
            cryptoki.adopt(_function_list(self))
            try:
                cryptoki.initialize(init_args)
            except CryptokiError as error:
                if error.value not in (CKR.CANT_LOCK, CKR.NEED_TO_CREATE_THREADS):
                    raise
                cryptoki.initialize(init_args, os_locking=False)
                parallel = False

    return Library(str(path)), parallel


class Module:
    """One loaded, initialised PKCS#11 module and one token in it."""

    def __init__(self, path: Path, init_args: str) -> None:
        """Load and initialise.

        Raises:
            ModuleUnusable: missing, no PKCS#11 module, or it refused to initialise.
        """
        if not path.is_file():
            message = f"PKCS#11 module {path} does not exist: install it, or correct `module`"
            raise ModuleUnusable(message)
        try:
            self.cryptoki = Cryptoki(path)
            self._library, self.parallel = _load(path, self.cryptoki, init_args)
        except CryptokiError as error:
            hint = ""
            if error.value == CKR.ARGUMENTS_BAD:
                hint = ": it may want another parameter string (`init_args`)"
            message = f"PKCS#11 module {path}: {error}{hint}"
            raise ModuleUnusable(message) from error
        except AttributeError as error:
            message = f"{path} is no PKCS#11 module: it has no C_GetFunctionList"
            raise ModuleUnusable(message) from error
        except (OSError, pkcs11.PKCS11Error) as error:
            message = f"PKCS#11 module {path} cannot be loaded: {error}"
            raise ModuleUnusable(message) from error
        self.path = path
        self._token: Any = None
        self.description: SlotToken | None = None
        self._sessions_lock = threading.Lock()
        self._open_sessions = 0
        self._spare: list[Session] = []

    def _tokens(self) -> Iterator[tuple[Any, SlotToken]]:
        for slot in self._library.get_slots(token_present=True):
            try:
                token: Any = slot.get_token()
            except (pkcs11.TokenNotPresent, pkcs11.TokenNotRecognised):
                continue
            major, minor = token.firmware_version
            yield (
                token,
                SlotToken(
                    label=token.label.strip(" \0"),
                    serial=token.serial.decode("utf-8", "replace").strip(" \0"),
                    manufacturer=token.manufacturer_id.strip(" \0"),
                    model=token.model.strip(" \0"),
                    firmware=f"{major}.{minor}",
                    slot=slot.slot_id,
                ),
            )

    def choose_token(self, uri: PkcsUri) -> SlotToken:
        """Find the one token that the URI means.

        Raises:
            TokenNotFound: none or several.
            CryptokiError: the module cannot list its tokens.
        """
        try:
            present = list(self._tokens())
        except pkcs11.PKCS11Error as error:
            raise CryptokiError("C_GetSlotList", return_value(error)) from error
        fitting = [pair for pair in present if pair[1].fits(uri)]
        if len(fitting) != 1:
            listed = "; ".join(str(description) for _, description in (fitting or present)[:MAX_LISTED])
            message = (
                f"{len(fitting)} tokens of {self.path} fit {uri}: {listed}: name its serial"
                if fitting
                else f"no token of {self.path} fits {uri}; present: {listed or 'none'}"
            )
            raise TokenNotFound(message)
        self._token, self.description = fitting[0]
        return self.description

    @property
    def retry_counter(self) -> RetryCounter:
        """What the token's flags say of its PIN tries, read anew.

        Raises:
            CryptokiError: the token does not answer.
        """
        try:
            flags = self._token.slot.get_token().flags
        except pkcs11.PKCS11Error as error:
            raise CryptokiError("C_GetTokenInfo", return_value(error)) from error
        if flags & TokenFlag.USER_PIN_LOCKED:
            return RetryCounter.LOCKED
        if flags & TokenFlag.USER_PIN_FINAL_TRY:
            return RetryCounter.FINAL_TRY
        return RetryCounter.LOW if flags & TokenFlag.USER_PIN_COUNT_LOW else RetryCounter.FULL

    @property
    def wants_login(self) -> bool:
        """Whether private keys are seen after a login only."""
        return bool(self._token.flags & TokenFlag.LOGIN_REQUIRED)

    @property
    def has_pin_pad(self) -> bool:
        """Whether the PIN is entered at the token itself."""
        return bool(self._token.flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH)

    def open_session(self) -> Session:
        """Open a read-only session; it shares the login of the process.

        Raises:
            CryptokiError: the token opens none.
        """
        with self._sessions_lock:
            return self._spare.pop() if self._spare else self._open()

    def _open(self) -> Session:
        try:
            opened = self._token.open()
        except pkcs11.PKCS11Error as error:
            raise CryptokiError("C_OpenSession", return_value(error)) from error
        self._open_sessions += 1
        return Session(opened.handle, opened, SignatureBuffer(self.cryptoki))

    def close_session(self, session: Session) -> bool:
        """Give a session up; whether the process is still logged in.

        Closing a process's last session logs it out, so another one is opened before the last is
        closed. A token that opens no second one, or none at all any more, is logged out by this.
        """
        with self._sessions_lock:
            still_logged_in = True
            if self._open_sessions == 1:
                try:
                    self._spare.append(self._open())
                except CryptokiError:
                    still_logged_in = False
            with suppress(pkcs11.PKCS11Error):
                session.opened.close()
            self._open_sessions -= 1
            return still_logged_in

    def open_writable(self) -> Any:
        """Open a read-write session for making objects."""
        return self._token.open(rw=True)

    def free_slot(self) -> int:
        """The number of the first slot whose token is not initialised.

        Raises:
            TokenNotFound: there is none.
        """
        for slot in self._library.get_slots(token_present=True):
            with suppress(pkcs11.TokenNotPresent, pkcs11.TokenNotRecognised):
                if not slot.get_token().flags & TokenFlag.TOKEN_INITIALIZED:
                    return int(slot.slot_id)
        message = f"{self.path} has no slot with a token that is not initialised: free one with the vendor's tool"
        raise TokenNotFound(message)

    @property
    def profile(self) -> VendorProfile:
        """How tokens of its vendor deviate."""
        return (
            profile_of(self.description.manufacturer, self.description.model) if self.description else VendorProfile()
        )

    @property
    def notes(self) -> list[str]:
        """Nothing: what a module cannot do is seen by its sessions."""
        return []

    def keep_alive(self, session: Session) -> None:
        """Ask for random bytes: what any token has, or says that it has not.

        Raises:
            CryptokiError: the token is gone, or the session.
        """
        value = self.cryptoki.touch(session.handle)
        if value not in (CKR.OK, CKR.RANDOM_NO_RNG, CKR.FUNCTION_NOT_SUPPORTED):
            # As grave as the same answer to C_Sign, though nothing was being signed.
            raise CryptokiError("C_Sign", value)

    def login(self, session: Session, pin: bytes | None) -> None:
        """C_Login as user.

        Raises:
            CryptokiError: it answered neither CKR_OK nor that the process is logged in already.
        """
        value = self.cryptoki.login(session.handle, CKU_USER, pin)
        if value not in (CKR.OK, CKR.USER_ALREADY_LOGGED_IN):
            raise CryptokiError("C_Login", value)

    def close(self) -> None:
        """Close every session and finish with the module."""
        self.cryptoki.finalize(self.description.slot if self.description else None)

    # -- keys -----------------------------------------------------------------------------------

    def _find(self, session: Session, uri: str) -> Any:
        try:
            return find_private_key(session.opened, uri, self.description)
        except pkcs11.PKCS11Error as error:
            raise CryptokiError("C_FindObjects", return_value(error)) from error

    def key_handle(self, session: Session, uri: str) -> int:
        """The handle of the private key in this session, looked up once for each session.

        Raises:
            KeyUnusable: not there, or ambiguous.
            CryptokiError: the search failed.
        """
        handle = session.keys.get(uri)
        if handle is None:
            handle = session.keys[uri] = self._find(session, uri).handle
        return handle

    def describe_key(self, session: Session, uri: str) -> KeyDescription:
        """Find a private key and its public half, and probe what it can do (without signing).

        Raises:
            KeyUnusable: not there, ambiguous, of a kind that is not supported, or without a public half.
            CryptokiError: the token does not answer.
        """
        key = self._find(session, uri)
        try:
            half = find_public_half(self.cryptoki, session.opened, uri, key)
            always = attribute(key, Attribute.ALWAYS_AUTHENTICATE)
        except pkcs11.PKCS11Error as error:
            raise CryptokiError("C_GetAttributeValue", return_value(error)) from error
        fitting = tuple(algorithm for algorithm in Algorithm if algorithm.family == half.family)
        description = KeyDescription(half.kind, half.spki, fitting, always, half.coordinate_bytes)
        description.algorithms = self._probe(session, uri, description)
        return description

    def _probe(self, session: Session, uri: str, description: KeyDescription) -> tuple[Algorithm, ...]:
        """Those algorithms that C_SignInit accepts; mechanism lists are only hints.

        Where the token has no session to spare for trying, those that it lists, and all of the key's kind
        if it lists none of them: then C_SignInit of the first signature tells.
        """
        offered: list[Algorithm] = []
        refusal: CryptokiError | None = None
        for algorithm in description.algorithms:
            try:
                refused = self._try(session, uri, algorithm)
            except CryptokiError as error:
                if error.function != "C_OpenSession" or error.value not in NO_SESSION_LEFT:
                    raise
                return tuple(self.advertised(description.algorithms)) or description.algorithms
            if refused is None:
                offered.append(algorithm)
            else:
                refusal = refused
        if refusal is not None and not offered:
            if refusal.verdict.retry:
                raise refusal
            message = f"the private key of {uri} does not sign with any supported algorithm: {refusal}"
            raise KeyUnusable(message)
        return tuple(offered)

    def _try(self, session: Session, uri: str, algorithm: Algorithm) -> CryptokiError | None:
        """What C_SignInit answers, None where it accepts.

        Modules refuse a mechanism with whatever they have, a general error among it. What may be another
        failure is tried twice, and counts as a refusal only of a token that still answers `session`.

        Raises:
            CryptokiError: the token is gone, its session lost, an operator needed, or no session to spare.
        """
        for attempt in (1, 2):
            refused = self._begin_only(uri, algorithm)
            if refused is None or not (refused.verdict.retry or refused.verdict.locked):
                return refused
            if refused.verdict.locked:
                raise refused
            if attempt == 2:
                self.keep_alive(session)
        return refused

    def _begin_only(self, uri: str, algorithm: Algorithm) -> CryptokiError | None:
        scratch = self.open_session()
        try:
            scratch.buffer.begin(scratch.handle, _PREPARED[algorithm], self.key_handle(scratch, uri))
        except CryptokiError as error:
            if error.function != "C_SignInit":
                raise
            return error
        finally:
            self.close_session(scratch)  # ends the operation that was begun
        return None

    def advertised(self, algorithms: Iterable[Algorithm] = Algorithm) -> list[Algorithm]:
        """Those algorithms whose mechanism the token lists: a hint, since lists leave out what works and name what does not.

        A module that has no list, as it says itself, lists nothing; what its keys can do is tried all the same.

        Raises:
            CryptokiError: the token is gone.
        """
        try:
            listed = {int(kind) for kind in self._token.slot.get_mechanisms()}
        except pkcs11.PKCS11Error as cause:
            error = CryptokiError("C_GetMechanismList", return_value(cause))
            if error.verdict.fresh_host:
                raise error from cause
            listed = set()
        return [algorithm for algorithm in algorithms if _MECHANISMS[algorithm] in listed]

    def begin(self, session: Session, uri: str, algorithm: Algorithm) -> None:
        """C_SignInit for one signature.

        Raises:
            KeyUnusable: the key is gone or ambiguous.
            CryptokiError: a call failed; nothing was signed.
        """
        session.buffer.begin(
            session.handle, _PREPARED[algorithm], session.keys.get(uri) or self.key_handle(session, uri)
        )

    def authenticate(self, session: Session, pin: bytes | None) -> None:
        """The context-specific login that an always-authenticate key wants after C_SignInit.

        Raises:
            CryptokiError: it answered something else than CKR_OK.
        """
        value = self.cryptoki.login(session.handle, CKU_CONTEXT_SPECIFIC, pin)
        if value != CKR.OK:
            raise CryptokiError("C_Login", value)

    def finish(self, session: Session, key: KeyDescription, algorithm: Algorithm, signed: bytes) -> bytes:
        """C_Sign of the digest, or of Ed25519 the message, for what `begin` began; DER for ECDSA.

        Raises:
            CryptokiError: it failed; only by its value is it known whether a signature was made.
            SignatureMalformed: it gave something else than a signature.
        """
        if not key.coordinate_bytes:
            return session.buffer.finish(session.handle, _DIGEST_INFO.get(algorithm, b"") + signed)
        signature = session.buffer.finish(session.handle, signed)
        candidates = ecdsa_candidates(signature, key.coordinate_bytes)
        if len(candidates) > 1:
            candidates = tuple(der for der in candidates if _verifies(key.spki, algorithm, signed, der))
        if not candidates:
            message = f"C_Sign gave {len(signature)} bytes, which are no ECDSA signature on {key.kind}"
            raise SignatureMalformed(message)
        return candidates[0]


_PREPARED: Final = {algorithm: mechanism(kind, algorithm.hash_name) for algorithm, kind in _MECHANISMS.items()}


def _verifies(spki: bytes, algorithm: Algorithm, digest: bytes, der: bytes) -> bool:
    """Whether this is the signature of the digest: which reading of one without leading zeroes is right."""
    try:
        Verifier(load_public_key(spki), algorithm).verify(digest, der)
    except SignatureInvalid:
        return False
    return True
