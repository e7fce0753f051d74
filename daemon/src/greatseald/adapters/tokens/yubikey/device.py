"""A YubiKey's PIV applet as a device of the token host.

Invariants:
- one session, which holds the device exclusively: nobody else signs with the PIN that we verified;
- the PIN is verified once at the start, and before each signature of a key whose PIN policy is
  ALWAYS; every time under the latch, which the host keeps;
- a missing touch and a missing PIN have the same status word and are told apart by what we know:
  the PIN was verified right before, or the device says that it still is;
- once PC/SC has failed, nothing works any more in this process: a fresh host finds the device again.

yubikit's session is not thread-safe; the engine gives a session to one thread at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cryptography import x509
from yubikit.core import CommandError, InvalidPinError, NotSupportedError, Tlv
from yubikit.core.smartcard import ApduError
from yubikit.management import DeviceInfo
from yubikit.piv import (
    INS_AUTHENTICATE,
    INS_VERIFY,
    KEY_TYPE,
    PIN_P2,
    TAG_AUTH_CHALLENGE,
    TAG_AUTH_RESPONSE,
    TAG_DYN_AUTH,
    PinMetadata,
    PivSession,
)

from greatseal.algorithms import Algorithm
from greatseald.adapters.durable import write_durably
from greatseald.adapters.tokens.device import (
    DeviceUnusable,
    KeyDescription,
    KeyUnusable,
    NewPinRefused,
    OnTouch,
    PinRules,
    SignatureMalformed,
    TokenDescription,
    Tries,
)
from greatseald.adapters.tokens.latch import RetryCounter
from greatseald.adapters.tokens.secret import Secret
from greatseald.adapters.tokens.vendors import VendorProfile
from greatseald.adapters.tokens.yubikey import padding
from greatseald.adapters.tokens.yubikey.attestation import (
    FORM_FACTORS,
    Attestation,
    AttestationInvalid,
    read_roots,
    verify_attestation,
)
from greatseald.adapters.tokens.yubikey.errors import (
    PIN_MISSING,
    PinNotTried,
    PinRefused,
    PinUnanswered,
    YubiKeyError,
    describe_pcsc,
    describe_word,
    endless,
    no_touch,
    pcsc_failed,
    word_failed,
)
from greatseald.adapters.tokens.yubikey.keys import METADATA_SINCE, SlotKey, read_key
from greatseald.adapters.tokens.yubikey.pcsc import AnswerEndless, CardConnection, Pcsc, PcscError
from greatseald.adapters.tokens.yubikey.slots import SlotInvalid, parse_slot
from greatseald.domain.tokens import TokenSettings

_KEEP_ALIVE_SECONDS: Final = 1.0
_TOUCH_HINT_SECONDS: Final = 0.5
"""A key whose touch may be remembered, or whose policy is unknown, is taken to wait once it is silent for so long."""
_USUAL_TRIES: Final = 3
_ED25519_SINCE: Final = (5, 7, 0)
_MIN_PIN_BYTES: Final = 6
_MAX_PIN_BYTES: Final = 8
_NEW_PIN_REFUSED: Final = frozenset({0x6985, 0x6A80})
"""Conditions of use not satisfied (PIN complexity, firmware 5.7), incorrect parameters."""
_REFUSED: Final = word_failed("", PIN_MISSING, signing=False).verdict
_MAX_MESSAGE_BYTES: Final = 3000
"""Of what fits one extended APDU of 3,062 bytes beside its framing."""


def open_yubikey(settings: TokenSettings, on_touch: OnTouch) -> tuple[YubiKey, TokenDescription]:
    """Find and hold the YubiKey with the configured serial number.

    Raises:
        DeviceUnusable: pcscd cannot be reached, or the attestation roots cannot be read.
        TokenNotFound: it is not there; the message lists what is.
        YubiKeyError: it does not answer.
    """
    try:
        roots = read_roots(settings.attestation_roots) if settings.attestation_roots else []
        pcsc = Pcsc()
    except PcscError as error:
        message = f"PC/SC cannot be reached: {error}"
        raise DeviceUnusable(message) from error
    except AttestationInvalid as error:
        raise DeviceUnusable(str(error)) from error
    with _asking(f"opening YubiKey {settings.serial}"):
        connection, session, info = pcsc.open(settings.serial)
    device = YubiKey(settings, connection, session, roots, on_touch)
    return device, TokenDescription(
        label=f"YubiKey {settings.serial}",
        serial=settings.serial,
        manufacturer="Yubico",
        model=f"YubiKey {info.version[0]} {_form(info)}",
        firmware=str(info.version),
    )


def _form(info: DeviceInfo) -> str:
    return FORM_FACTORS.get(int(info.form_factor), "").strip()


@contextmanager
def _asking(what: str, *, signing: bool = False) -> Iterator[None]:
    """Translate what PC/SC and yubikit raise into what it means."""
    try:
        yield
    except PcscError as error:
        raise pcsc_failed(what, error.code, signing=signing) from error
    except ApduError as error:
        raise word_failed(what, error.sw, signing=signing) from error
    except AnswerEndless as error:
        raise endless() from error
    except (CommandError, NotSupportedError, ValueError, KeyError, IndexError) as error:
        # An answer that cannot be parsed, by yubikit or by us: it may have signed all the same.
        if signing:
            raise SignatureMalformed(f"the YubiKey's answer is no signature: {error}") from error
        message = f"the YubiKey answers something else than it should: {error}"
        raise KeyUnusable(message) from error


def _tries(metadata: PinMetadata) -> Tries:
    left = metadata.attempts_remaining
    if left == 0:
        return Tries(RetryCounter.LOCKED, 0)
    if left == 1:
        return Tries(RetryCounter.FINAL_TRY, 1)
    return Tries(RetryCounter.FULL if left >= metadata.total_attempts else RetryCounter.LOW, left)


def _text(pin: Secret | None, command: str, what: str) -> str:
    """A PIN as yubikit takes it: text, which cannot be wiped.

    Raises:
        PinNotTried: it cannot be one.
    """
    data = pin.data if pin is not None else bytearray()
    if not 0 < len(data) <= _MAX_PIN_BYTES:
        raise PinNotTried(command, f"{what} of a YubiKey has {_MIN_PIN_BYTES} to {_MAX_PIN_BYTES} characters", _REFUSED)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    raise PinNotTried(command, f"{what} is not UTF-8", _REFUSED)


@contextmanager
def _trying(command: str, *, sets_pin: bool = False) -> Iterator[None]:
    """Translate what a command that tries a PIN raises into what it says of the PIN."""
    try:
        yield
    except InvalidPinError as error:
        left = error.attempts_remaining
        tries = f"{left} tries are left" if left else "no tries are left: it is blocked"
        raise PinRefused(tries, command) from error
    except ApduError as error:
        if sets_pin and error.sw in _NEW_PIN_REFUSED:
            message = f"{command} answered {describe_word(error.sw)}: the new PIN may be too simple for this device"
            raise NewPinRefused(message) from error
        row = word_failed("", error.sw, signing=False).verdict
        raise PinUnanswered(command, describe_word(error.sw), row) from error
    except PcscError as error:
        row = pcsc_failed("", error.code, signing=False).verdict
        raise PinUnanswered(command, describe_pcsc(error.code), row) from error
    except (CommandError, NotSupportedError, AnswerEndless, ValueError) as error:
        raise PinUnanswered(command, f"no answer that can be parsed: {type(error).__name__}", _REFUSED) from error


class YubiKey:
    """One YubiKey, held. Implements `greatseald.adapters.tokens.device.Device`."""

    parallel = False
    has_pin_pad = False
    wants_login = False
    profile = VendorProfile(keep_alive=_KEEP_ALIVE_SECONDS, max_sessions=1)

    def __init__(
        self,
        settings: TokenSettings,
        connection: CardConnection,
        session: PivSession,
        roots: Sequence[x509.Certificate],
        on_touch: OnTouch,
    ) -> None:
        self._settings = settings
        self._roots = roots
        self._connection = connection
        self._session = session
        self._on_touch = on_touch
        self._just_verified = False
        self._logged_in = False
        self._keys: dict[str, SlotKey] = {}

    @property
    def notes(self) -> list[str]:
        """Whether the PIN or the management key is the factory's."""
        if self._session.version < METADATA_SINCE:
            return []
        found = []
        with suppress(YubiKeyError, KeyUnusable), _asking("GET METADATA"):
            if self._session.get_pin_metadata().default_value:
                found.append("its PIN is the factory's: change it (ykman piv access change-pin)")
            if self._session.get_management_key_metadata().default_value:
                found.append("its management key is the factory's: change it (ykman piv access change-management-key)")
        return found

    def advertised(self) -> list[Algorithm]:
        """What its firmware signs with."""
        families = {"p256", "p384", "rsa"} | ({"ed25519"} if self._session.version >= _ED25519_SINCE else set())
        return [each for each in Algorithm if each.family in families]

    # -- sessions and logins ----------------------------------------------------------------------

    def open_session(self) -> PivSession:
        """The one session; it lasts as long as the process."""
        return self._session

    def close_session(self, session: PivSession) -> bool:
        """Nothing to give up: what failed in it is either the device's answer or the end of the process."""
        return session is self._session

    def keep_alive(self, session: PivSession) -> None:
        """Ask pcscd whether the device is still there.

        Raises:
            YubiKeyError: it is not.
        """
        del session
        with _asking("the device"):
            self._connection.check_present()

    @property
    def retry_counter(self) -> RetryCounter:
        """The PIN's tries.

        Raises:
            YubiKeyError: the device does not answer.
        """
        return self.tries.counter

    @property
    def tries(self) -> Tries:
        """The same with their number.

        Raises:
            YubiKeyError: the device does not answer.
        """
        with _asking("reading the PIN's tries"):
            if self._session.version >= METADATA_SINCE:
                return _tries(self._session.get_pin_metadata())
            return _tries(PinMetadata(False, _USUAL_TRIES, self._session.get_pin_attempts()))

    @property
    def unblocking_tries(self) -> Tries:
        """The PUK's tries, which firmware before 5.3 does not tell.

        Raises:
            YubiKeyError: the device does not answer.
        """
        if self._session.version < METADATA_SINCE:
            return Tries(RetryCounter.FULL)
        with _asking("reading the PUK's tries"):
            return _tries(self._session.get_puk_metadata())

    @property
    def unblocks_with(self) -> str:
        """The PUK."""
        return "PUK"

    @property
    def pin_rules(self) -> PinRules:
        """What PIV says; a PUK is as long."""
        return PinRules(_MIN_PIN_BYTES, _MAX_PIN_BYTES)

    def login(self, session: PivSession, pin: Secret | None) -> None:
        """VERIFY, once.

        Raises:
            PinRefused, PinNotTried, PinUnanswered: as their names say.
        """
        text = _text(pin, "VERIFY", "the PIN")
        with _trying("VERIFY"):
            session.verify_pin(text)
        self._logged_in = True

    def change_pin(self, session: PivSession, current: Secret, new: Secret) -> None:
        """CHANGE REFERENCE DATA, which tries the current PIN once.

        Raises:
            PinRefused, PinNotTried, PinUnanswered: as their names say.
            NewPinRefused: the device does not take the new one.
        """
        texts = _text(current, "CHANGE REFERENCE DATA", "the PIN"), _text(new, "CHANGE REFERENCE DATA", "the new PIN")
        with _trying("CHANGE REFERENCE DATA", sets_pin=True):
            session.change_pin(*texts)

    def unblock(self, session: PivSession, authority: Secret, new: Secret) -> None:
        """RESET RETRY COUNTER with the PUK, which is tried once.

        Raises:
            PinRefused, PinNotTried, PinUnanswered: as their names say, of the PUK.
            NewPinRefused: the device does not take the new PIN.
        """
        texts = _text(authority, "RESET RETRY COUNTER", "the PUK"), _text(new, "RESET RETRY COUNTER", "the new PIN")
        with _trying("RESET RETRY COUNTER", sets_pin=True):
            session.unblock_pin(*texts)

    def authenticate(self, session: PivSession, pin: Secret | None) -> None:
        """VERIFY for the one signature that follows.

        Raises:
            PinRefused, PinNotTried, PinUnanswered: as their names say.
        """
        self.login(session, pin)
        self._just_verified = True

    def close(self) -> None:
        """Let go of the device; it forgets the PIN."""
        self._connection.close()

    # -- keys -------------------------------------------------------------------------------------

    def describe_key(self, session: PivSession, uri: str) -> KeyDescription:
        """Read the key in the slot that `uri` means, and have its attestation verified where roots are configured.

        Raises:
            KeyUnusable: there is none, it wants a PIN and there is none, or its attestation does not hold.
            YubiKeyError: the device does not answer.
        """
        try:
            slot = parse_slot(uri)
        except SlotInvalid as error:
            raise KeyUnusable(str(error)) from error
        with _asking(f"reading slot {slot:02x}"):
            key, attestation = read_key(session, slot)
        if key.pin_policy in {"once", "always"} and not self._logged_in:
            message = f"the key in slot {slot:02x} wants a PIN: set pin_file, pin_credential or unlock"
            raise KeyUnusable(message)
        attestation = self._proven(key, attestation)
        if attestation is not None:
            self._store(slot, attestation)
        self._keys[uri] = key
        always = key.pin_policy == "always" if key.pin_policy else None
        waits = 0.0 if key.touch_policy == "never" else self._settings.touch_timeout
        return KeyDescription(
            kind=str(key.key_type),
            spki=key.spki,
            algorithms=key.algorithms,
            always_authenticate=always,
            touch_seconds=2 * waits,  # the last wait may begin just before the time is over
            attestation=attestation.chain if attestation is not None else (),
            custody=str(attestation) if attestation is not None else "",
        )

    def _proven(self, key: SlotKey, attestation: Attestation | None) -> Attestation | None:
        if not self._roots:
            return attestation
        if attestation is None:
            message = (
                f"the key in slot {key.slot:02x} has no attestation, and attestation_roots demand one: it was not generated in the "
                "device, or its firmware attests nothing"
            )
            raise KeyUnusable(message)
        try:
            return verify_attestation(attestation, self._roots, self._settings.serial, key.spki)
        except AttestationInvalid as error:
            message = f"slot {key.slot:02x}: {error}"
            raise KeyUnusable(message) from error

    def _store(self, slot: int, attestation: Attestation) -> None:
        path = attestation_path(self._settings.state_dir, slot)
        text = f"# {attestation}\n{attestation.pem()}".encode()
        with suppress(OSError):  # a copy for people: the device gives it again whenever it is asked
            if not path.exists() or path.read_bytes() != text:
                write_durably(path, text, 0o644)

    # -- signing ----------------------------------------------------------------------------------

    def begin(self, session: PivSession, uri: str, algorithm: Algorithm) -> None:
        """See that the device is there, as far as can be told without asking it.

        Raises:
            YubiKeyError: it is not; nothing was signed.
        """
        del session, algorithm
        self._current = self._keys[uri]
        with _asking("the device"):
            self._connection.check_present()

    def finish(self, session: PivSession, key: KeyDescription, algorithm: Algorithm, signed: bytes) -> bytes:
        """Sign a digest (Ed25519: a message), waiting for a touch where the key wants one.

        Raises:
            YubiKeyError: it failed; its verdict says whether a signature was made.
            SignatureMalformed: the answer is no signature.
        """
        del key
        slot_key = self._current
        payload = self._payload(slot_key, algorithm, signed)
        data = Tlv(TAG_DYN_AUTH, Tlv(TAG_AUTH_RESPONSE) + Tlv(TAG_AUTH_CHALLENGE, payload))
        just_verified, self._just_verified = self._just_verified, False
        began = time.monotonic()
        while True:
            try:
                with _asking("signing", signing=True), self._touching(slot_key):
                    response = session.protocol.send_apdu(0, INS_AUTHENTICATE, slot_key.key_type, slot_key.slot, data)
                    return bytes(Tlv.unpack(TAG_AUTH_RESPONSE, Tlv.unpack(TAG_DYN_AUTH, response)))
            except YubiKeyError as error:
                if not error.wants_login or not self._lacks_touch(session, slot_key, just_verified=just_verified):
                    raise
            waited = time.monotonic() - began
            # A key that wants the PIN each time has used it up: the next request verifies it again.
            if waited >= self._settings.touch_timeout or slot_key.pin_policy not in {"once", "never"}:
                raise no_touch(waited)

    def _payload(self, key: SlotKey, algorithm: Algorithm, signed: bytes) -> bytes:
        if algorithm.family == "rsa":
            pad = padding.pss if "-pss-" in algorithm.value else padding.pkcs1
            return pad(signed, algorithm.hash_name, KEY_TYPE(key.key_type).bit_len)
        if algorithm.is_pure and len(signed) > _MAX_MESSAGE_BYTES:
            message = f"a YubiKey signs messages of at most {_MAX_MESSAGE_BYTES} bytes with Ed25519, and this one has {len(signed)}"
            raise KeyUnusable(message)
        return signed

    def _lacks_touch(self, session: PivSession, key: SlotKey, *, just_verified: bool) -> bool:
        """Whether the device's 6982 means that nobody touched it, as the PIN was not missing."""
        if key.touch_policy == "never":
            return False
        if just_verified or key.pin_policy == "never":
            return True
        if key.pin_policy != "once":  # always, or unknown: it may have wanted the PIN
            return False
        try:
            with _asking("VERIFY"):  # empty: it says whether the PIN is verified, and tries none
                session.protocol.send_apdu(0, INS_VERIFY, 0, PIN_P2)
        except (YubiKeyError, KeyUnusable):
            return False
        return True

    @contextmanager
    def _touching(self, key: SlotKey) -> Iterator[None]:
        """Tell that a touch is waited for, at once where one is always wanted, else when the device takes its time."""
        if key.touch_policy == "never":
            yield
            return
        what = f"touch YubiKey {self._settings.serial}: a signature with slot {key.slot:02x} waits for it"
        timer = threading.Timer(0.0 if key.touch_policy == "always" else _TOUCH_HINT_SECONDS, self._on_touch, (what,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            self._on_touch("")


def attestation_path(state_dir: Path, slot: int) -> Path:
    """Where the host keeps the attestation of a slot's key."""
    return state_dir / f"attestation-{slot:02x}.pem"
