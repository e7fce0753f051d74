"""YubiKeys for whoever sets them up: what is plugged in, and a new key generated on one of them.

For commands, while no daemon holds the device. A key is generated with the policies asked for, read
back, and its attestation verified where roots are given; what was made is never taken on trust.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from yubikit.core import CommandError, NotSupportedError
from yubikit.core.smartcard import ApduError
from yubikit.piv import DEFAULT_MANAGEMENT_KEY, KEY_TYPE, PIN_POLICY, SLOT, TOUCH_POLICY, PivSession

from greatseald.adapters.tokens.device import KeyUnusable, TokenNotFound
from greatseald.adapters.tokens.yubikey.attestation import (
    FORM_FACTORS,
    Attestation,
    AttestationInvalid,
    read_roots,
    verify_attestation,
)
from greatseald.adapters.tokens.yubikey.errors import PIN_MISSING, describe_word
from greatseald.adapters.tokens.yubikey.keys import METADATA_SINCE, SlotEmpty, SlotKey, list_keys, read_key
from greatseald.adapters.tokens.yubikey.pcsc import AnswerEndless, Pcsc, PcscError

KEY_KINDS: Final = {
    "p256": KEY_TYPE.ECCP256,
    "p384": KEY_TYPE.ECCP384,
    "rsa2048": KEY_TYPE.RSA2048,
    "rsa3072": KEY_TYPE.RSA3072,
    "rsa4096": KEY_TYPE.RSA4096,
    "ed25519": KEY_TYPE.ED25519,
}
PIN_POLICY_NAMES: Final = {"never": PIN_POLICY.NEVER, "once": PIN_POLICY.ONCE, "always": PIN_POLICY.ALWAYS}
TOUCH_POLICY_NAMES: Final = {"never": TOUCH_POLICY.NEVER, "always": TOUCH_POLICY.ALWAYS, "cached": TOUCH_POLICY.CACHED}


class GenerationRefused(Exception):
    """No key was made; the message says why and what to do."""


class KeyNotProven(Exception):
    """A key was made, and is not what was asked for, or its attestation does not hold."""


class YubiKeysUnreachable(Exception):
    """The devices, or pcscd, cannot be reached."""


@dataclass(frozen=True, slots=True)
class Device:
    """A YubiKey that is plugged in. `problem` says why nothing more can be told."""

    serial: str
    firmware: str
    form_factor: str
    reader: str
    problem: str
    pin_tries: int | None
    keys: tuple[SlotKey, ...]
    attestations: tuple[Attestation | None, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The key to make: slot, one of `KEY_KINDS`, and a name of each policy."""

    slot: int
    kind: str
    pin_policy: str
    touch_policy: str


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except PcscError as error:
        message = f"the YubiKey cannot be reached: {error}"
        if error.code == 0x8010000B:
            message += "; stop the daemon, or whatever else holds it (gpg's scdaemon, a browser)"
        raise YubiKeysUnreachable(message) from error
    except TokenNotFound as error:
        raise YubiKeysUnreachable(str(error)) from error
    except ApduError as error:
        message = f"the YubiKey answers: {describe_word(error.sw)}"
        raise YubiKeysUnreachable(message) from error
    except (CommandError, AnswerEndless) as error:
        message = f"the YubiKey answers something else than it should: {error}"
        raise YubiKeysUnreachable(message) from error


def list_devices() -> list[Device]:
    """Every YubiKey that is plugged in, with its keys where nobody else holds it.

    Raises:
        YubiKeysUnreachable: pcscd cannot be reached.
    """
    with _translated():
        pcsc = Pcsc()
        found = list(pcsc.look())
    devices = []
    for each in found:
        firmware = str(each.info.version) if each.info is not None else ""
        form = FORM_FACTORS.get(int(each.info.form_factor), "unknown form") if each.info is not None else ""
        device = Device(each.serial, firmware, form, each.reader, each.problem, None, (), ())
        if not each.problem:
            try:
                with _translated():
                    device = _with_keys(pcsc, device)
            except YubiKeysUnreachable as error:
                device = replace(device, problem=str(error))
        devices.append(device)
    pcsc.close()
    return devices


def _with_keys(pcsc: Pcsc, device: Device) -> Device:
    connection, session, _ = pcsc.open(device.serial)
    try:
        pairs = list_keys(session)
        tries = session.get_pin_attempts()
    finally:
        connection.close()
    return replace(
        device, pin_tries=tries, keys=tuple(key for key, _ in pairs), attestations=tuple(said for _, said in pairs)
    )


