"""The keys: each a name, a policy and numbered versions, one of which is primary.

`keys/NAME` signs with the primary version if that can sign now, else with another one that is
ENABLED; `keys/NAME/versions/N` signs with that one alone.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from greatseal.signatures import load_public_key
from greatseal.verification import PublicKeyInvalid
from greatseald.app.versions import Holding, SigningVersion, record_halt
from greatseald.domain.errors import (
    AlgorithmNotOffered,
    ArgumentInvalid,
    KeyNotFound,
    LogUnavailable,
    TokenUnavailable,
)
from greatseald.domain.keys import Holder, parse_key_name, version_name
from greatseald.domain.lifecycle import VersionState
from greatseald.ports.halts import HaltsUnusable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from greatseal.algorithms import Algorithm
    from greatseald.app.audit import AuditLog
    from greatseald.domain.keys import KeySettings
    from greatseald.ports.halts import Halts
    from greatseald.ports.tokens import Token

_log = structlog.get_logger("greatseald.keys")


@dataclass(slots=True, eq=False)
class SigningKey:
    """One key: its policy and its versions by number.

    `witnesses` is how many must have cosigned a checkpoint over a signature before it is released.
    """

    name: str
    predicate_types: tuple[str, ...] = ()
    primary: int = 1
    versions: dict[int, SigningVersion] = field(default_factory=dict)
    witnesses: int = 0

    @property
    def resource_name(self) -> str:
        """`keys/{key}`."""
        return f"keys/{self.name}"

    @property
    def primary_version(self) -> SigningVersion:
        """The version that is asked first."""
        return self.versions[self.primary]

    def version(self, number: int | None) -> SigningVersion:
        """Return a version by its number, the primary one for None.

        Raises:
            KeyNotFound: there is no such version.
        """
        if number is None:
            return self.primary_version
        found = self.versions.get(number)
        if found is None:
            newest = version_name(self.name, max(self.versions))
            message = f"{self.resource_name} has no version {number}: its newest is {newest}"
            raise KeyNotFound(message, key=version_name(self.name, number))
        return found

    def choose(self, number: int | None, algorithm: Algorithm | None, now: float) -> tuple[SigningVersion, Algorithm]:
        """Return the version and the algorithm to sign with.

        Without a number it is the primary version, or another ENABLED one that offers the algorithm while the
        primary cannot sign. A version that cannot sign is returned all the same where there is no other:
        a request that was answered before needs none.

        Raises:
            KeyNotFound: there is no such version.
            AlgorithmNotOffered, CertificateUnusable: as `SigningVersion.choose`.
        """
        first = self.version(number)
        if number is not None or (first.state is VersionState.ENABLED and first.signs) or len(self.versions) == 1:
            return first, first.choose(algorithm, now)
        wanted = first.offered[0] if algorithm is None else algorithm
        for other in self.versions.values():
            if other is not first and other.signs and wanted in other.offered:
                try:
                    return other, other.choose(wanted, now)
                except AlgorithmNotOffered:  # its token does not do what its record says
                    continue
        return first, first.choose(algorithm, now)


async def _record_custody(log: AuditLog, version: SigningVersion, holding: Holding) -> None:
    """Commit the `admin` entry of how a token attests that it holds a key, once in a boot for what it says."""
    if holding.custody and not version.halted and holding.custody != holding.custody_recorded:
        holding.custody_recorded = holding.custody
        await log.record_admin(
            "key",
            key=version.resource_name,
            version=version.number,
            state="attested",
            token=holding.token.name,
            spki_sha256=version.spki_sha256,
            custody=holding.custody,
            attestation=[base64.b64encode(each).decode("ascii") for each in holding.attestation],
        )


@dataclass(slots=True)
class KeyRing:
    """Every key by its bare name."""

    keys: dict[str, SigningKey] = field(default_factory=dict)

    @classmethod
    def build(cls, settings: Iterable[KeySettings], tokens: dict[str, Token], halts: Halts | None = None) -> KeyRing:
        """Make the ring; nothing is read from tokens yet. What `halts` remembers is halted from the start.

        Raises:
            HaltsUnusable: which keys are halted cannot be read.
        """
        ring = cls()
        remembered = halts.read() if halts is not None else {}
        for each in settings:
            holdings = [Holding(tokens[holder.token], holder.uri) for holder in each.holders]
            version = SigningVersion(
                each.name, 1, each.algorithms, holdings, certificate_chain=each.certificate_chain, halts=halts
            )
            version.check_certificate()
            ring.keys[each.name] = SigningKey(each.name, each.predicate_types, 1, {1: version}, each.witnesses)
            if version.halt_name in remembered:
                version.halt(remembered[version.halt_name])
        return ring

    def versions(self) -> Iterator[SigningVersion]:
        """Every version of every key."""
        return (version for key in self.keys.values() for version in key.versions.values())

    def find(self, name: str) -> SigningKey:
        """Return a key by its bare name. Ask only after authorisation: the answer tells what exists.

        Raises:
            KeyNotFound: no such key.
        """
        key = self.keys.get(name)
        if key is None:
            message = f"there is no key keys/{name}: `greatseal keys list` shows those that you may use"
            raise KeyNotFound(message, key=f"keys/{name}")
        return key

    async def release(self, name: str, reason: str, log: AuditLog) -> tuple[str, str]:
        """Put a halted key back to work, as the operator asks; the log says so before it holds.

        `name` is the key's, or that of one of its versions, both without `keys/`. The key is read from its
        token anew, and the entry names the public key that is trusted from now on. Returns why it was
        halted, and the SHA-256 of that public key (hexadecimal).

        Raises:
            KeyNotFound: there is no such key.
            ArgumentInvalid: it is not halted.
            TokenUnavailable, TokenLocked: its token cannot say which key it is; it stays halted.
            LogUnavailable: the release cannot be recorded or remembered; it stays halted.
        """
        version = self._halted_version(name)
        await record_halt(log, version)
        holding = version.holdings[0]
        found = await holding.token.find_key(holding.uri)
        spki_sha256, why = hashlib.sha256(found.spki).hexdigest(), version.halted
        try:
            load_public_key(found.spki)
        except PublicKeyInvalid as error:
            message = f"the public key of {version.resource_name} cannot be read: {error}"
            raise TokenUnavailable(message) from error
        await log.record_admin(
            "key",
            key=version.resource_name,
            version=version.number,
            state="released",
            halted=why,
            why=reason,
            spki_sha256=spki_sha256,
        )
        if version.halts is not None:
            try:
                await asyncio.to_thread(version.halts.remove, version.halt_name)
            except HaltsUnusable as error:
                raise LogUnavailable(f"{version.resource_name} stays halted: {error}") from error
        version.release(holding, found)
        _log.warning("key_released", key=version.name, halted=why, why=reason)
        return why, spki_sha256

    def _halted_version(self, name: str) -> SigningVersion:
        bare, number = parse_key_name(f"keys/{name}")
        key = self.find(bare)
        halted = [each for each in key.versions.values() if each.halted and number in {None, each.number}]
        if not halted:
            message = f"{key.resource_name if number is None else key.version(number).name} is not halted: there is nothing to release"
            raise ArgumentInvalid(message, field="name")
        if len(halted) > 1:
            message = f"{key.resource_name} has several halted versions: name one of {', '.join(each.name for each in halted)}"
            raise ArgumentInvalid(message, field="name")
        return halted[0]

    def update(self, settings: Iterable[KeySettings]) -> list[str]:
        """Take what a reload may change of a key: its certificate chain and predicate types. Returns `keys/{key}` of those.

        A key that is new, gone, or of another token, object, algorithm or number of witnesses waits for a restart.
        """
        changed = []
        for new in settings:
            key = self.keys.get(new.name)
            version = key.versions.get(1) if key is not None else None
            if key is None or version is None or not _is_of(version, new) or new.witnesses != key.witnesses:
                continue
            if (new.predicate_types, new.certificate_chain) == (key.predicate_types, version.certificate_chain):
                continue
            key.predicate_types = new.predicate_types
            version.certificate_chain = new.certificate_chain
            version.check_certificate()
            changed.append(new.resource_name)
        return changed

    async def read_token(self, token: Token, log: AuditLog) -> None:
        """Look up every key of a token that is up, and record those that this halted. Called whenever one comes up."""
        held = [(version, [each for each in version.holdings if each.token is token]) for version in self.versions()]
        held = [(version, holdings) for version, holdings in held if holdings]
        await asyncio.gather(*(version.read(holdings) for version, holdings in held))
        for version, holdings in held:
            await record_halt(log, version)
            for holding in holdings:
                await _record_custody(log, version, holding)


def _is_of(version: SigningVersion, settings: KeySettings) -> bool:
    """Whether a version is the one that the configuration means."""
    holders: tuple[Holder, ...] = tuple(each.holder for each in version.holdings)
    return (holders, version.offered) == (settings.holders, settings.algorithms)
