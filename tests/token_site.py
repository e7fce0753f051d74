"""A SoftHSM token of the test's own, optionally behind the PKCS#11 shim, and a supervised host for it.

site = TokenSite.create(tmp_path, [("release", "ec-p256")])
async with site.token() as token:
    results = await site.sign(token, "release", Algorithm.ECDSA_P256_SHA256, site.operations(256))
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import itertools
import os
import secrets
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from pkcs11_shim import Shim

from greatseal.algorithms import Algorithm
from greatseald.adapters.tokens.ledger import LedgerRecord, read_ledger
from greatseald.adapters.tokens.provision import find_softhsm, provision_softhsm, softhsm_environment
from greatseald.adapters.tokens.supervisor import SupervisedToken
from greatseald.domain.tokens import TokenSettings
from greatseald.ports.tokens import NotSigned, Operation, OperatorAct, Signed, SignResult, TokenState

P256 = Algorithm.ECDSA_P256_SHA256
START_SECONDS = 30.0


@dataclass
class TokenSite:
    """A provisioned token in `directory`; `states` and `acts` collect what its supervisors said."""

    directory: Path
    spki: dict[str, bytes]
    shim: Shim | None = None
    states: list[tuple[TokenState, str]] = field(default_factory=list)
    fatal: list[BaseException] = field(default_factory=list)
    acts: list[OperatorAct] = field(default_factory=list)
    _index: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    def create(
        cls, directory: Path, keys: Sequence[tuple[str, str]] = (("release", "ec-p256"),), *, shim: bool = False
    ) -> TokenSite:
        made = provision_softhsm(directory / "soft", find_softhsm(), "greatseal", keys)
        return cls(directory / "soft", made, Shim(directory / "shim") if shim else None)

    def settings(self, **changes: object) -> TokenSettings:
        chosen: dict[str, object] = {
            "name": "soft",
            "uri": "pkcs11:token=greatseal",
            "module": Path(self.shim.module) if self.shim else find_softhsm(),
            "state_dir": self.directory / "state",
            "environment": softhsm_environment(self.directory) | (self.shim.environment if self.shim else {}),
            "pin_file": self.directory / "pin",
            "sessions": 2,
            "operation_timeout": 20.0,
            "lockout": "none",
        }
        return TokenSettings(**(chosen | changes))  # type: ignore[arg-type]

    @asynccontextmanager
    async def token(self, *, ready: bool = True, **changes: object) -> AsyncIterator[SupervisedToken]:
        """A started token, stopped afterwards; `ready`: wait until it is, and insist."""
        token = SupervisedToken(
            self.settings(**changes),
            on_state=lambda _, state, detail: self.states.append((state, detail)),
            on_act=self._record,
            on_fatal=self.fatal.append,
        )
        await token.start()
        try:
            if ready:
                assert await token.settled(START_SECONDS) is TokenState.READY, token.detail
            yield token
        finally:
            await token.stop()
            assert not self.fatal

    async def _record(self, _token: str, act: OperatorAct) -> None:
        self.acts.append(act)

    def operations(self, count: int, size: int = 32) -> list[Operation]:
        """Operations of intents that were never used before."""
        return [Operation(next(self._index), secrets.token_bytes(32), secrets.token_bytes(size)) for _ in range(count)]

    def message_operation(self, message: bytes) -> Operation:
        """An operation over a whole message."""
        return Operation(next(self._index), secrets.token_bytes(32), hashlib.sha256(message).digest(), message)

    async def sign(
        self, token: SupervisedToken, label: str, algorithm: Algorithm, operations: Sequence[Operation]
    ) -> list[SignResult]:
        """Every result in the operations' order; each must come exactly once."""
        results: dict[int, SignResult] = {}
        async for chunk in token.sign(f"pkcs11:object={label}", algorithm, operations):
            for result in chunk:
                assert result.position not in results
                results[result.position] = result
        assert sorted(results) == list(range(len(operations)))
        return [results[position] for position in range(len(operations))]

    def verify(
        self, label: str, algorithm: Algorithm, operations: Sequence[Operation], results: Sequence[SignResult]
    ) -> None:
        """Every result is a signature over its operation's digest by the key with this label."""
        for operation, result in zip(operations, results, strict=True):
            verify_signature(self.spki[label], algorithm, operation, result)

    def ledger(self) -> list[LedgerRecord]:
        return list(read_ledger(self.directory / "state" / "ledger"))


