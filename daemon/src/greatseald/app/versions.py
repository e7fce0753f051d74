"""Key versions at work: an immutable key pair, what state it is in, and the tokens that hold it.

A version's public half is read from its tokens once they are up, checked against its certificate, and
pinned: should a reference mean another key later, that token's answer is refused. Everything that the
signing path needs of a version is in memory, so that it asks nobody.
"""

from __future__ import annotations

import asyncio
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
    CertificateUnusable,
    GreatsealError,
    KeyHalted,
    KeyNotEnabled,
    TokenLocked,
    TokenUnavailable,
)
from greatseald.domain.keys import Holder, version_name
from greatseald.domain.lifecycle import VersionState
from greatseald.ports.halts import HaltsUnusable
from greatseald.ports.tokens import TokenState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greatseal.algorithms import Algorithm
    from greatseal.signatures import PublicKey
    from greatseald.app.audit import AuditLog
    from greatseald.ports.halts import Halts
    from greatseald.ports.tokens import Token, TokenKey

_log = structlog.get_logger("greatseald.keys")


@dataclass(slots=True, eq=False)
class Holding:
    """One token that holds a version's key pair, and what that token said of it."""

    token: Token
    uri: str
    algorithms: tuple[Algorithm, ...] = ()
    found: bool = False
    missing: GreatsealError | None = None
    custody: str = ""
    attestation: tuple[bytes, ...] = ()
    custody_recorded: str = ""

    @property
    def ready(self) -> bool:
        """Whether the token is up and has shown the key."""
        return self.found and self.token.state is TokenState.READY

    @property
    def holder(self) -> Holder:
        """The token's name and the reference."""
        return Holder(self.token.name, self.uri)

    @property
    def detail(self) -> str:
        """Why it does not sign, for people; empty while it does."""
        if self.token.state is not TokenState.READY:
            return f"token {self.token.name} is {self.token.state.value}: {self.token.detail}"
        return str(self.missing) if self.missing is not None else ""

    def unready(self) -> GreatsealError | None:
        """Return why it cannot sign now, or None if it can."""
        if self.ready:
            return None
        if self.token.state is TokenState.LOCKED:
            message = f"token {self.token.name} is locked: {self.token.detail}"
            return TokenLocked(message, token=self.token.name)
        if self.missing is not None and self.token.state is TokenState.READY:
            return self.missing
        message = f"token {self.token.name} is {self.token.state.value}: {self.token.detail or 'it is being reached'}"
        return TokenUnavailable(message, token=self.token.name)


