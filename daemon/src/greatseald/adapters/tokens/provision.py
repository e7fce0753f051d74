"""Makes a SoftHSM token and keys in it, for `greatseald init`, the demo, the tests and the benchmarks.

    made = provision_softhsm(DIR / "tokens" / "soft", module, "greatseal", [("release", "ec-p256")])
    made["release"]     # SubjectPublicKeyInfo, DER

makes `softhsm2.conf`, `tokens/`, `pin` (0600) and `state/` in the directory. The work is done by a
fresh child process, because SoftHSM reads its configuration's path from the environment and this
process loads no vendor's library. The PIN is random; it travels through the file alone. The
security officer's PIN is random too and thrown away: such a token is made anew, not administered.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from greatseald.adapters.durable import write_durably
from greatseald.adapters.tokens.curves import ED25519, P256, P384, P521
from greatseald.adapters.tokens.launch import host_environment

KEY_KINDS: Final = ("ec-p256", "ec-p384", "ec-p521", "rsa-2048", "rsa-3072", "rsa-4096", "ed25519")
_CURVES: Final = {"ec-p256": P256, "ec-p384": P384, "ec-p521": P521, "ed25519": ED25519}
SOFTHSM_MODULES: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
)
_CHILD_SECONDS: Final = 120.0


class ProvisioningFailed(Exception):
    """The token or a key could not be made, or is not what was asked for; the message says which."""


class _Order(msgspec.Struct):
    module: str
    token_label: str
    pin_file: str
    keys: list[tuple[str, str]]


class _Made(msgspec.Struct):
    error: str = ""
    keys: dict[str, bytes] = {}


def find_softhsm() -> Path:
    """The path of SoftHSM's module on this machine.

    Raises:
        ProvisioningFailed: it is not installed.
    """
    for path in SOFTHSM_MODULES:
        if Path(path).is_file():
            return Path(path)
    message = "SoftHSM is not installed (Debian: apt-get install softhsm2); looked for " + ", ".join(SOFTHSM_MODULES)
    raise ProvisioningFailed(message)


def softhsm_environment(directory: Path) -> dict[str, str]:
    """The environment that a token host needs for the token in `directory`."""
    return {"SOFTHSM2_CONF": str(directory.absolute() / "softhsm2.conf")}


def provision_softhsm(
    directory: Path, module: Path, token_label: str, keys: Sequence[tuple[str, str]]
) -> dict[str, bytes]:
    """Make a token in a new directory, with a random PIN and sign-only keys; returns their public keys.

    `keys` are pairs of a label (also the CKA_ID, as UTF-8) and one of `KEY_KINDS`.

    Raises:
        ProvisioningFailed: nothing usable was made; the directory is left for inspection.
        OSError: the directory or a file in it cannot be made, or is there already.
    """
    _check_kinds(keys)
    directory = directory.absolute()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("tokens", "state"):
        (directory / name).mkdir(mode=0o700)
    configuration = (
        f"directories.tokendir = {directory / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
        "slots.removable = false\n"
    )
    (directory / "softhsm2.conf").write_text(configuration, "utf-8")
    write_durably(directory / "pin", secrets.token_hex(16).encode() + b"\n")
    return _run_child(directory, _Order(str(module), token_label, str(directory / "pin"), list(keys)))


def add_keys(directory: Path, module: Path, token_label: str, keys: Sequence[tuple[str, str]]) -> dict[str, bytes]:
    """Make more keys in a token that `provision_softhsm` made.

    Raises:
        ProvisioningFailed: not made.
    """
    _check_kinds(keys)
    return _run_child(
        directory.absolute(), _Order(str(module), token_label, str(directory.absolute() / "pin"), list(keys))
    )


def _check_kinds(keys: Sequence[tuple[str, str]]) -> None:
    for label, kind in keys:
        if kind not in KEY_KINDS:
            raise ProvisioningFailed(f"key {label}: {kind!r} is not one of {', '.join(KEY_KINDS)}")


def _run_child(directory: Path, order: _Order) -> dict[str, bytes]:
    environment: Mapping[str, str] = host_environment(softhsm_environment(directory))
    command = [sys.executable, "-P", "-m", "greatseald.adapters.tokens.provision", "--child"]
    try:
        finished = subprocess.run(
            command,
            input=msgspec.json.encode(order),
            env=environment,
            stdout=subprocess.PIPE,
            timeout=_CHILD_SECONDS,
            check=False,
            cwd="/",
        )
    except subprocess.TimeoutExpired as error:
        message = f"SoftHSM made no keys within {_CHILD_SECONDS:g} s"
        raise ProvisioningFailed(message) from error
    try:
        made = msgspec.json.decode(finished.stdout, type=_Made)
    except msgspec.DecodeError as error:
        message = f"the process that makes keys ended with code {finished.returncode} and no answer"
        raise ProvisioningFailed(message) from error
    if made.error:
        raise ProvisioningFailed(made.error)
    return made.keys


# -- the child: the only part that touches a token -------------------------------------------------


def _child() -> None:
    """Read an order from stdin, carry it out, write what was made to stdout."""
    from greatseald.adapters.tokens.hardening import harden

    harden()
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=_Order)
    try:
        made = _Made(keys=_carry_out(order))
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent says it
        made = _Made(error=f"token {order.token_label}: {type(error).__name__}: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(made))
    sys.stdout.buffer.flush()
    os._exit(1 if made.error else 0)


def _carry_out(order: _Order) -> dict[str, bytes]:
    from greatseald.adapters.tokens.generate import generate_key, open_for_generation

    pin = Path(order.pin_file).read_bytes().removesuffix(b"\n")
    session: Any = open_for_generation(Path(order.module), order.token_label, pin, secrets.token_hex(16).encode())
    return {label: generate_key(session, label, kind, _CURVES.get(kind)) for label, kind in order.keys}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", action="store_true", required=True)
    parser.parse_args()
    _child()
