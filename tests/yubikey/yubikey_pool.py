"""An installation with a key that several virtual YubiKeys hold: an imported key, or each a key of its own.

site = YubiKeyPool(rig, directory, serials, sign_seconds=0.1)
site.deployment.start()             # keys/pool is held by all of them, keys/single by the first alone
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_der_public_key
from yubikeys import YubiKeyRig

from fault_site import PIPELINE, FaultSite

SLOT = 0x9C


class YubiKeyPool(FaultSite):
    """A `FaultSite` whose key `pool` lies in YubiKeys; tokens are named `yk<serial>`."""

    def __init__(
        self,
        rig: YubiKeyRig,
        parent: Path,
        serials: list[int],
        *,
        sign_seconds: float = 0.0,
        operation_timeout: int = 5,
    ) -> None:
        super().__init__(parent, operation_timeout=operation_timeout)
        self.rig, self.serials = rig, serials
        self.spki = rig.generate(serials[0], SLOT, "ECCP256", "ONCE", "NEVER", imported=True)
        rig.share(serials[0], SLOT, serials[1:])
        self.public |= {name: load_der_public_key(self.spki) for name in ("pool", "single")}
        pin = self.directory / "yubikey-pin"
        pin.touch(0o600)
        pin.write_text("123456\n")
        environment = ", ".join(f'{name} = "{value}"' for name, value in rig.environment.items())
        for serial in serials:
            rig.switch(serial, sign_seconds=sign_seconds)
            self.deployment.append(
                f'[[tokens]]\nname = "yk{serial}"\ntype = "yubikey-piv"\nserial = "{serial}"\n'
                f'pin_file = "yubikey-pin"\nenvironment = {{ {environment} }}\noperation_timeout = {operation_timeout}\n'
            )
        holders = "".join(f'[[keys.holders]]\ntoken = "{name}"\nuri = "piv:slot=9c"\n' for name in self.tokens)
        self.deployment.append(
            f'[[keys]]\nname = "pool"\nalgorithms = ["ecdsa-p256-sha256"]\n{holders}\n'
            f'[[keys]]\nname = "single"\ntoken = "{self.tokens[0]}"\nuri = "piv:slot=9c"\n'
            f'algorithms = ["ecdsa-p256-sha256"]\n\n'
            f'[[allow]]\nclient = "{PIPELINE}"\nactions = ["signBlind", "readKeys", "readTokens"]\n'
            f'keys = ["pool", "single"]\n'
        )

    @property
    def tokens(self) -> tuple[str, ...]:
        """The names of the YubiKeys."""
        return tuple(f"yk{serial}" for serial in self.serials)
