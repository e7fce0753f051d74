"""The key in one slot of a YubiKey: what it is, how it is guarded, and what the device attests of it.

From firmware 5.3 on, the device's metadata say all of it. Before, the attestation (4.3 and later, of
keys that it generated) or the certificate in the slot gives the public half; what they do not tell
is unknown, and learnt from how the device answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from yubikit.core import BadResponseError, NotSupportedError
from yubikit.core.smartcard import SW, ApduError
from yubikit.piv import KEY_TYPE, SLOT, PivSession

from greatseal.algorithms import RSA_MODULUS_BITS, Algorithm
from greatseald.adapters.tokens.device import KeyUnusable
from greatseald.adapters.tokens.yubikey.attestation import (
    PIN_POLICIES,
    TOUCH_POLICIES,
    Attestation,
    AttestationInvalid,
    parse_attestation,
)
from greatseald.adapters.tokens.yubikey.slots import KEY_SLOTS

_ABSENT: Final = (SW.REFERENCE_DATA_NOT_FOUND, SW.FILE_NOT_FOUND, SW.INCORRECT_PARAMETERS, SW.DATA_INVALID)
METADATA_SINCE: Final = (5, 3, 0)
ATTESTATION_SINCE: Final = (4, 3, 0)


class SlotEmpty(KeyUnusable):
    """The device says that the slot holds no key."""


@dataclass(frozen=True, slots=True)
class SlotKey:
    """A key. Policies are `never`, `once`, `always`, `cached`, or empty where the device does not tell."""

    slot: int
    key_type: KEY_TYPE
    spki: bytes
    pin_policy: str
    touch_policy: str
    generated: bool | None

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """How it can sign: of RSA both paddings, which are made here."""
        kind = {KEY_TYPE.ECCP256: "p256", KEY_TYPE.ECCP384: "p384", KEY_TYPE.ED25519: "ed25519"}.get(
            self.key_type, "rsa"
        )
        return tuple(each for each in Algorithm if each.family == kind)


def read_key(session: PivSession, slot: int) -> tuple[SlotKey, Attestation | None]:
    """Read what the device tells of the key in a slot, and its attestation, which nobody has verified yet.

    Raises:
        SlotEmpty: there is none, by the device's word.
        KeyUnusable: there is none, its public half cannot be learnt, or Greatseal does not sign with its kind.
        ApduError, BadResponseError: the device does not answer as it should.
    """
    attestation = read_attestation(session, slot)
    if session.version >= METADATA_SINCE:
        try:
            metadata = session.get_slot_metadata(SLOT(slot))
        except ApduError as error:
            if error.sw in _ABSENT:
                raise SlotEmpty(f"slot {slot:02x} holds no key; slots with keys: {_taken(session)}") from error
            raise
        pin, touch = PIN_POLICIES.get(metadata.pin_policy, ""), TOUCH_POLICIES.get(metadata.touch_policy, "")
        return _slot_key(slot, metadata.public_key, pin, touch, generated=metadata.generated), attestation
    if attestation is not None:
        from cryptography.hazmat.primitives.serialization import load_der_public_key

        public: Any = load_der_public_key(attestation.spki)
        return _slot_key(slot, public, attestation.pin_policy, attestation.touch_policy, generated=True), attestation
    try:
        public = session.get_certificate(SLOT(slot)).public_key()
    except (ApduError, BadResponseError, NotSupportedError) as error:
        message = (
            f"the public key of slot {slot:02x} cannot be learnt: firmware {session.version} tells it of keys that it generated, "
            "or by the certificate in the slot, and there is neither"
        )
        raise KeyUnusable(message) from error
    return _slot_key(slot, public, "", "", generated=None), None


def _slot_key(slot: int, public: Any, pin: str, touch: str, *, generated: bool | None) -> SlotKey:
    smallest, largest = RSA_MODULUS_BITS
    usable = isinstance(public, (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey)) or (
        isinstance(public, rsa.RSAPublicKey) and smallest <= public.key_size <= largest
    )
    try:
        kind = KEY_TYPE.from_public_key(public)
    except ValueError:
        usable = False
    if not usable:
        message = f"the key in slot {slot:02x} is of a kind that Greatseal does not sign with: P-256, P-384, RSA of 2048 to 4096 bits, Ed25519"
        raise KeyUnusable(message)
    if pin.startswith("match-"):
        raise KeyUnusable(f"the key in slot {slot:02x} wants a fingerprint, which a daemon has not")
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return SlotKey(slot, kind, spki, pin, touch, generated)


def read_attestation(session: PivSession, slot: int) -> Attestation | None:
    """The attestation of a slot's key with the device's own certificate; None where the device makes none.

    Raises:
        ApduError: the device does not answer.
    """
    if session.version < ATTESTATION_SINCE:
        return None
    try:
        leaf = session.attest_key(SLOT(slot))
    except ApduError as error:
        if error.sw in _ABSENT:  # no key, or one that was brought in from outside
            return None
        raise
    except ValueError:
        return None
    try:
        device = session.get_certificate(SLOT.ATTESTATION)
    except (ApduError, BadResponseError, NotSupportedError):
        device = None
    try:
        return parse_attestation(leaf, device)
    except AttestationInvalid:
        return None


def list_keys(session: PivSession) -> list[tuple[SlotKey, Attestation | None]]:
    """Every key that the device tells of.

    Raises:
        ApduError, BadResponseError: the device does not answer.
    """
    found = []
    for slot in KEY_SLOTS:
        try:
            found.append(read_key(session, slot))
        except KeyUnusable:
            continue
    return found


def _taken(session: PivSession) -> str:
    taken = []
    for slot in KEY_SLOTS:
        try:
            session.get_slot_metadata(SLOT(slot))
        except (ApduError, ValueError):
            continue
        taken.append(f"{slot:02x}")
    return ", ".join(taken) or "none"
