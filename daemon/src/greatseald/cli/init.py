"""`greatseald init DIR`: a complete installation for a first start.

Everything is made in a sibling directory that is renamed to DIR at the end, so that DIR is either
absent or whole. Every directory is 0700, every secret 0600, and no secret ever stands in argv, in
the environment or in what is printed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from greatseal.note import NoteSigner
from greatseal.verification import NoteInvalid
from greatseald.adapters import pki
from greatseald.cli import starter
from greatseald.cli.exits import UNAVAILABLE, UNEXPECTED, USAGE, CommandFailed, emit, say
from greatseald.config import ConfigError, load, split_endpoint

LABEL: Final = "greatseal"
SOFT: Final = "tokens/soft"
KEYS: Final = ("release", "scratch")
PIPELINE: Final = "pipeline"
SERVER_DNS: Final = "localhost"
SERVER_ADDRESSES: Final = ("127.0.0.1", "::1")


def initialise(
    directory: Path,
    *,
    listen: str,
    metrics_listen: str,
    origin: str,
    trust_domain: str,
    module: Path | None,
    server_names: Sequence[str],
    as_json: bool,
) -> None:
    """Make the installation and say what to do next.

    Raises:
        CommandFailed: DIR exists, an option is malformed, SoftHSM is missing, or a file cannot be written.
    """
    from greatseald.adapters.tokens.provision import ProvisioningFailed

    target = directory.absolute()
    _check_target(target)
    try:
        host, _ = split_endpoint(listen)
        if metrics_listen:
            split_endpoint(metrics_listen)
    except ValueError as error:
        raise CommandFailed(USAGE, f"--listen and --metrics-listen: {error}") from error
    names, addresses = _server_names(host, server_names)
    library = _find_module(module)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.init-", dir=target.parent))  # mode 0700
    try:
        for name in ("pki", "log", "data", "anchor", "tokens", "run", "keys"):
            (staging / name).mkdir(mode=0o700)
        issued = _make_pki(staging / "pki", trust_domain, names, addresses)
        vkey = _make_log_keys(staging / "log", origin)
        _make_token(staging, target, library)
        pki.write_new(
            staging / "greatseald.toml",
            starter.config_text(
                this_file=str(target / "greatseald.toml"),
                listen=listen,
                metrics_listen=metrics_listen,
                store_url=f"sqlite://{quote(str(target / 'data' / 'log.db'))}",
                origin=origin,
                token_label=LABEL,
                module=str(library),
                softhsm_conf=str(target / SOFT / "softhsm2.conf"),
                pipeline=pki.spiffe_id(trust_domain, PIPELINE),
            ).encode(),
            0o600,
        )
        pki.write_new(
            staging / "client.toml",
            starter.profile_text(
                this_file=str(target / "client.toml"),
                listen=listen,
                client_cert=f"pki/{PIPELINE}.pem",
                client_key=f"pki/{PIPELINE}.key",
            ).encode(),
            0o644,
        )
        load(staging / "greatseald.toml", {})
        _put_in_place(staging, target)
    except ConfigError as error:
        message = "\n".join(str(problem).replace(str(staging), str(target)) for problem in error.problems)
        raise CommandFailed(USAGE, f"these options do not make a valid configuration:\n{message}") from error
    except NoteInvalid as error:
        raise CommandFailed(USAGE, f"--origin: {error}") from error
    except (pki.PkiError, ValueError) as error:
        raise CommandFailed(USAGE, str(error)) from error
    except ProvisioningFailed as error:
        raise CommandFailed(UNAVAILABLE, f"the SoftHSM token cannot be made: {error}") from error
    except OSError as error:
        raise CommandFailed(UNEXPECTED, f"{error.filename or target}: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _report(target, vkey, issued, as_json=as_json)


def _check_target(target: Path) -> None:
    if os.path.lexists(target):
        raise CommandFailed(USAGE, f"{target} exists already, and init only makes new directories: choose another name")
    if not target.parent.is_dir():
        raise CommandFailed(USAGE, f"{target.parent} is not a directory: make it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise CommandFailed(USAGE, f"{target.parent} is not writable for you: choose another place")


def _server_names(host: str, further: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sort the names a server may be called by into DNS names and addresses; localhost is always among them."""
    import ipaddress

    names, addresses = [SERVER_DNS], list(SERVER_ADDRESSES)
    for name in (host, *further):
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            if name not in names:
                names.append(name)
            continue
        if not address.is_unspecified and str(address) not in addresses:
            addresses.append(str(address))
    return names, addresses