@dataclass(slots=True, eq=False)
class SigningVersion:
    """One version of a key: its state, its holders, and its public half once that is known.

    `offered` is what it may sign with, the default first; `algorithms` what of it the key pair fits.
    """

    key: str
    number: int
    offered: tuple[Algorithm, ...]
    holdings: list[Holding]
    state: VersionState = VersionState.ENABLED
    certificate_chain: tuple[bytes, ...] = ()
    spki: bytes = b""
    spki_sha256: str = ""
    public_key: PublicKey | None = None
    verifiers: dict[Algorithm, Verifier] = field(default_factory=dict)
    halted: str = ""
    halt_recorded: bool = False
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    certificate_error: str = ""
    halts: Halts | None = None

    @property
    def name(self) -> str:
        """`keys/{key}/versions/{n}`."""
        return version_name(self.key, self.number)

    @property
    def resource_name(self) -> str:
        """`keys/{key}`: the key that it is a version of."""
        return f"keys/{self.key}"

    @property
    def halt_name(self) -> str:
        """What the memory of halted keys calls it: the bare name of the key for its first version."""
        return self.key if self.number == 1 else f"{self.key}/versions/{self.number}"

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """What one of its tokens at least can sign with, of what the key pair fits."""
        able = {algorithm for holding in self.holdings for algorithm in holding.algorithms}
        return tuple(algorithm for algorithm in self.verifiers if algorithm in able)

    @property
    def signs(self) -> bool:
        """Whether it can sign now."""
        return self.unready() is None

    @property
    def condition(self) -> str:
        """ENABLED, UNAVAILABLE or HALTED, or the state in which it does not sign."""
        if self.halted:
            return "HALTED"
        if self.state is not VersionState.ENABLED:
            return str(self.state.value)
        return "ENABLED" if any(holding.ready for holding in self.holdings) else "UNAVAILABLE"

    @property
    def detail(self) -> str:
        """Why it does not sign, for people; empty while it does."""
        if self.halted:
            return self.halted
        if self.state is not VersionState.ENABLED:
            return f"{self.name} is {self.state.value}"
        if not any(holding.ready for holding in self.holdings):
            return "; ".join(holding.detail for holding in self.holdings if holding.detail)
        if self.certificate_error:
            return self.certificate_error
        refused = (str(each.missing) for each in self.holdings if each.missing is not None and not each.found)
        return "; ".join((*refused, *(each.token.awaited for each in self.holdings if each.token.awaited)))

    def halt(self, why: str) -> None:
        """Sign no more with this version until an operator releases it, restarts included."""
        self.halted = self.halted or why
        _log.error("key_halted", key=self.name, why=why)

    def choose(self, algorithm: Algorithm | None, now: float) -> Algorithm:
        """Return the algorithm to sign with: the one asked for, or the version's default.

        Raises:
            AlgorithmNotOffered: not in this way; the message lists what it offers.
            CertificateUnusable: its certificate is expired, not yet valid or of another key.
        """
        chosen = self.offered[0] if algorithm is None else algorithm
        if chosen not in self.offered:
            offered = ", ".join(each.value for each in self.offered)
            message = f"{self.resource_name} does not sign with {chosen.value}: it offers {offered}"
            raise AlgorithmNotOffered(message, offered=offered)
        if not self._can(chosen):
            able = ", ".join(each.value for each in self.algorithms) or "nothing that the daemon knows"
            message = (
                f"{self.resource_name} is configured for {chosen.value}, and the key in token "
                f"{', '.join(holding.token.name for holding in self.holdings)} can do {able}"
            )
            raise AlgorithmNotOffered(message, offered=able)
        problem = self._certificate_problem(now)
        if problem is not None:
            raise problem
        return chosen

    def may_sign(self, algorithm: Algorithm, now: float) -> bool:
        """Whether it may sign so: what `choose` and `unready` would say, but for whether a token is ready."""
        return (
            self.state is VersionState.ENABLED
            and not self.halted
            and algorithm in self.offered
            and self._can(algorithm)
            and self._certificate_problem(now) is None
        )

    def _can(self, algorithm: Algorithm) -> bool:
        """Whether one of the tokens that have shown the key can do this; True while none has."""
        found = [holding for holding in self.holdings if holding.found]
        return not found or any(algorithm in holding.algorithms for holding in found)

    def holding_for(self, algorithm: Algorithm) -> Holding:
        """Return the token to ask: the first that is ready and can do it; the first of all where none is."""
        for holding in self.holdings:
            if holding.ready and algorithm in holding.algorithms:
                return holding
        return self.holdings[0]

    def unready(self) -> GreatsealError | None:
        """Return why it cannot sign now, or None if it can."""
        if self.halted:
            message = f"{self.resource_name} is halted: {self.halted}"
            return KeyHalted(message, key=self.resource_name)
        if self.state is not VersionState.ENABLED:
            message = f"{self.name} is {self.state.value}, and only a version that is ENABLED signs"
            return KeyNotEnabled(message, key=self.resource_name, state=self.state.value)
        for holding in self.holdings:
            if holding.ready:
                return None
        return self.holdings[0].unready()

    def _certificate_problem(self, now: float) -> CertificateUnusable | None:
        if self.certificate_error:
            return CertificateUnusable(self.certificate_error, key=self.resource_name)
        if self.valid_until is None or self.valid_from is None:
            return None
        moment = datetime.fromtimestamp(now, UTC)
        if moment > self.valid_until:
            message = f"the certificate of {self.resource_name} expired at {self.valid_until.isoformat()}: install a new chain and send SIGHUP"
        elif moment < self.valid_from:
            message = f"the certificate of {self.resource_name} is not valid before {self.valid_from.isoformat()}: check the clock"
        else:
            return None
        return CertificateUnusable(message, key=self.resource_name)

    def learn(self, holding: Holding, found: TokenKey) -> None:
        """Take what a token says of the key: the public half once, and later it must say the same.

        Raises:
            PublicKeyInvalid: the public half is of no kind that is known.
        """
        fitting = algorithms_of(load_public_key(found.spki))
        if self.spki and self.spki != found.spki:
            other = next((each for each in self.holdings if each.found and each is not holding), None)
            seen = f"token {other.token.name} holds" if other is not None else "when the daemon started"
            why = f"{holding.uri} in token {holding.token.name} now means another key than {seen}"
            holding.found, holding.missing = False, TokenUnavailable(why, token=holding.token.name)
            _log.error("holder_refused", key=self.name, token=holding.token.name, why=why)
            if len(self.holdings) == 1:
                self.halt(why)
            return
        holding.found, holding.missing = True, None
        holding.algorithms = tuple(algorithm for algorithm in found.algorithms if algorithm in fitting)
        holding.custody, holding.attestation = found.custody, found.attestation
        if not self.spki:
            self.pin(found.spki)

    def pin(self, spki: bytes) -> None:
        """Know the public half from now on.

        Raises:
            PublicKeyInvalid: it is of no kind that is known.
        """
        public_key = load_public_key(spki)
        self.spki = spki
        self.spki_sha256 = hashlib.sha256(spki).hexdigest()
        self.verifiers = {algorithm: Verifier(public_key, algorithm) for algorithm in algorithms_of(public_key)}
        self.public_key = public_key
        self.check_certificate()

    def release(self, holding: Holding, found: TokenKey) -> None:
        """Sign again, with the key that the token has now."""
        self.spki = b""
        self.learn(holding, found)
        self.halted = ""
        self.halt_recorded = False

    def check_certificate(self) -> None:
        """Compare the leaf certificate, if any, with the key pair; keep its validity."""
        self.valid_from = self.valid_until = None
        self.certificate_error = ""
        if not self.certificate_chain:
            return
        leaf = x509.load_der_x509_certificate(self.certificate_chain[0])
        self.valid_from, self.valid_until = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        if self.spki and leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != self.spki:
            self.certificate_error = (
                f"the certificate_chain of {self.resource_name} starts with a certificate of another key "
                "than the token's: its leaf must be issued for the public key that `greatseal keys public` prints"
            )

    async def read(self, holdings: Sequence[Holding]) -> None:
        """Look the key up in these of its tokens."""
        for holding in holdings:
            try:
                self.learn(holding, await holding.token.find_key(holding.uri))
            except GreatsealError as error:
                holding.missing = error
                _log.warning("key_unavailable", key=self.name, token=holding.token.name, why=str(error))
            except PublicKeyInvalid as error:
                holding.missing = TokenUnavailable(f"the public key of {self.resource_name} cannot be read: {error}")
                _log.warning("key_unreadable", key=self.name, token=holding.token.name, why=str(error))


async def record_halt(log: AuditLog, version: SigningVersion) -> None:
    """Remember a version that was halted, and commit its `admin` entry, once for each halt and boot."""
    if version.halted and not version.halt_recorded:
        version.halt_recorded = True
        if version.halts is not None:
            try:
                await asyncio.to_thread(version.halts.add, version.halt_name, version.halted)
            except HaltsUnusable as error:  # it is halted all the same, until the next start
                _log.error("halt_not_remembered", key=version.name, why=str(error))
        await log.record_admin(
            "key", key=version.resource_name, version=version.number, state="halted", why=version.halted
        )
