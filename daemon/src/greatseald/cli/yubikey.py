"""`greatseald yubikey`: which YubiKeys are plugged in, and a new key generated on one of them.

They need the device to themselves: while a daemon holds it, it is shown as in use.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from greatseald.cli.exits import UNAVAILABLE, USAGE, VERIFICATION_FAILED, CommandFailed, emit, reporting, say
from greatseald.cli.options import JsonOption

if TYPE_CHECKING:
    from greatseald.adapters.tokens.yubikey.attestation import Attestation
    from greatseald.adapters.tokens.yubikey.keys import SlotKey
    from greatseald.config import YubiKeyTable

yubikeys = typer.Typer(
    help="YubiKeys that are plugged in, and keys generated on them, while no daemon holds them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_KINDS: Final = ("p256", "p384", "rsa2048", "rsa3072", "rsa4096", "ed25519")
_PIN_POLICIES: Final = ("once", "always", "never")
_TOUCH_POLICIES: Final = ("never", "cached", "always")


@yubikeys.command("list")
def list_command(json: JsonOption = False) -> None:
    """Show every YubiKey, its firmware and its keys with their policies and what it attests of them."""
    with reporting():
        _require_extra()
        from greatseald.adapters.tokens.yubikey.generation import YubiKeysUnreachable, list_devices

        try:
            devices = list_devices()
        except YubiKeysUnreachable as error:
            raise CommandFailed(UNAVAILABLE, str(error)) from error
        if json:
            shown = [
                {
                    "serial": each.serial,
                    "firmware": each.firmware,
                    "form_factor": each.form_factor,
                    "reader": each.reader,
                    "problem": each.problem,
                    "pin_tries": each.pin_tries,
                    "keys": [_key(*pair) for pair in zip(each.keys, each.attestations, strict=True)],
                }
                for each in devices
            ]
            emit({"yubikeys": shown})
            return
        for each in devices:
            tries = "" if each.pin_tries is None else f", {each.pin_tries} PIN tries left"
            what = each.problem or f"firmware {each.firmware}, {each.form_factor}{tries}"
            print(f"{each.serial or 'unknown serial'}  {what}  [{each.reader}]")
            for key, attestation in zip(each.keys, each.attestations, strict=True):
                print(f"  piv:slot={key.slot:02x}  {_words(key, attestation)}")
        if not devices:
            say("no YubiKey is plugged in")


@yubikeys.command("generate")
def generate_command(
    slot: Annotated[str, typer.Option(help="PIV slot: 9a, 9c, 9d, 9e, or 82 to 95.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where public key and attestation are written.")],
    serial: Annotated[str, typer.Option(help="The YubiKey's serial number.", show_default=False)] = "",
    config: Annotated[
        Path | None, typer.Option(help="Take everything from a configuration…", show_default=False)
    ] = None,
    token: Annotated[str, typer.Option(help="…and its token with this name.", show_default=False)] = "",
    kind: Annotated[str, typer.Option("--type", help=f"One of {', '.join(_KINDS)}.")] = "p256",
    pin_policy: Annotated[str, typer.Option(help=f"One of {', '.join(_PIN_POLICIES)}.")] = "once",
    touch_policy: Annotated[str, typer.Option(help=f"One of {', '.join(_TOUCH_POLICIES)}.")] = "never",
    management_key_file: Annotated[
        Path | None, typer.Option(help="The management key in hexadecimal, mode 0600.", show_default=False)
    ] = None,
    attestation_roots: Annotated[
        list[Path] | None, typer.Option(help="PEM file of Yubico's roots; may be repeated.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Lose the key that is in the slot for ever.")] = False,
    json: JsonOption = False,
) -> None:
    """Generate a key on a YubiKey, read it back, have it attested, and write its public half and the attestation."""
    with reporting():
        _require_extra()
        for value, known, name in (
            (kind, _KINDS, "--type"),
            (pin_policy, _PIN_POLICIES, "--pin-policy"),
            (touch_policy, _TOUCH_POLICIES, "--touch-policy"),
        ):
            if value not in known:
                raise CommandFailed(USAGE, f"{name} is {value[:40]!r}: write one of {', '.join(known)}")
        roots = list(attestation_roots or [])
        if config is not None:
            table = _table(config, token)
            if serial and serial != table.serial:
                raise CommandFailed(
                    USAGE, f"--serial is {serial}, and token {token} is YubiKey {table.serial}: leave one out"
                )
            serial = table.serial
            management_key_file = management_key_file or table.management_key_file
            roots = roots or list(table.attestation_roots)
            os.environ.update(table.environment)
        elif token:
            raise CommandFailed(USAGE, "--token needs the --config that it stands in")
        if not serial.isdecimal():
            raise CommandFailed(USAGE, "name the YubiKey: --serial NUMBER, or --config FILE --token NAME")
        _generate(
            serial, slot, kind, pin_policy, touch_policy, out,
            management_key_file=management_key_file, roots=roots, overwrite=overwrite, as_json=json,
        )  # fmt: skip


def _generate(
    serial: str,
    slot_text: str,
    kind: str,
    pin_policy: str,
    touch_policy: str,
    out: Path,
    *,
    management_key_file: Path | None,
    roots: list[Path],
    overwrite: bool,
    as_json: bool,
) -> None:
    from greatseald.adapters.tokens.yubikey.generation import (
        GenerationRefused,
        KeyNotProven,
        Wanted,
        YubiKeysUnreachable,
        generate_on_device,
    )
    from greatseald.adapters.tokens.yubikey.slots import SlotInvalid, parse_slot

    try:
        slot = parse_slot(f"piv:slot={slot_text}")
    except SlotInvalid as error:
        raise CommandFailed(USAGE, f"--slot: {error}") from error
    management_key = _management_key(management_key_file)
    public_file, attestation_file = out / f"{serial}-{slot:02x}.pem", out / f"{serial}-{slot:02x}-attestation.pem"
    try:
        out.mkdir(parents=True, exist_ok=True)
        public_file.touch()  # before anything is made that could not be written down
    except OSError as error:
        raise CommandFailed(USAGE, f"{out} cannot be written: {error.strerror}") from error
    if not as_json:
        say(f"generating a {kind} key in slot {slot:02x} of YubiKey {serial}; RSA takes the device up to a minute")
    wanted = Wanted(slot, kind, pin_policy, touch_policy)
    try:
        key, attestation, pem = generate_on_device(serial, wanted, management_key, roots, overwrite=overwrite)
    except BaseException as error:
        if not public_file.stat().st_size:
            public_file.unlink()
        if isinstance(error, GenerationRefused):
            raise CommandFailed(USAGE, f"no key was made: {error}") from error
        if isinstance(error, KeyNotProven):
            raise CommandFailed(
                VERIFICATION_FAILED, f"a key was made in slot {slot:02x} and must not be used: {error}"
            ) from error
        if isinstance(error, YubiKeysUnreachable):
            raise CommandFailed(UNAVAILABLE, str(error)) from error
        raise
    public_file.write_text(pem)
    if attestation is not None:
        attestation_file.write_text(f"# {attestation}\n{attestation.pem()}")
    else:
        attestation_file.unlink(missing_ok=True)  # of a key that was there before
    if as_json:
        files = {
            "public_key": str(public_file),
            "attestation_file": str(attestation_file) if attestation is not None else "",
        }
        emit({"serial": serial, **_key(key, attestation), **files})
        return
    print(f"piv:slot={slot:02x}  {_words(key, attestation)}")
    say(f"public key: {public_file}")
    if attestation is not None:
        say(f"attestation: {attestation_file}")
    if not roots:
        say("the attestation was not verified: name Yubico's roots with --attestation-roots")


def _management_key(path: Path | None) -> bytes | None:
    from greatseald.config.checks import FileProblem, read_file

    if path is None:
        return None
    try:
        return bytes.fromhex(read_file(path, secret=True).decode("ascii").strip())
    except FileProblem as problem:
        hint = f": {problem.hint}" if problem.hint else ""
        raise CommandFailed(USAGE, f"the management key {problem}{hint}") from problem
    except ValueError as error:
        raise CommandFailed(USAGE, f"{path} does not hold a management key in hexadecimal") from error


def _table(config: Path, name: str) -> YubiKeyTable:
    from greatseald.config import ConfigError, YubiKeyTable, load_token

    if not name:
        raise CommandFailed(USAGE, "--config needs --token, the name of one of its tokens")
    try:
        table = load_token(config, name)
    except ConfigError as error:
        raise CommandFailed(USAGE, str(error)) from error
    if not isinstance(table, YubiKeyTable):
        raise CommandFailed(USAGE, f"token {name} is no YubiKey: its type is {table.type}")
    return table


def _require_extra() -> None:
    from importlib.util import find_spec

    if find_spec("yubikit") is None or find_spec("smartcard") is None:
        message = (
            "this needs the extra `yubikey`: pip install 'greatseald[yubikey]' (libpcsclite-dev, swig and gcc build it)"
        )
        raise CommandFailed(UNAVAILABLE, message)


def _key(key: SlotKey, attestation: Attestation | None) -> dict[str, Any]:
    return {
        "uri": f"piv:slot={key.slot:02x}",
        "type": str(key.key_type),
        "algorithms": [each.value for each in key.algorithms],
        "pin_policy": key.pin_policy,
        "touch_policy": key.touch_policy,
        "generated": key.generated,
        "attestation": str(attestation) if attestation is not None else "",
    }


def _words(key: SlotKey, attestation: Attestation | None) -> str:
    origin = {True: "generated here", False: "brought in from outside", None: "of unknown origin"}[key.generated]
    attested = (
        str(attestation)
        if attestation is not None and attestation.root
        else "attested, not verified"
        if attestation
        else "not attested"
    )
    policies = f"PIN {key.pin_policy or 'unknown'}, touch {key.touch_policy or 'unknown'}"
    return f"{key.key_type}, {policies}, {origin}, {attested}"