def _make_pki(
    directory: Path, trust_domain: str, names: Sequence[str], addresses: Sequence[str]
) -> dict[str, pki.Issued]:
    authority = pki.create_authority(trust_domain)
    issued = {
        "ca": authority,
        "server": pki.issue_server(authority, names, addresses),
        PIPELINE: pki.issue_client(authority, pki.spiffe_id(trust_domain, PIPELINE)),
    }
    for name, one in issued.items():
        pki.write(one, directory / f"{name}.pem", directory / f"{name}.key")
    return issued


def _make_log_keys(directory: Path, origin: str) -> str:
    """Write log.key, log.vkey and head-mac.key; return the verifier key line."""
    key = Ed25519PrivateKey.generate()
    vkey = NoteSigner(origin, key).verifier.line()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pki.write_new(directory / "log.key", pem, 0o600)
    pki.write_new(directory / "head-mac.key", secrets.token_hex(32).encode() + b"\n", 0o600)
    pki.write_new(directory / "log.vkey", vkey.encode() + b"\n", 0o644)
    return vkey


def _find_module(module: Path | None) -> Path:
    from greatseald.adapters.tokens.provision import ProvisioningFailed, find_softhsm

    if module is not None:
        if not module.is_file():
            raise CommandFailed(UNAVAILABLE, f"{module} is not a file: --module names SoftHSM's PKCS#11 library")
        return module.absolute()
    try:
        return find_softhsm()
    except ProvisioningFailed as error:
        raise CommandFailed(UNAVAILABLE, f"{error}; or name its module with --module") from error


def _make_token(staging: Path, target: Path, library: Path) -> None:
    """Make the SoftHSM token and its keys in `staging`, configured for where it will be in `target`."""
    from greatseald.adapters.tokens.provision import provision_softhsm

    there = staging / SOFT
    public_keys = provision_softhsm(there, library, LABEL, [(name, "ec-p256") for name in KEYS])
    # SoftHSM takes absolute paths only, and the token is about to move.
    configuration = (there / "softhsm2.conf").read_text()
    _rewrite(there / "softhsm2.conf", configuration.replace(str(there), str(target / SOFT)), 0o600)
    for name, spki in public_keys.items():
        pem = serialization.load_der_public_key(spki).public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        pki.write_new(staging / "keys" / f"{name}.pem", pem, 0o644)


def _rewrite(path: Path, text: str, mode: int) -> None:
    path.unlink()
    pki.write_new(path, text.encode(), mode)


def _put_in_place(staging: Path, target: Path) -> None:
    if os.path.lexists(target):  # rename would replace an empty directory that came meanwhile
        raise CommandFailed(USAGE, f"{target} appeared while init worked: choose another name")
    staging.rename(target)
    parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _report(target: Path, vkey: str, issued: dict[str, pki.Issued], *, as_json: bool) -> None:
    if as_json:
        emit(
            {
                "directory": str(target),
                "config": str(target / "greatseald.toml"),
                "profile": str(target / "client.toml"),
                "log_vkey": vkey,
                "public_keys": {name: str(target / "keys" / f"{name}.pem") for name in KEYS},
                "certificates": {name: f"{one.not_after:%Y-%m-%dT%H:%M:%SZ}" for name, one in issued.items()},
            }
        )
        return
    say(f"Made {target}:")
    say("  greatseald.toml, client.toml   configuration of the daemon and profile of the client `pipeline`")
    for name, what in (("ca", "local CA"), ("server", "server"), (PIPELINE, f"client `{PIPELINE}`")):
        say(
            f"  pki/{name}.pem{' ' * (23 - len(name))}certificate of the {what}, valid until {issued[name].not_after:%Y-%m-%d}"
        )
    say("  tokens/soft                    SoftHSM token with a random PIN; keys `release` (statements only)")
    say("                                 and `scratch` (may sign blind), their public halves in keys/")
    say(f"  log/log.vkey                   {vkey}")
    say()
    say("The paths in it are absolute: it cannot be moved. Next:")
    say(f"  greatseald serve --config {target / 'greatseald.toml'}")
    say(f"  greatseal --profile {target / 'client.toml'} whoami")
