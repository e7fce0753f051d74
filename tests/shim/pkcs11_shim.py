"""Builds the PKCS#11 shim, drives it, reads its ledger.

The shim (shim.c) is loaded in SoftHSM's place: it forwards everything, writes down what was really
signed, and hangs, crashes, lies or locks on demand. One `Shim` is one token host's environment:
give two tokens two of them, and they misbehave independently.

    shim = Shim(tmp_path / "shim")
    subprocess.run([...], env={**os.environ, **shim.environment, "SOFTHSM2_CONF": conf})   # module: shim.module
    shim.rule("C_Sign", "hang", times=1)
    shim.signatures()[0].digest
"""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

SOURCE: Final = Path(__file__).with_name("shim.c")
SOFTHSM_PATHS: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
)

CKR_OK: Final = 0x00
CKR_GENERAL_ERROR: Final = 0x05
CKR_FUNCTION_FAILED: Final = 0x06
CKR_DEVICE_ERROR: Final = 0x30
CKR_DEVICE_MEMORY: Final = 0x31
CKR_DEVICE_REMOVED: Final = 0x32
CKR_OPERATION_ACTIVE: Final = 0x90
CKR_PIN_INCORRECT: Final = 0xA0
CKR_PIN_LOCKED: Final = 0xA4
CKR_SESSION_CLOSED: Final = 0xB0
CKR_SESSION_HANDLE_INVALID: Final = 0xB3
CKR_TOKEN_NOT_PRESENT: Final = 0xE0
CKR_USER_NOT_LOGGED_IN: Final = 0x101


def softhsm_module() -> str:
    """Return the path of SoftHSM's module on this machine."""
    for path in SOFTHSM_PATHS:
        if Path(path).exists():
            return path
    message = f"SoftHSM is not installed: none of {', '.join(SOFTHSM_PATHS)} exists"
    raise FileNotFoundError(message)


def build() -> Path:
    """Compile the shim, once for each version of its source, and return the module's path."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    directory = Path(tempfile.gettempdir()) / f"greatseal-shim-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    module = directory / f"shim-{digest}.so"
    if not module.exists():
        partial = directory / f"shim-{digest}.{os.getpid()}.tmp"
        command = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
        command += ["-o", str(partial), str(SOURCE), "-ldl", "-lpthread"]
        subprocess.run(command, check=True)
        partial.rename(module)  # whole or not at all: others may be building it too
    return module


class Call(NamedTuple):
    """A line of the ledger: `digest` is what was signed, `signature` raw as the token gave it (r‖s for ECDSA)."""

    time_ns: int
    pid: int
    thread: int
    function: str
    rv: int
    digest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule in force; `Shim.hits` tells how often it matched."""

    id: int
    line: str


class Shim:
    """One shim's files and environment, in `directory` (made if absent).

    Args:
        directory: where ledger, control file and counters live.
        delay_ms: sleep in each C_Sign, sessions overlapping.
        max_sessions: CKR_SESSION_COUNT beyond this many; None for the real module's own limit.
        init_args: the parameter string demanded at C_Initialize.
        ledger: whether to write one (a benchmark may not want to pay for it).
    """

    def __init__(
        self,
        directory: Path,
        *,
        delay_ms: int = 0,
        max_sessions: int | None = None,
        init_args: str | None = None,
        ledger: bool = True,
        control: bool = True,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.module = str(build())
        self.ledger_path = directory / "ledger"
        self.control_path = directory / "control"
        self._rules: dict[int, Rule] = {}
        self._next_id = 1
        self.environment = {"SHIM_MODULE": softhsm_module()}
        if ledger:
            self.environment["SHIM_LEDGER"] = str(self.ledger_path)
        if control:
            self.environment["SHIM_CONTROL"] = str(self.control_path)
        if delay_ms:
            self.environment["SHIM_DELAY_MS"] = str(delay_ms)
        if max_sessions is not None:
            self.environment["SHIM_MAX_SESSIONS"] = str(max_sessions)
        if init_args is not None:
            self.environment["SHIM_INIT_ARGS"] = init_args

    def rule(
        self,
        function: str,
        action: str,
        value: int | None = None,
        *,
        after: int = 0,
        times: int = 0,
        digest: bytes = b"",
        **keys: int | bytes,
    ) -> Rule:
        """Put a rule in force at once, in processes that run already as in those to come.

        `times` 0 means for ever. Actions, their values and other keys (`mech`, `hash`, `class_`, `bytes_`): see shim.c.
        """
        line = f"{self._next_id} {function} {action}" + ("" if value is None else f"={value}")
        line += f" after={after}" if after else ""
        line += f" times={times}" if times else ""
        line += f" digest={digest.hex()}" if digest else ""
        for key, given in keys.items():
            line += f" {key.rstrip('_')}={given.hex() if isinstance(given, bytes) else given}"
        rule = Rule(self._next_id, line)
        self._next_id += 1
        self._rules[rule.id] = rule
        self._write()
        return rule

    def lift(self, rule: Rule) -> None:
        """Take a rule away."""
        del self._rules[rule.id]
        self._write()

    def unplug(self) -> list[Rule]:
        """Take the token out of its reader: no slot holds one, and what was open has lost its device."""
        gone = [self.rule("C_GetSlotList", "empty"), self.rule("C_GetTokenInfo", "rv", CKR_TOKEN_NOT_PRESENT)]
        lost = ("C_Sign", "C_SignInit", "C_OpenSession", "C_GetSessionInfo", "C_FindObjectsInit", "C_GetAttributeValue")
        return gone + [self.rule(function, "rv", CKR_DEVICE_REMOVED) for function in lost]

    def lift_all(self) -> None:
        """Take every rule away."""
        self._rules.clear()
        self._write()

    def hits(self, rule: Rule) -> int:
        """Return how many calls have matched `rule`, those that `after` and `times` let go by included."""
        return self._counter(rule.id)

    def wrong_pins(self) -> int:
        """Return how many wrong PINs in a row the lockout rule has counted."""
        return self._counter(0)

    def calls(self) -> list[Call]:
        """Return the whole ledger, oldest first."""
        if not self.ledger_path.exists():
            return []
        return [_call(line) for line in self.ledger_path.read_text().splitlines()]

    def signatures(self) -> list[Call]:
        """Return each C_Sign that reached the real module and succeeded."""
        return [call for call in self.calls() if call.function == "C_Sign" and call.rv == CKR_OK]

    def logins(self) -> list[Call]:
        """Return each C_Login."""
        return [call for call in self.calls() if call.function == "C_Login"]

    def pin_calls(self) -> list[tuple[str, int]]:
        """Return each call that tries or sets a PIN, with its return value."""
        wanted = {"C_Login", "C_SetPIN", "C_InitPIN"}
        return [(call.function, call.rv) for call in self.calls() if call.function in wanted]

    def _counter(self, number: int) -> int:
        state = self.control_path.with_name("control.state")
        if not state.exists():
            return 0
        with state.open("rb") as file:
            file.seek(8 * number)
            (count,) = struct.unpack("=Q", file.read(8))
        return int(count)

    def _write(self) -> None:
        partial = self.control_path.with_name("control.tmp")
        partial.write_text("".join(f"{rule.line}\n" for rule in self._rules.values()))
        partial.rename(self.control_path)


def _call(line: str) -> Call:
    time_ns, pid, thread, function, rv, digest, signature = line.split(" ")
    return Call(
        int(time_ns),
        int(pid),
        int(thread),
        function,
        int(rv, 16),
        b"" if digest == "-" else bytes.fromhex(digest),
        b"" if signature == "-" else bytes.fromhex(signature),
    )
