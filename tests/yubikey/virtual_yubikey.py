"""A YubiKey in Python: Yubico's management and PIV applets behind APDUs, for tests.

What yubikit, ykman, yubico-piv-tool and OpenSC send to a device is answered as a device answers it
(NIST SP 800-73-4 part 2, and Yubico's extensions of it), with real keys, real signatures and a real
attestation chain. It guards nothing: whoever runs it holds its private keys. `Switches` make it slow, absent-minded or wrong.

    card = VirtualYubiKey(serial=12345678, issuer=Issuer.make())
    response = card.answer(apdu)        # data and status word; None: it was pulled out in the middle
"""

from __future__ import annotations

import datetime as dt
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields

from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, utils
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

MANAGEMENT = bytes.fromhex("a000000527471117")
PIV = bytes.fromhex("a000000308")
ATR = bytes.fromhex("3bfd1300008131fe158073c021c057597562694b657940")
DEFAULT_PIN, DEFAULT_PUK = b"123456\xff\xff", b"12345678"
DEFAULT_MANAGEMENT_KEY = bytes.fromhex("010203040506070801020304050607080102030405060708")
ATTESTATION_SLOT, MANAGEMENT_SLOT = 0xF9, 0x9B
ATTESTATION_OBJECT = bytes.fromhex("5fff01")
SLOTS = (0x9A, 0x9C, 0x9D, 0x9E, *range(0x82, 0x96))
PIN_ONCE, PIN_NEVER, PIN_ALWAYS = 2, 1, 3
TOUCH_NEVER, TOUCH_ALWAYS, TOUCH_CACHED = 1, 2, 3
OK, MISSING_PIN, BLOCKED, WRONG_DATA, NOT_FOUND = 0x9000, 0x6982, 0x6983, 0x6A80, 0x6A88
NO_OBJECT, NO_INSTRUCTION, WRONG_LENGTH, WRONG_P1P2 = 0x6A82, 0x6D00, 0x6700, 0x6B00
CURVES: dict[int, ec.EllipticCurve] = {0x11: ec.SECP256R1(), 0x14: ec.SECP384R1()}
RSA_BITS = {0x06: 1024, 0x07: 2048, 0x05: 3072, 0x16: 4096}
ED25519 = 0xE0
KINDS = {
    "ECCP256": 0x11,
    "ECCP384": 0x14,
    "RSA1024": 0x06,
    "RSA2048": 0x07,
    "RSA3072": 0x05,
    "RSA4096": 0x16,
    "ED25519": ED25519,
}
MANAGEMENT_KEY_BYTES = {0x03: 24, 0x08: 16, 0x0A: 24, 0x0C: 32}
YUBICO = "1.3.6.1.4.1.41482.3."

Private = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


class Status(Exception):
    """A status word other than 9000."""

    def __init__(self, word: int) -> None:
        super().__init__(f"{word:04x}")
        self.word = word


class Pulled(Exception):
    """The device left its reader in the middle of a command."""


@dataclass
class Switches:
    """How the device misbehaves. `word_for` answers an instruction (hexadecimal) with a status word for ever."""

    touch: bool = True
    touch_wait: float = 0.4
    sign_seconds: float = 0.0
    hang_seconds: float = 0.0
    pull_before_signing: bool = False
    pull_after_signing: bool = False
    endless: bool = False
    wrong_signature: bool = False
    garbage: bool = False
    attested_serial: int = 0
    word_for: dict[str, int] = field(default_factory=dict)

    def set(self, changes: dict[str, object]) -> None:
        known = {each.name for each in fields(self)}
        for name, value in changes.items():
            assert name in known, name
            setattr(self, name, value)


@dataclass
class Key:
    """A private key in a slot."""

    kind: int
    private: Private
    pin_policy: int
    touch_policy: int
    generated: bool
    touched_at: float = -1e9


