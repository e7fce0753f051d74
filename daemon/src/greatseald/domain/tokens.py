"""What the configuration says of a token, as its host and the host's supervisor need it.

No field holds a secret: a PIN is named by where it lies and is read by the host alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """One `[[tokens]]` table. Paths are absolute.

    `uri` is an RFC 7512 reference to the token; `module` the vendor's PKCS#11 library; `init_args`
    the parameter string some modules want at C_Initialize; `environment` is given to this token's
    host only. The PIN lies in `pin_file` (a file that group and world cannot read) or in the
    service manager's credential named `pin_credential`, or (`by_operator`) an operator gives it to the
    host over `unlock_socket` after each start; with none of them, the token is used without a login, or
    with its own PIN pad. `sessions` is how many operations it works on at a time,
    `operation_timeout` in seconds how long one of them may take before its host is killed.
    `lockout` is "none" only where the device never locks after wrong PINs. `host_socket` is the
    AF_UNIX path of a host that runs as a unit of its own; None means a child of the front.
    `state_dir` holds the PIN latch and the ledger and belongs to the host's user; `unlock_socket` lies in it
    where none is named.

    A token of kind "yubikey-piv" is found by `serial` and has neither `uri` nor `module`;
    `touch_timeout` in seconds is how long a person has to touch it, and `attestation_roots` are PEM
    files of the roots that its keys' attestations have to lead to; with none, nothing is demanded.
    """

    name: str
    uri: str
    module: Path
    state_dir: Path
    init_args: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    pin_file: Path | None = None
    pin_credential: str = ""
    sessions: int = 4
    operation_timeout: float = 30.0
    lockout: str = ""
    host_socket: Path | None = None
    kind: str = "pkcs11"
    serial: str = ""
    touch_timeout: float = 15.0
    attestation_roots: tuple[Path, ...] = ()
    by_operator: bool = False
    unlock_socket: Path | None = None

    @property
    def operator_socket(self) -> Path:
        """Where its host listens for operators."""
        return self.unlock_socket or self.state_dir / "unlock.sock"
