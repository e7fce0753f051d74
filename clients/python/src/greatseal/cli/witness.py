"""`witness init` and `witness serve`: be the other party that sees a log grow and never fork."""

from __future__ import annotations

import os
import signal
import ssl
import sys
import threading
from pathlib import Path
from typing import Annotated, Final

import typer

from greatseal.cli.session import JsonOption, say, session_of
from greatseal.errors import UsageError
from greatseal.files import PRIVATE, read_bounded

KEY_NAME: Final = "witness.key"
VKEY_NAME: Final = "witness.vkey"
_MAX_KEY_BYTES: Final = 64 * 1024


def init(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The witness's name, a URL without scheme: witness.example.org/w1.")
    ],
    directory: Annotated[
        Path, typer.Option("--dir", help="Where witness.key and witness.vkey are written; made if it is missing.")
    ] = Path(),
    json: JsonOption = False,
) -> None:
    """Make a witness's key and print its verifier key, for the logs that it shall cosign."""
    session = session_of(context, as_json=json)
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from greatseal.cosignature import WitnessSigner
    from greatseal.errors import VerificationFailed

    private = Ed25519PrivateKey.generate()
    try:
        vkey = WitnessSigner(name, private).verifier.line()
    except VerificationFailed as error:
        raise UsageError(error.message) from error
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        _write_new(directory / KEY_NAME, pem, PRIVATE)
        _write_new(directory / VKEY_NAME, f"{vkey}\n".encode(), 0o644)
    except FileExistsError as error:
        message = f"{error.filename} exists already, and a witness's key is never replaced: choose another --dir"
        raise UsageError(message) from error
    if session.as_json:
        session.emit({"key": str(directory / KEY_NAME), "vkey": vkey})
        return
    print(vkey)
    say(f"Made {directory / KEY_NAME} and {directory / VKEY_NAME}. Give the line above to whoever runs the log.")


def serve(
    context: typer.Context,
    state: Annotated[
        Path,
        typer.Option(
            help="Directory of the last checkpoints; made if it is missing. Never restore an older copy.",
            show_default=False,
        ),
    ],
    key: Annotated[
        Path, typer.Option(help="The witness's private key; witness.vkey lies beside it.", show_default=False)
    ],
    log_keys: Annotated[
        list[str],
        typer.Option(
            "--log-key", help="Verifier key of a log, or a file that holds it; may be repeated.", show_default=False
        ),
    ],
    listen: Annotated[str, typer.Option(help="host:port; anything but loopback needs TLS.")] = "127.0.0.1:8450",
    tls_cert: Annotated[Path | None, typer.Option(help="Our certificate chain, PEM.", show_default=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM, mode 0600.", show_default=False)] = None,
    json: JsonOption = False,
) -> None:
    """Cosign checkpoints over HTTP (C2SP tlog-witness) until SIGTERM: only those that extend the last one of their log."""
    session = session_of(context, as_json=json)
    from greatseal.cosignature import WitnessKey, WitnessSigner
    from greatseal.errors import VerificationFailed
    from greatseal.profile import log_key_of, read_log_key
    from greatseal.witness import Witness
    from greatseal.witnessserver import WitnessServer

    host, port = _endpoint(listen)
    tls = _tls(host, tls_cert, tls_key)
    _require_private(key)
    vkey_file = key.with_name(VKEY_NAME)
    try:
        vkey = WitnessKey.parse(read_bounded(vkey_file, _MAX_KEY_BYTES).decode("utf-8", "replace"))
        signer = WitnessSigner.from_pem(vkey.name, read_bounded(key, _MAX_KEY_BYTES))
    except VerificationFailed as error:
        message = f"{key} and {vkey_file} are not a witness's key: {error.message}"
        raise UsageError(message) from error
    if signer.verifier != vkey:
        message = f"{vkey_file} is not the verifier key of {key}"
        raise UsageError(message)
    logs = [log_key_of(read_log_key(each)) for each in log_keys]
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    witness = Witness(signer, logs, state)
    try:
        server = WitnessServer((host, port), witness, tls=tls, told=say)
    except OSError as error:
        witness.close()
        message = f"cannot listen on {listen}: {error.strerror}"
        raise UsageError(message) from error
    for number in (signal.SIGTERM, signal.SIGINT):
        # shutdown() waits for serve_forever to end, which runs on the thread that signals interrupt.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    for origin, size in witness.sizes.items():
        say(f"{origin}: {f'cosigned up to {size} entries' if size else 'nothing cosigned yet'}")
    address = f"{f'[{host}]' if ':' in host else host}:{server.server_address[1]}"
    if session.as_json:
        session.emit({"name": vkey.name, "address": address, "sizes": witness.sizes})
        sys.stdout.flush()
    say(f"greatseal witness ready: {vkey.name} listens on {address}")
    try:
        server.serve_forever(poll_interval=0.2)
    finally:
        server.server_close()
        witness.close()


def _endpoint(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        message = f"--listen must be host:port, such as 127.0.0.1:8450, not {text[:80]!r}"
        raise UsageError(message)
    return host.removeprefix("[").removesuffix("]"), int(port)


def _tls(host: str, cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    import ipaddress

    if (cert is None) != (key is None):
        message = "--tls-cert and --tls-key go together"
        raise UsageError(message)
    if cert is None or key is None:
        try:
            loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            message = f"{host} is not loopback: give --tls-cert and --tls-key, or put a proxy with TLS before 127.0.0.1"
            raise UsageError(message)
        return None
    _require_private(key)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        tls.load_cert_chain(cert, key)
    except (ssl.SSLError, OSError) as error:
        message = f"{cert} and {key} are not a certificate and its key: {error}"
        raise UsageError(message) from error
    return tls


def _require_private(key: Path) -> None:
    mode = key.stat().st_mode
    if mode & 0o077:
        message = f"{key} is open to group or world (mode {mode & 0o777:04o}): chmod 600 it"
        raise UsageError(message)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