def generate_on_device(
    serial: str, wanted: Wanted, management_key: bytes | None, roots: Sequence[Path], *, overwrite: bool
) -> tuple[SlotKey, Attestation | None, str]:
    """Generate a key, read it back and have it attested; returns it with its public key as PEM.

    `management_key` None means the factory's, which is used only where the device says that it still has it.

    Raises:
        GenerationRefused: nothing was made.
        KeyNotProven: something was made that must not be used.
        YubiKeysUnreachable: the device cannot be reached.
    """
    try:
        trusted = read_roots(roots) if roots else []
    except AttestationInvalid as error:
        raise GenerationRefused(str(error)) from error
    with _translated():
        pcsc = Pcsc()
        connection, session, _ = pcsc.open(serial)
    try:
        with _translated():
            _check_slot_is_free(session, wanted, overwrite=overwrite)
            _authenticate(session, management_key)
            _generate(session, wanted)
            try:
                key, attestation = read_key(session, wanted.slot)
            except KeyUnusable as error:
                message = f"the new key cannot be read back: {error}"
                raise KeyNotProven(message) from error
        _check_key(key, wanted)
        if trusted:
            attestation = _prove(attestation, trusted, serial, key)
        return key, attestation, _pem(key.spki)
    finally:
        connection.close()
        pcsc.close()


def _check_slot_is_free(session: PivSession, wanted: Wanted, *, overwrite: bool) -> None:
    if overwrite:
        return
    try:
        key, _ = read_key(session, wanted.slot)
    except SlotEmpty:
        return
    except KeyUnusable as error:
        message = f"slot {wanted.slot:02x}: {error}: add --overwrite if what is in it may be lost"
        raise GenerationRefused(message) from error
    message = f"slot {wanted.slot:02x} holds a key ({key.key_type}): add --overwrite if it may be lost for ever"
    raise GenerationRefused(message)


def _authenticate(session: PivSession, management_key: bytes | None) -> None:
    if management_key is None:
        if session.version >= METADATA_SINCE and not session.get_management_key_metadata().default_value:
            raise GenerationRefused("the management key is not the factory's: name the file that holds it")
        management_key = DEFAULT_MANAGEMENT_KEY
    if len(management_key) != session.management_key_type.key_len:
        expected = session.management_key_type
        message = (
            f"the management key has {len(management_key)} bytes, and the device's ({expected.name}) {expected.key_len}"
        )
        raise GenerationRefused(message)
    try:
        session.authenticate(management_key)
    except ApduError as error:
        if error.sw == PIN_MISSING:
            raise GenerationRefused("the management key was refused") from error
        raise
    except CommandError as error:
        message = f"the management key was refused: {error}"
        raise GenerationRefused(message) from error


def _generate(session: PivSession, wanted: Wanted) -> None:
    kind, pin, touch = (
        KEY_KINDS[wanted.kind],
        PIN_POLICY_NAMES[wanted.pin_policy],
        TOUCH_POLICY_NAMES[wanted.touch_policy],
    )
    try:
        session.generate_key(SLOT(wanted.slot), kind, pin, touch)
    except NotSupportedError as error:
        message = f"firmware {session.version} does not make this key: {error}"
        raise GenerationRefused(message) from error
    except ApduError as error:
        message = f"the device made no key: {describe_word(error.sw)}"
        raise GenerationRefused(message) from error


def _check_key(key: SlotKey, wanted: Wanted) -> None:
    made = (key.key_type, key.pin_policy or wanted.pin_policy, key.touch_policy or wanted.touch_policy, key.generated)
    asked = (KEY_KINDS[wanted.kind], wanted.pin_policy, wanted.touch_policy, True)
    if made != asked and key.generated is not None:
        message = (
            f"the key in slot {key.slot:02x} is not what was asked for: {key.key_type}, PIN policy {key.pin_policy}, "
            f"touch policy {key.touch_policy}, {'generated' if key.generated else 'brought in'}"
        )
        raise KeyNotProven(message)


def _prove(attestation: Attestation | None, trusted: list[x509.Certificate], serial: str, key: SlotKey) -> Attestation:
    if attestation is None:
        raise KeyNotProven("the device attests nothing of the new key")
    try:
        return verify_attestation(attestation, trusted, serial, key.spki)
    except AttestationInvalid as error:
        raise KeyNotProven(str(error)) from error


def _pem(spki: bytes) -> str:
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    return load_der_public_key(spki).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")
