"""A YubiKey's word that it generated a key itself, and how it guards it: verified up to named roots.

The chain is: the slot's attestation, made by the device for this key; the device's own certificate
in slot F9; then what the configured files hold, issuers as well as roots. A root is a self-signed
certificate of those files. Old F9 certificates lack the CA bit, so it is asked only of those above.
Source of the extensions: Yubico, "PIV attestation", OIDs below 1.3.6.1.4.1.41482.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_ARC: Final = "1.3.6.1.4.1.41482.3."
_FIRMWARE, _SERIAL, _POLICIES, _FORM = (x509.ObjectIdentifier(_ARC + part) for part in ("3", "7", "8", "9"))
_MAX_ISSUERS: Final = 5
PIN_POLICIES: Final = {1: "never", 2: "once", 3: "always", 4: "match-once", 5: "match-always"}
TOUCH_POLICIES: Final = {1: "never", 2: "always", 3: "cached"}
FORM_FACTORS: Final = {
    1: "USB-A keychain", 2: "USB-A nano", 3: "USB-C keychain", 4: "USB-C nano", 5: "USB-C and Lightning",
    6: "USB-A bio", 7: "USB-C bio",
}  # fmt: skip


class AttestationInvalid(Exception):
    """The attestation does not prove what it has to; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Attestation:
    """What a device says of a key. `chain` is DER, the slot's certificate first; with the issuers and root once verified."""

    spki: bytes
    serial: str
    firmware: str
    pin_policy: str
    touch_policy: str
    form_factor: str
    chain: tuple[bytes, ...]
    root: str = ""

    def __str__(self) -> str:
        proof = f"verified up to {self.root}" if self.root else "not verified, as no attestation_roots are configured"
        return (
            f"generated in YubiKey {self.serial or 'without serial'} (firmware {self.firmware}, {self.form_factor}), PIN policy "
            f"{self.pin_policy}, touch policy {self.touch_policy}: {proof}"
        )

    def pem(self) -> str:
        """The chain as PEM, the slot's certificate first."""
        certificates = (x509.load_der_x509_certificate(each) for each in self.chain)
        return "".join(each.public_bytes(Encoding.PEM).decode("ascii") for each in certificates)


def read_roots(paths: Iterable[Path]) -> list[x509.Certificate]:
    """The certificates of PEM files: roots, and issuers between them and the devices.

    Raises:
        AttestationInvalid: a file cannot be read, or none of them holds a root.
    """
    found: list[x509.Certificate] = []
    for path in paths:
        try:
            found += x509.load_pem_x509_certificates(path.read_bytes())
        except (OSError, ValueError) as error:
            message = f"attestation_roots: {path} cannot be read as PEM certificates: {error}"
            raise AttestationInvalid(message) from error
    if not any(_issued(each, each) for each in found):
        message = "attestation_roots hold no self-signed root"
        raise AttestationInvalid(message)
    return found


def parse_attestation(leaf: x509.Certificate, device: x509.Certificate | None) -> Attestation:
    """Read what a slot's attestation says; proves nothing yet.

    Raises:
        AttestationInvalid: an extension has another form than Yubico's.
    """
    try:
        firmware, serial, policies, form = (_extension(leaf, oid) for oid in (_FIRMWARE, _SERIAL, _POLICIES, _FORM))
        if (
            len(firmware) != 3
            or len(policies) != 2
            or (serial and (serial[:1] != b"\x02" or serial[1] != len(serial) - 2))
        ):
            raise AttestationInvalid("the attestation's extensions are not Yubico's")
        spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, IndexError, x509.UnsupportedGeneralNameType) as error:
        message = f"the attestation cannot be parsed: {error}"
        raise AttestationInvalid(message) from error
    return Attestation(
        spki=spki,
        serial=str(int.from_bytes(serial[2:], "big")) if serial else "",
        firmware=".".join(map(str, firmware)),
        pin_policy=PIN_POLICIES.get(policies[0], f"unknown ({policies[0]})"),
        touch_policy=TOUCH_POLICIES.get(policies[1], f"unknown ({policies[1]})"),
        form_factor=FORM_FACTORS.get(form[0] & 0x0F, "unknown form") if form else "unknown form",
        chain=tuple(each.public_bytes(Encoding.DER) for each in (leaf, device) if each is not None),
    )


def verify_attestation(
    attestation: Attestation, roots: Sequence[x509.Certificate], serial: str, spki: bytes
) -> Attestation:
    """Verify the chain, and that it speaks of this device and this key; returns it with issuers and root.

    Raises:
        AttestationInvalid: it does not prove it.
    """
    if attestation.serial != serial:
        message = f"the attestation is of YubiKey {attestation.serial or 'without a serial'}, and this is {serial}"
        raise AttestationInvalid(message)
    if attestation.spki != spki:
        raise AttestationInvalid("the attestation is of another key than the slot's")
    if len(attestation.chain) != 2:
        raise AttestationInvalid("the device has no attestation certificate in slot F9")
    leaf, current = (x509.load_der_x509_certificate(each) for each in attestation.chain)
    if not _issued(leaf, current):
        raise AttestationInvalid("the slot's attestation was not signed by the device's certificate in slot F9")
    path = [leaf, current]
    for _ in range(_MAX_ISSUERS):
        issuer = next(
            (each for each in roots if each not in path and _may_issue(each) and _issued(current, each)), None
        )
        if issuer is None:
            break
        path.append(issuer)
        current = issuer
        if _issued(issuer, issuer):
            chain = tuple(each.public_bytes(Encoding.DER) for each in path)
            return Attestation(
                attestation.spki, attestation.serial, attestation.firmware, attestation.pin_policy,
                attestation.touch_policy, attestation.form_factor, chain, issuer.subject.rfc4514_string(),
            )  # fmt: skip
    message = (
        f"the attestation does not lead to a configured root: nobody there issued {current.subject.rfc4514_string()!r}"
    )
    raise AttestationInvalid(message)


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _may_issue(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes:
    """The raw value of an extension; empty where there is none, as of a serial number that is hidden."""
    try:
        value = certificate.extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        return b""
    return value.value if isinstance(value, x509.UnrecognizedExtension) else b""