def tlv(tag: int, value: bytes = b"") -> bytes:
    """BER-TLV with the shortest length."""
    head = tag.to_bytes((tag.bit_length() + 7) // 8 or 1, "big")
    if len(value) < 0x80:
        return head + bytes((len(value),)) + value
    size = len(value).to_bytes((len(value).bit_length() + 7) // 8, "big")
    return head + bytes((0x80 | len(size),)) + size + value


def parse(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The tags and values of a BER-TLV sequence."""
    at = 0
    while at < len(data):
        tag, at = data[at], at + 1
        if tag & 0x1F == 0x1F:
            tag, at = tag << 8 | data[at], at + 1
        length, at = data[at], at + 1
        if length & 0x80:
            count = length & 0x7F
            length, at = int.from_bytes(data[at : at + count], "big"), at + count
        yield tag, data[at : at + length]
        at += length


@dataclass(frozen=True)
class Issuer:
    """A root that attests devices, as Yubico's does, and whoever it issued certificates to."""

    private: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str = "Virtual PIV Root CA") -> Issuer:
        private = ec.generate_private_key(ec.SECP256R1())
        return cls(private, _certificate(name, private.public_key(), name, private, ca=True))

    def issue(self, name: str, public: object) -> x509.Certificate:
        issuer = self.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
        return _certificate(name, public, str(issuer), self.private, ca=True)


def _certificate(
    subject: str,
    public: object,
    issuer: str,
    private: ec.EllipticCurvePrivateKey,
    *,
    ca: bool = False,
    extensions: dict[str, bytes] | None = None,
) -> x509.Certificate:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(public)  # type: ignore[arg-type]
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime(2016, 3, 14, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(2052, 4, 17, tzinfo=dt.UTC))
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    for number, value in (extensions or {}).items():
        oid = x509.ObjectIdentifier(YUBICO + number)
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return builder.sign(private, SHA256())


class VirtualYubiKey:
    """One device. Its state is kept when it is pulled and put back; logins are not."""

    def __init__(self, serial: int, issuer: Issuer, version: tuple[int, int, int] = (5, 7, 1)) -> None:
        self.serial, self.version = serial, version
        self.switches = Switches()
        self.signatures = 0
        self.verifications = 0
        self.waiting = False
        self._stop = threading.Event()
        self._attestation_private = ec.generate_private_key(ec.SECP256R1())
        self._attestation = issuer.issue("Yubico PIV Attestation", self._attestation_private.public_key())
        self.factory_reset()
        self.power()

    def renew(self) -> None:
        """Be a new device with the same serial number."""
        self.switches = Switches()
        self.signatures = self.verifications = 0
        self.factory_reset()

    def factory_reset(self) -> None:
        """What RESET leaves."""
        self.pin, self.puk, self.tries, self.puk_tries, self.most_tries = DEFAULT_PIN, DEFAULT_PUK, 3, 3, 3
        self.management_key = DEFAULT_MANAGEMENT_KEY
        self.management_kind = 0x0A if self.version >= (5, 7, 0) else 0x03
        self.keys: dict[int, Key] = {}
        self.objects = {
            ATTESTATION_OBJECT: tlv(0x70, self._attestation.public_bytes(Encoding.DER)) + tlv(0x71, b"\0") + tlv(0xFE)
        }

    def power(self) -> None:
        """Plugged in, or reset: nothing is selected and nobody is logged in."""
        self._applet = b""
        self._forget()
        self._rest = self._chained = b""
        self._stop.clear()

    def pull(self) -> None:
        """Whatever it waits for ends."""
        self._stop.set()

    def _forget(self) -> None:
        self._verified = self._fresh = self._managed = False
        self._witness = self._challenge = b""

    # -- transport --------------------------------------------------------------------------------

    def answer(self, apdu: bytes) -> bytes | None:
        """Answer one command APDU, short or extended; None: it was pulled out."""
        try:
            data, word = self._command(apdu)
        except Pulled:
            return None
        except Status as status:
            data, word = b"", status.word
        return data + word.to_bytes(2, "big")

    def _command(self, apdu: bytes) -> tuple[bytes, int]:
        if len(apdu) < 4:
            raise Status(WRONG_LENGTH)
        cla, ins, p1, p2 = apdu[:4]
        body, expected = _body(apdu[4:])
        if self.switches.endless and ins not in (0xA4, 0xFD):
            return b"x" * 16, 0x6110
        if ins == 0xC0:
            return self._chunk(256)
        if cla & 0x10:
            self._chained += body
            return b"", OK
        body, self._chained = self._chained + body, b""
        word = self.switches.word_for.get(f"{ins:02x}")
        if word is not None:
            raise Status(word)
        if ins == 0xA4:
            response = self._select(body)
        elif self._applet == MANAGEMENT and ins == 0x1D:
            response = self._device_info()
        elif self._applet == PIV:
            fresh, self._fresh = self._fresh, False
            response = self._piv(ins, p1, p2, body, fresh)
        else:
            raise Status(NO_INSTRUCTION)
        self._rest = response
        return self._chunk(max(expected, 256))

    def _chunk(self, size: int) -> tuple[bytes, int]:
        part, self._rest = self._rest[:size], self._rest[size:]
        return part, 0x6100 | min(len(self._rest), 0xFF) if self._rest else OK

    def _select(self, aid: bytes) -> bytes:
        for applet in (MANAGEMENT, PIV):
            if aid[:5] == applet[:5] and applet.startswith(aid[: len(applet)]):
                self._applet = applet
                self._forget()
                if applet == MANAGEMENT:
                    return f"Virtual mgr - FW version {'.'.join(map(str, self.version))}".encode()
                return tlv(0x61, tlv(0x4F, bytes.fromhex("000010000100")) + tlv(0x79, tlv(0x4F, PIV)))
        raise Status(NO_OBJECT)

    def _device_info(self) -> bytes:
        info = (
            tlv(0x01, b"\x02\x3f") + tlv(0x02, self.serial.to_bytes(4, "big")) + tlv(0x03, b"\x02\x3f")
            + tlv(0x04, b"\x01") + tlv(0x05, bytes(self.version)) + tlv(0x0A, b"\0")
        )  # fmt: skip
        return bytes((len(info),)) + info

    # -- the PIV applet -----------------------------------------------------------------------------

    def _piv(self, ins: int, p1: int, p2: int, body: bytes, fresh: bool) -> bytes:
        commands: dict[int, Callable[[], bytes]] = {
            0x20: lambda: self._verify(p1, p2, body),
            0x24: lambda: self._change(p2, body),
            0x2C: lambda: self._unblock(body),
            0x47: lambda: self._generate(p2, body),
            0x87: lambda: self._authenticate(p1, p2, body, fresh),
            0xCB: lambda: self._get_data(body),
            0xDB: lambda: self._put_data(body),
            0xF7: lambda: self._metadata(p2),
            0xF8: lambda: self.serial.to_bytes(4, "big"),
            0xF9: lambda: self._attest(p1),
            0xFA: lambda: self._set_tries(p1, p2),
            0xFB: self._reset,
            0xFD: lambda: bytes(self.version),
            0xFE: lambda: self._import(p1, p2, body),
            0xFF: lambda: self._set_management_key(body),
        }
        since = {0xF7: (5, 3, 0), 0xF8: (5, 0, 0), 0xF9: (4, 3, 0)}
        if ins not in commands or self.version < since.get(ins, (0, 0, 0)):
            raise Status(NO_INSTRUCTION)
        return commands[ins]()

    def _verify(self, p1: int, p2: int, body: bytes) -> bytes:
        if p2 != 0x80:
            raise Status(NOT_FOUND)
        if p1 == 0xFF:
            self._verified = False
            return b""
        if not body:
            if self._verified:
                return b""
            raise Status(BLOCKED if not self.tries else 0x63C0 | self.tries)
        self._check_pin(body)
        self._verified = self._fresh = True
        return b""

    def _check_pin(self, pin: bytes) -> None:
        self.verifications += 1
        if not self.tries:
            raise Status(BLOCKED)
        if pin != self.pin:
            self.tries -= 1
            self._verified = False
            raise Status(0x63C0 | self.tries if self.tries else BLOCKED)
        self.tries = self.most_tries

    def _check_puk(self, puk: bytes) -> None:
        if not self.puk_tries:
            raise Status(BLOCKED)
        if puk != self.puk:
            self.puk_tries -= 1
            raise Status(0x63C0 | self.puk_tries if self.puk_tries else BLOCKED)
        self.puk_tries = 3

    def _change(self, p2: int, body: bytes) -> bytes:
        if p2 == 0x80:
            self._check_pin(body[:8])
            self.pin = body[8:16]
        else:
            self._check_puk(body[:8])
            self.puk = body[8:16]
        return b""

    def _unblock(self, body: bytes) -> bytes:
        self._check_puk(body[:8])
        self.pin, self.tries = body[8:16], self.most_tries
        return b""

    def _set_tries(self, pin: int, puk: int) -> bytes:
        if not (self._managed and self._verified):
            raise Status(MISSING_PIN)
        self.pin, self.puk, self.most_tries, self.tries, self.puk_tries = DEFAULT_PIN, DEFAULT_PUK, pin, pin, puk
        return b""

    def _reset(self) -> bytes:
        if self.tries or self.puk_tries:
            raise Status(0x6985)
        self.factory_reset()
        return b""

    def _set_management_key(self, body: bytes) -> bytes:
        self._require_management()
        kind, slot, size = body[:3]
        if slot != MANAGEMENT_SLOT or MANAGEMENT_KEY_BYTES.get(kind) != size or len(body) != 3 + size:
            raise Status(WRONG_DATA)
        self.management_kind, self.management_key = kind, body[3:]
        return b""

    def _require_management(self) -> None:
        if not self._managed:
            raise Status(MISSING_PIN)

    def _metadata(self, slot: int) -> bytes:
        if slot == MANAGEMENT_SLOT:
            default = self.management_key == DEFAULT_MANAGEMENT_KEY
            return tlv(1, bytes((self.management_kind,))) + tlv(2, b"\0\1") + tlv(5, bytes((default,)))
        if slot in (0x80, 0x81):
            pin = slot == 0x80
            default = self.pin == DEFAULT_PIN if pin else self.puk == DEFAULT_PUK
            tries = (self.most_tries, self.tries) if pin else (3, self.puk_tries)
            return tlv(1, b"\xff") + tlv(5, bytes((default,))) + tlv(6, bytes(tries))
        key = self._key(slot)
        public = _public(key.private)
        origin = bytes((1 if key.generated else 2,))
        policies = bytes((key.pin_policy, key.touch_policy))
        return tlv(1, bytes((key.kind,))) + tlv(2, policies) + tlv(3, origin) + tlv(4, public)

    def _key(self, slot: int) -> Key:
        if slot not in self.keys:
            raise Status(NOT_FOUND)
        return self.keys[slot]

    def _policies(self, slot: int, fields: dict[int, bytes]) -> tuple[int, int]:
        default = {0x9C: PIN_ALWAYS, 0x9E: PIN_NEVER}.get(slot, PIN_ONCE)
        return fields.get(0xAA, b"\0")[0] or default, fields.get(0xAB, b"\0")[0] or TOUCH_NEVER

    def generate(self, slot: int, kind: str, pin_policy: str, touch_policy: str, *, imported: bool = False) -> bytes:
        """Put a key into a slot without any APDU, as if it had been there for long; returns its SubjectPublicKeyInfo."""
        number = KINDS[kind]
        private: Private
        if number in CURVES:
            private = ec.generate_private_key(CURVES[number])
        elif number in RSA_BITS:
            private = rsa.generate_private_key(65537, RSA_BITS[number])
        else:
            private = ed25519.Ed25519PrivateKey.generate()
        pin = {"NEVER": PIN_NEVER, "ONCE": PIN_ONCE, "ALWAYS": PIN_ALWAYS}[pin_policy]
        touch = {"NEVER": TOUCH_NEVER, "ALWAYS": TOUCH_ALWAYS, "CACHED": TOUCH_CACHED}[touch_policy]
        self.keys[slot] = Key(number, private, pin, touch, generated=not imported)
        return private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def _generate(self, slot: int, body: bytes) -> bytes:
        self._require_management()
        fields = dict(parse(dict(parse(body)).get(0xAC, b"")))
        kind = fields.get(0x80, b"\0")[0]
        if slot not in SLOTS:
            raise Status(WRONG_P1P2)
        private: Private
        if kind in CURVES:
            private = ec.generate_private_key(CURVES[kind])
        elif kind in RSA_BITS:
            private = rsa.generate_private_key(65537, RSA_BITS[kind])
        elif kind == ED25519 and self.version >= (5, 7, 0):
            private = ed25519.Ed25519PrivateKey.generate()
        else:
            raise Status(WRONG_DATA)
        self.keys[slot] = Key(kind, private, *self._policies(slot, fields), generated=True)
        return tlv(0x7F49, _public(private))

    def _import(self, kind: int, slot: int, body: bytes) -> bytes:
        self._require_management()
        fields = dict(parse(body))
        private: Private
        if kind in CURVES:
            private = ec.derive_private_key(int.from_bytes(fields[0x06], "big"), CURVES[kind])
        elif kind in RSA_BITS:
            p, q, dp, dq, qi = (int.from_bytes(fields[tag], "big") for tag in range(1, 6))
            d = pow(65537, -1, (p - 1) * (q - 1))
            private = rsa.RSAPrivateNumbers(p, q, d, dp, dq, qi, rsa.RSAPublicNumbers(65537, p * q)).private_key()
        elif kind == ED25519:
            private = ed25519.Ed25519PrivateKey.from_private_bytes(fields[0x07])
        else:
            raise Status(WRONG_DATA)
        self.keys[slot] = Key(kind, private, *self._policies(slot, fields), generated=False)
        return b""

    def _get_data(self, body: bytes) -> bytes:
        found = self.objects.get(dict(parse(body)).get(0x5C, b""))
        if not found:
            raise Status(NO_OBJECT)
        return tlv(0x53, found)

    def _put_data(self, body: bytes) -> bytes:
        self._require_management()
        fields = dict(parse(body))
        self.objects[fields[0x5C]] = fields.get(0x53, b"")
        return b""

    def _attest(self, slot: int) -> bytes:
        key = self._key(slot)
        if not key.generated:
            raise Status(WRONG_DATA)
        serial = self.switches.attested_serial or self.serial
        extensions = {
            "3": bytes(self.version),
            "7": tlv(2, serial.to_bytes(serial.bit_length() // 8 + 1, "big")),
            "8": bytes((key.pin_policy, key.touch_policy)),
            "9": b"\x01",
        }
        name = f"YubiKey PIV Attestation {slot:02x}"
        certificate = _certificate(
            name, key.private.public_key(), "Yubico PIV Attestation", self._attestation_private, extensions=extensions
        )
        return certificate.public_bytes(Encoding.DER)

    # -- GENERAL AUTHENTICATE -----------------------------------------------------------------------

    def _authenticate(self, kind: int, slot: int, body: bytes, fresh: bool) -> bytes:
        fields = dict(parse(dict(parse(body)).get(0x7C, b"")))
        if slot == MANAGEMENT_SLOT:
            return self._authenticate_management(kind, fields)
        key = self._key(slot)
        if kind != key.kind or 0x81 not in fields:
            raise Status(WRONG_DATA)
        if self.switches.hang_seconds:
            self._wait(self.switches.hang_seconds)
        if (key.pin_policy == PIN_ONCE and not self._verified) or (key.pin_policy == PIN_ALWAYS and not fresh):
            raise Status(MISSING_PIN)
        self._touch(key)
        if self.switches.pull_before_signing:
            raise Pulled
        if self.switches.sign_seconds:
            self._wait(self.switches.sign_seconds)
        signature = _private_operation(key, fields[0x81])
        self.signatures += 1
        if self.switches.pull_after_signing:
            raise Pulled
        if self.switches.wrong_signature:
            signature = _private_operation(key, bytes(len(fields[0x81])))
        if self.switches.garbage:
            return secrets.token_bytes(40)
        return tlv(0x7C, tlv(0x82, signature))

    def _touch(self, key: Key) -> None:
        """Wait for a touch; a device gives up after 15 s, with the status word of a missing PIN."""
        if key.touch_policy == TOUCH_NEVER:
            return
        if key.touch_policy == TOUCH_CACHED and time.monotonic() - key.touched_at < 15.0:
            return
        self.waiting = True
        try:
            deadline = time.monotonic() + self.switches.touch_wait
            while not self.switches.touch:
                if time.monotonic() > deadline:
                    raise Status(MISSING_PIN)
                self._wait(0.01)
        finally:
            self.waiting = False
        key.touched_at = time.monotonic()

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Pulled

    def _authenticate_management(self, kind: int, fields: dict[int, bytes]) -> bytes:
        if kind != self.management_kind:
            raise Status(WRONG_DATA)
        algorithm = TripleDES(self.management_key) if kind == 3 else algorithms.AES(self.management_key)
        cipher = Cipher(algorithm, modes.ECB())
        size = 8 if kind == 3 else 16
        if fields.get(0x80) == b"":
            self._witness = secrets.token_bytes(size)
            return tlv(0x7C, tlv(0x80, cipher.encryptor().update(self._witness)))
        if 0x80 in fields and 0x81 in fields:
            witness, self._witness = self._witness, b""
            if not witness or fields[0x80] != witness or len(fields[0x81]) != size:
                raise Status(MISSING_PIN)
            self._managed = True
            return tlv(0x7C, tlv(0x82, cipher.encryptor().update(fields[0x81])))
        raise Status(WRONG_DATA)


def _body(rest: bytes) -> tuple[bytes, int]:
    """Data and expected length of a command APDU's bytes after its header (ISO 7816-3, 12.1.3)."""
    if len(rest) <= 1:
        return b"", rest[0] or 256 if rest else 0
    if rest[0]:
        size = rest[0]
        return rest[1 : 1 + size], (rest[1 + size] or 256) if len(rest) > 1 + size else 0
    size = int.from_bytes(rest[1:3], "big")
    if len(rest) == 3:
        return b"", size or 65536
    tail = rest[3 + size :]
    return rest[3 : 3 + size], (int.from_bytes(tail, "big") or 65536) if tail else 65536


def _public(private: Private) -> bytes:
    """The public half as the applet writes it."""
    if isinstance(private, rsa.RSAPrivateKey):
        numbers = private.public_key().public_numbers()
        return tlv(0x81, numbers.n.to_bytes(private.key_size // 8, "big")) + tlv(0x82, b"\x01\x00\x01")
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return tlv(0x86, private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    return tlv(0x86, private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))


def _private_operation(key: Key, data: bytes) -> bytes:
    """What the slot's key makes of what it was sent: ECDSA over a digest, raw RSA, Ed25519 over a message."""
    if isinstance(key.private, ed25519.Ed25519PrivateKey):
        return key.private.sign(data)
    if isinstance(key.private, rsa.RSAPrivateKey):
        numbers = key.private.private_numbers()
        size = key.private.key_size // 8
        value = int.from_bytes(data, "big")
        if len(data) != size or value >= numbers.p * numbers.q:
            raise Status(WRONG_DATA)
        one, two = pow(value, numbers.dmp1, numbers.p), pow(value, numbers.dmq1, numbers.q)
        return (two + numbers.q * (numbers.iqmp * (one - two) % numbers.p)).to_bytes(size, "big")
    wanted = SHA256() if key.kind == 0x11 else SHA384()
    if len(data) > wanted.digest_size:
        raise Status(WRONG_DATA)
    return key.private.sign(data.rjust(wanted.digest_size, b"\0"), ec.ECDSA(utils.Prehashed(wanted)))
