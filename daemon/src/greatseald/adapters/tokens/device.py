"""What a device must offer to be worked on by the token host: one narrow port for every kind of token.

    PKCS#11 modules    `pkcs11.Module`
    YubiKeys           `yubikey.device.YubiKey`

The host (`worker.py`, `engine.py`) keeps the ledger, the PIN latch, the watchdog and the order of
work; a device opens sessions, logs in when told to, describes keys and signs one thing at a time.
Everything it can fail with is a `DeviceError`, which says what the failure means for the signature
and for the PIN. All methods run in the host's process; several threads call them only where the
device is `parallel`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from greatseal.algorithms import Algorithm
from greatseald.adapters.tokens.ckr import LoginVerdict, Verdict
from greatseald.adapters.tokens.vendors import VendorProfile

if TYPE_CHECKING:
    from greatseald.adapters.tokens.latch import PinLatch, RetryCounter
    from greatseald.domain.tokens import TokenSettings

OnTouch = Callable[[str], None]
"""Told what for a device waits for a touch, and with an empty text that it no longer does."""


class DeviceUnusable(Exception):
    """What reaches the device cannot be used at all; the message says what to do."""


class TokenNotFound(Exception):
    """No token, or more than one, fits the reference; the message lists what there is."""


class KeyUnusable(Exception):
    """No private key, more than one, or one that cannot be used; the message lists what there is."""


class SignatureMalformed(Exception):
    """The token gave something that is no signature; it has to be taken as having signed."""


class DeviceError(Exception):
    """The device answered something else than success.

    `ckr` is the PKCS#11 return value, 0 where there is none; `answer` the failure in the device's own
    word. `verdict` is what it means for the signature that was being made, `login` what it says of a
    PIN; `in_login`: it was a login that failed; `wants_login`: the key wants a login of its own;
    `refuses_algorithm`: before anything was begun, the device said that it does not have the algorithm.
    """

    ckr: int = 0
    answer: str = ""
    in_login: bool = False
    wants_login: bool = False
    refuses_algorithm: bool = False

    @property
    def verdict(self) -> Verdict:
        """What it means for the signature. Abstract: each kind of device has its own table."""
        raise NotImplementedError

    @property
    def login(self) -> LoginVerdict:
        """What it says of the PIN, if it was a login that failed. Abstract, too."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class TokenDescription:
    """What a token says of itself, padding stripped."""

    label: str
    serial: str
    manufacturer: str
    model: str
    firmware: str


@dataclass(slots=True)
class KeyDescription:
    """A private key: what it is, and how it wants to be used.

    `always_authenticate` is None where the device does not tell; then it is learnt from its answer.
    `touch_seconds` is how long, beyond `operation_timeout`, a person may take to touch the device.
    `attestation` is the chain (DER, the key's first) by which the device says how it holds the key,
    and `custody` that in words; both empty where it says nothing.
    """

    kind: str
    spki: bytes
    algorithms: tuple[Algorithm, ...]
    always_authenticate: bool | None
    coordinate_bytes: int = 0
    touch_seconds: float = 0.0
    attestation: tuple[bytes, ...] = ()
    custody: str = ""


class Device(Protocol):
    """One token as its host works on it. A session is the device's own business: what `open_session` gave."""

    @property
    def parallel(self) -> bool:
        """Whether several sessions may be used at a time, each by one thread."""
        ...

    @property
    def profile(self) -> VendorProfile:
        """How it wants to be treated."""
        ...

    @property
    def notes(self) -> list[str]:
        """What an operator should know of it, in words."""
        ...

    def advertised(self) -> list[Algorithm]:
        """The algorithms that it says it has: a hint. Raises DeviceError."""
        ...

    @property
    def retry_counter(self) -> RetryCounter:
        """What it says of its PIN tries, read anew. Raises DeviceError."""
        ...

    @property
    def wants_login(self) -> bool:
        """Whether nothing can be done before a login."""
        ...

    @property
    def has_pin_pad(self) -> bool:
        """Whether the PIN is entered at the device itself."""
        ...

    def open_session(self) -> Any:
        """Open a session; `DeviceError` where there is none."""
        ...

    def close_session(self, session: Any) -> bool:
        """Give a session up; whether the process is still logged in."""
        ...

    def keep_alive(self, session: Any) -> None:
        """Do the least that shows that the device is there. Raises DeviceError."""
        ...

    def login(self, session: Any, pin: bytes | None) -> None:
        """Try the PIN, once. Raises DeviceError."""
        ...

    def authenticate(self, session: Any, pin: bytes | None) -> None:
        """Try the PIN for the one signature that was begun. Raises DeviceError."""
        ...

    def describe_key(self, session: Any, uri: str) -> KeyDescription:
        """Find a key, without signing. Raises KeyUnusable, DeviceError."""
        ...

    def begin(self, session: Any, uri: str, algorithm: Algorithm) -> None:
        """Prepare one signature. Raises KeyUnusable, DeviceError."""
        ...

    def finish(self, session: Any, key: KeyDescription, algorithm: Algorithm, signed: bytes) -> bytes:
        """Make the signature that was begun. Raises DeviceError, SignatureMalformed."""
        ...

    def close(self) -> None:
        """Leave the device logged out."""
        ...


def open_device(settings: TokenSettings, on_touch: OnTouch) -> tuple[Device, TokenDescription]:
    """Find and open the one device that `settings` mean.

    Raises:
        DeviceUnusable, TokenNotFound, DeviceError, UriInvalid: as their names say.
    """
    if settings.kind == "yubikey-piv":
        try:
            from greatseald.adapters.tokens.yubikey.device import open_yubikey
        except ImportError as error:
            message = f"YubiKeys need the extra `yubikey` (pip install 'greatseald[yubikey]'): {error}"
            raise DeviceUnusable(message) from error
        return open_yubikey(settings, on_touch)
    from greatseald.adapters.tokens.pkcs11 import Module
    from greatseald.adapters.tokens.uris import parse_uri

    uri = parse_uri(settings.uri)
    module = Module(settings.module, settings.init_args)
    return module, module.choose_token(uri)


def attempt_login(device: Device, latch: PinLatch, attempt: Callable[[], None], *, never_locks: bool) -> None:
    """Try the PIN under its latch: durably noted before, cleared by success, closed by a refusal.

    Raises:
        PinAttemptForbidden: the latch forbids it, or the PIN was refused.
        LatchUnusable: the latch cannot be kept.
        DeviceError: the device did not say whether the PIN is right.
    """
    latch.before_attempt(device.retry_counter, never_locks=never_locks)
    try:
        attempt()
    except DeviceError as error:
        if error.login is LoginVerdict.REFUSED:
            raise latch.refused(error.answer) from error
        if error.login is LoginVerdict.NOT_TRIED:
            latch.not_tried()
        raise
    latch.succeeded()
