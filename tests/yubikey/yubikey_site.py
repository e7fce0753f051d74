"""A virtual YubiKey with a key in it, and a supervised token host for it, in the test's own event loop.

site = YubiKeySite(rig, 11111111, tmp_path)
site.generate("9c", "ECCP256")
async with site.token() as token:
    await site.sign(token, "piv:slot=9c", P256, site.operations(3))
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from yubikeys import YubiKeyRig

from greatseal.algorithms import Algorithm
from greatseald.adapters.tokens.supervisor import SupervisedToken
from greatseald.domain.tokens import TokenSettings
from greatseald.ports.tokens import NotSigned, Operation, OperatorAct, Signed, SignResult, TokenState
from token_site import verify_signature

P256 = Algorithm.ECDSA_P256_SHA256
PIN = "123456"


class YubiKeySite:
    def __init__(self, rig: YubiKeyRig, serial: int, directory: Path) -> None:
        self.rig, self.serial, self.directory = rig, serial, directory / str(serial)
        self.directory.mkdir(parents=True)
        self.state_dir = self.directory / "state"
        self.pin_file = self.directory / "pin"
        self.pin_file.touch(0o600)
        self.pin_file.write_text(PIN + "\n")
        self.spki: dict[str, bytes] = {}
        self.states: list[tuple[TokenState, str]] = []
        self.touches: list[str] = []
        self.acts: list[OperatorAct] = []
        self._index = itertools.count()

    def generate(
        self, slot: str, kind: str, pin_policy: str = "ONCE", touch_policy: str = "NEVER", **more: Any
    ) -> bytes:
        """Have a key in the slot; returns its SubjectPublicKeyInfo."""
        spki = self.rig.generate(self.serial, int(slot, 16), kind, pin_policy, touch_policy, **more)
        self.spki[f"piv:slot={slot}"] = spki
        return spki

    def settings(self, **changes: Any) -> TokenSettings:
        chosen: dict[str, Any] = {
            "name": f"yk{self.serial}", "uri": "", "module": Path(), "state_dir": self.state_dir,
            "environment": self.rig.environment, "pin_file": self.pin_file, "sessions": 1, "operation_timeout": 20.0,
            "kind": "yubikey-piv", "serial": str(self.serial),
        }  # fmt: skip
        return TokenSettings(**(chosen | changes))

    @asynccontextmanager
    async def token(self, *, ready: bool = True, **changes: Any) -> AsyncIterator[SupervisedToken]:
        """A started token, stopped afterwards; `ready`: wait until it is, and insist."""
        token = SupervisedToken(
            self.settings(**changes),
            on_state=lambda _, state, detail: self.states.append((state, detail)),
            on_touch=lambda _, what: self.touches.append(what),
            on_act=self._record,
        )
        await token.start()
        try:
            if ready:
                assert await token.settled(30.0) is TokenState.READY, token.detail
            yield token
        finally:
            await token.stop()

    async def _record(self, _token: str, act: OperatorAct) -> None:
        self.acts.append(act)

    def operations(self, count: int, size: int = 32) -> list[Operation]:
        return [Operation(next(self._index), secrets.token_bytes(32), secrets.token_bytes(size)) for _ in range(count)]

    def message(self, message: bytes) -> Operation:
        return Operation(next(self._index), secrets.token_bytes(32), hashlib.sha256(message).digest(), message)

    async def sign(
        self, token: SupervisedToken, uri: str, algorithm: Algorithm, operations: list[Operation]
    ) -> list[SignResult]:
        """Every result, in order; signatures are verified against the key that was generated."""
        results: list[SignResult] = []
        async for chunk in token.sign(uri, algorithm, operations):
            results += chunk
        results.sort(key=lambda result: result.position)
        assert [result.position for result in results] == list(range(len(operations)))
        for result in results:
            if isinstance(result, Signed):
                verify_signature(self.spki[uri], algorithm, operations[result.position], result)
        return results

    async def refused(self, token: SupervisedToken, uri: str = "piv:slot=9c", algorithm: Algorithm = P256) -> NotSigned:
        """Sign one thing, which has to fail; how it did."""
        (result,) = await self.sign(token, uri, algorithm, self.operations(1))
        assert isinstance(result, NotSigned)
        return result


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until `condition` holds."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not come about"
        await asyncio.sleep(0.02)


async def until_state(token: SupervisedToken, wanted: TokenState, seconds: float = 30.0) -> None:
    """Wait until the token is in this state."""
    deadline = asyncio.get_running_loop().time() + seconds
    while token.state is not wanted:
        assert asyncio.get_running_loop().time() < deadline, f"{token.state}: {token.detail}"
        await asyncio.sleep(0.02)