def verify_signature(spki: bytes, algorithm: Algorithm, operation: Operation, result: SignResult) -> None:
    """The result is a signature over the operation's digest or message by this key."""
    assert isinstance(result, Signed), result
    public = load_der_public_key(spki)
    kind = {32: SHA256(), 48: SHA384(), 64: SHA512()}[algorithm.digest_size]
    prehashed = utils.Prehashed(kind)
    if algorithm.is_pure:
        assert isinstance(public, ed25519.Ed25519PublicKey)
        public.verify(result.signature, operation.message)
        return
    if algorithm.is_ecdsa:
        assert isinstance(public, ec.EllipticCurvePublicKey)
        public.verify(result.signature, operation.tbs, ec.ECDSA(prehashed))
        return
    assert isinstance(public, rsa.RSAPublicKey)
    pss = padding.PSS(padding.MGF1(kind), algorithm.digest_size)
    scheme = padding.PKCS1v15() if "pkcs1" in algorithm.value else pss
    public.verify(result.signature, operation.tbs, scheme, prehashed)


def refused(results: Sequence[SignResult]) -> list[NotSigned]:
    """The results, all of which gave no signature."""
    assert all(isinstance(result, NotSigned) for result in results), results
    return [result for result in results if isinstance(result, NotSigned)]


async def until_state(token: SupervisedToken, *wanted: TokenState) -> None:
    """Wait until the token is in one of these states."""
    for _ in range(3000):
        if token.state in wanted:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{token.state}: {token.detail}")


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def end_process(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, 9)


def in_the_token(site: TokenSite, body: str, *arguments: str) -> None:
    """Do something in the token as an operator's tool would: `body` sees `session` and `sys.argv`."""
    script = (
        "import sys\nimport pkcs11\nfrom pkcs11 import Attribute, CertificateType, KeyType, ObjectClass\n"
        "token = pkcs11.lib(sys.argv[1]).get_token(token_label='greatseal')\n"
        "with token.open(rw=True, user_pin=sys.stdin.read()) as session:\n" + textwrap.indent(body, "    ")
    )
    environment = os.environ | {"SOFTHSM2_CONF": str(site.directory / "softhsm2.conf")}
    command = [sys.executable, "-c", script, str(find_softhsm()), *arguments]
    subprocess.run(command, input=(site.directory / "pin").read_text().strip(), text=True, env=environment, check=True)


def store_certificate(site: TokenSite, label: str, *, oid: tuple[bytes, bytes] = (b"", b"")) -> None:
    """Put a certificate of the key into the token, under its id and another label; `oid`: exchange one for another."""
    public = load_der_public_key(site.spki[label])
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, label)])
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder(name, name, public, 7, moment, moment + dt.timedelta(days=9))  # type: ignore[arg-type]
    certificate = builder.sign(ec.generate_private_key(ec.SECP256R1()), SHA256()).public_bytes(Encoding.DER)
    body = (
        "session.create_object({Attribute.CLASS: ObjectClass.CERTIFICATE, Attribute.TOKEN: True,"
        " Attribute.CERTIFICATE_TYPE: CertificateType.X_509, Attribute.ID: sys.argv[3].encode(), Attribute.LABEL: 'cert',"
        " Attribute.SUBJECT: b'0', Attribute.VALUE: bytes.fromhex(sys.argv[2])})\n"
    )
    in_the_token(site, body, certificate.replace(*oid).hex(), label)
