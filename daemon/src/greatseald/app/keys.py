"""The keys that the configuration names, and what is known of each.

A key's public half is read from its token once the token is up, checked against its certificate,
and pinned: should the same reference mean another key later, the key is halted. Everything the
signing path needs of a key is in memory, so that it asks nobody.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from greatseal.signatures import Verifier, algorithms_of, load_public_key
from greatseal.verification import PublicKeyInvalid
from greatseald.domain.errors import (
    AlgorithmNotOffered,
    ArgumentInvalid,
    CertificateUnusable,
    GreatsealError,
    KeyHalted,
    KeyNotFound,
    LogUnavailable,
    TokenLocked,
    TokenUnavailable,
)
from greatseald.ports.halts import HaltsUnusable
from greatseald.ports.tokens import TokenState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from greatseal.algorithms import Algorithm
    from greatseal.signatures import PublicKey
    from greatseald.app.audit import AuditLog
    from greatseald.domain.keys import KeySettings
    from greatseald.ports.halts import Halts
    from greatseald.ports.tokens import Token, TokenKey

_log = structlog.get_logger("greatseald.keys")


@dataclass(slots=True, eq=False)
class SigningKey:
    """One key: its settings, its token, and its public half once it was read."""

    settings: KeySettings
    token: Token
    spki: bytes = b""
    spki_sha256: str = ""
    public_key: PublicKey | None = None
    algorithms: tuple[Algorithm, ...] = ()
    verifiers: dict[Algorithm, Verifier] = field(default_factory=dict)
    halted: str = ""
    halt_recorded: bool = False
    missing: GreatsealError | None = None
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    certificate_error: str = ""
    custody: str = ""
    attestation: tuple[bytes, ...] = ()
    custody_recorded: str = ""
    halts: Halts | None = None

    @property
    def name(self) -> str:
        """The bare name, without `keys/`."""
        return self.settings.name

    @property
    def state(self) -> str:
        """ENABLED, UNAVAILABLE or HALTED."""
        if self.halted:
            return "HALTED"
        return "ENABLED" if self.spki and self.token.state is TokenState.READY else "UNAVAILABLE"

    @property
    def detail(self) -> str:
        """Why it does not sign, for people; empty while it does."""
        if self.halted:
            return self.halted
        if self.token.state is not TokenState.READY:
            return f"token {self.token.name} is {self.token.state.value}: {self.token.detail}"
        return str(self.missing) if self.missing is not None else self.certificate_error or self.token.awaited

    def halt(self, why: str) -> None:
        """Sign no more with this key until an operator releases it, restarts included."""
        self.halted = self.halted or why
        _log.error("key_halted", key=self.settings.resource_name, why=why)

    def choose(self, algorithm: Algorithm | None, now: float) -> Algorithm:
        """Return the algorithm to sign with: the one asked for, or the key's default.

        Raises:
            AlgorithmNotOffered: not in this way; the message lists what it offers.
            CertificateUnusable: its certificate is expired, not yet valid or of another key.
        """
        chosen = self.settings.algorithms[0] if algorithm is None else algorithm
        if chosen not in self.settings.algorithms:
            offered = ", ".join(each.value for each in self.settings.algorithms)
            message = f"{self.settings.resource_name} does not sign with {chosen.value}: it offers {offered}"
            raise AlgorithmNotOffered(message, offered=offered)
        if self.public_key is not None and chosen not in self.algorithms:
            able = ", ".join(each.value for each in self.algorithms) or "nothing that the daemon knows"
            message = (
                f"{self.settings.resource_name} is configured for {chosen.value}, and the key in token "
                f"{self.token.name} can do {able}"
            )
            raise AlgorithmNotOffered(message, offered=able)
        self._require_certificate(now)
        return chosen

    def unready(self) -> GreatsealError | None:
        """Return why the key cannot sign now, or None if it can."""
        if self.public_key is not None and not self.halted and self.token.state is TokenState.READY:
            return None
        if self.halted:
            message = f"{self.settings.resource_name} is halted: {self.halted}"
            return KeyHalted(message, key=self.settings.resource_name)
        if self.token.state is TokenState.LOCKED:
            message = f"token {self.token.name} is locked: {self.token.detail}"
            return TokenLocked(message, token=self.token.name)
        if self.missing is not None and self.token.state is TokenState.READY:
            return self.missing
        message = f"token {self.token.name} is {self.token.state.value}: {self.token.detail or 'it is being reached'}"
        return TokenUnavailable(message, token=self.token.name)

    def _require_certificate(self, now: float) -> None:
        if self.certificate_error:
            raise CertificateUnusable(self.certificate_error, key=self.settings.resource_name)
        if self.valid_until is None or self.valid_from is None:
            return
        moment = datetime.fromtimestamp(now, UTC)
        if moment > self.valid_until:
            message = f"the certificate of {self.settings.resource_name} expired at {self.valid_until.isoformat()}: install a new chain and send SIGHUP"
            raise CertificateUnusable(message, key=self.settings.resource_name)
        if moment < self.valid_from:
            message = f"the certificate of {self.settings.resource_name} is not valid before {self.valid_from.isoformat()}: check the clock"
            raise CertificateUnusable(message, key=self.settings.resource_name)

    def learn(self, found: TokenKey) -> None:
        """Take what the token says of the key, once; later it must say the same."""
        if self.spki and self.spki != found.spki:
            self.halt(
                f"{self.settings.uri} in token {self.token.name} now means another key than when the daemon started"
            )
            return
        self._take(found)

    def release(self, found: TokenKey) -> None:
        """Sign again, with the key that the token has now."""
        self._take(found)
        self.halted = ""
        self.halt_recorded = False

    def _take(self, found: TokenKey) -> None:
        public_key = load_public_key(found.spki)
        fitting = algorithms_of(public_key)
        self.algorithms = tuple(algorithm for algorithm in found.algorithms if algorithm in fitting)
        self.spki = found.spki
        self.spki_sha256 = hashlib.sha256(found.spki).hexdigest()
        self.public_key = public_key
        self.verifiers = {algorithm: Verifier(public_key, algorithm) for algorithm in self.algorithms}
        self.missing = None
        self.check_certificate()

    def check_certificate(self) -> None:
        """Compare the configured leaf certificate, if any, with the token's key; keep its validity."""
        self.valid_from = self.valid_until = None
        self.certificate_error = ""
        if not self.settings.certificate_chain:
            return
        leaf = x509.load_der_x509_certificate(self.settings.certificate_chain[0])
        self.valid_from, self.valid_until = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        if self.spki and leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != self.spki:
            self.certificate_error = (
                f"the certificate_chain of {self.settings.resource_name} starts with a certificate of another key "
                "than the token's: its leaf must be issued for the public key that `greatseal keys public` prints"
            )


async def record_halt(log: AuditLog, key: SigningKey) -> None:
    """Remember a key that was halted, and commit its `admin` entry, once for each halt and boot."""
    if key.halted and not key.halt_recorded:
        key.halt_recorded = True
        if key.halts is not None:
            try:
                await asyncio.to_thread(key.halts.add, key.name, key.halted)
            except HaltsUnusable as error:  # it is halted all the same, until the next start
                _log.error("halt_not_remembered", key=key.settings.resource_name, why=str(error))
        await log.record_admin("key", key=key.settings.resource_name, state="halted", why=key.halted)


async def _record_custody(log: AuditLog, key: SigningKey) -> None:
    """Commit the `admin` entry of how a token attests that it holds a key, once in a boot for what it says."""
    if key.custody and not key.halted and key.custody != key.custody_recorded:
        key.custody_recorded = key.custody
        await log.record_admin(
            "key",
            key=key.settings.resource_name,
            state="attested",
            token=key.token.name,
            spki_sha256=key.spki_sha256,
            custody=key.custody,
            attestation=[base64.b64encode(each).decode("ascii") for each in key.attestation],
        )


@dataclass(slots=True)
class KeyRing:
    """Every configured key by its bare name."""

    keys: dict[str, SigningKey] = field(default_factory=dict)

    @classmethod
    def build(cls, settings: Iterable[KeySettings], tokens: dict[str, Token], halts: Halts | None = None) -> KeyRing:
        """Make the ring; nothing is read from tokens yet. What `halts` remembers is halted from the start.

        Raises:
            HaltsUnusable: which keys are halted cannot be read.
        """
        ring = cls({each.name: SigningKey(each, tokens[each.token], halts=halts) for each in settings})
        remembered = halts.read() if halts is not None else {}
        for key in ring.keys.values():
            if key.name in remembered:
                key.halt(remembered[key.name])
        return ring

    def find(self, name: str, version: int | None = None) -> SigningKey:
        """Return a key by its bare name. Ask only after authorisation: the answer tells what exists.

        Raises:
            KeyNotFound: no such key or version.
        """
        key = self.keys.get(name)
        if key is None:
            message = f"there is no key keys/{name}: `greatseal keys list` shows those that you may use"
            raise KeyNotFound(message, key=f"keys/{name}")
        if version not in {None, 1}:
            message = f"keys/{name} has one version, keys/{name}/versions/1, and no version {version}"
            raise KeyNotFound(message, key=f"keys/{name}/versions/{version}")
        return key

    async def release(self, name: str, reason: str, log: AuditLog) -> tuple[str, str]:
        """Put a halted key back to work, as the operator asks; the log says so before it holds.

        The key is read from its token anew, and the entry names the public key that is trusted from
        now on. Returns why it was halted, and the SHA-256 of that public key (hexadecimal).

        Raises:
            KeyNotFound: there is no such key.
            ArgumentInvalid: it is not halted.
            TokenUnavailable, TokenLocked: its token cannot say which key it is; it stays halted.
            LogUnavailable: the release cannot be recorded or remembered; it stays halted.
        """
        key = self.find(name)
        if not key.halted:
            message = f"{key.settings.resource_name} is not halted: there is nothing to release"
            raise ArgumentInvalid(message, field="name")
        await record_halt(log, key)
        found = await key.token.find_key(key.settings.uri)
        spki_sha256, why = hashlib.sha256(found.spki).hexdigest(), key.halted
        try:
            load_public_key(found.spki)
        except PublicKeyInvalid as error:
            message = f"the public key of {key.settings.resource_name} cannot be read: {error}"
            raise TokenUnavailable(message) from error
        await log.record_admin(
            "key",
            key=key.settings.resource_name,
            state="released",
            halted=why,
            why=reason,
            spki_sha256=spki_sha256,
        )
        if key.halts is not None:
            try:
                await asyncio.to_thread(key.halts.remove, key.name)
            except HaltsUnusable as error:
                raise LogUnavailable(f"{key.settings.resource_name} stays halted: {error}") from error
        key.release(found)
        _log.warning("key_released", key=key.settings.resource_name, halted=why, why=reason)
        return why, spki_sha256

    def update(self, settings: Iterable[KeySettings]) -> list[str]:
        """Take what a reload may change of a key: its certificate chain and predicate types. Returns `keys/{key}` of those.

        A key that is new, gone, or of another token, object, algorithm or number of witnesses waits for a restart.
        """
        changed = []
        for new in settings:
            key = self.keys.get(new.name)
            if key is None or new == key.settings:
                continue
            old = key.settings
            if (new.token, new.uri, new.algorithms) != (old.token, old.uri, old.algorithms):
                continue
            if new.witnesses != old.witnesses:
                continue
            key.settings = new
            key.check_certificate()
            changed.append(new.resource_name)
        return changed

    async def read_token(self, token: Token, log: AuditLog) -> None:
        """Look up every key of a token that is up, and record those that this halted. Called whenever one comes up."""
        keys = [key for key in self.keys.values() if key.token is token]
        await asyncio.gather(*(self._read(key) for key in keys))
        for key in keys:
            await record_halt(log, key)
            await _record_custody(log, key)

    async def _read(self, key: SigningKey) -> None:
        try:
            found = await key.token.find_key(key.settings.uri)
            key.learn(found)
            key.custody, key.attestation = found.custody, found.attestation
        except GreatsealError as error:
            key.missing = error
            _log.warning("key_unavailable", key=key.settings.resource_name, token=key.token.name, why=str(error))
        except PublicKeyInvalid as error:
            key.missing = TokenUnavailable(f"the public key of {key.settings.resource_name} cannot be read: {error}")
            _log.warning("key_unreadable", key=key.settings.resource_name, token=key.token.name, why=str(error))
