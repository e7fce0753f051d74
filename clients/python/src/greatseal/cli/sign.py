"""`sign digest` and `sign statement`."""

from __future__ import annotations

import base64
import os
from enum import Enum
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from greatseal.algorithms import Algorithm
from greatseal.cli.key_names import complete_key
from greatseal.cli.session import JsonOption, Session, say, session_of
from greatseal.errors import UsageError
from greatseal.files import read_bounded

if TYPE_CHECKING:
    from greatseal.messages import Signature

KeyOption = Annotated[
    str, typer.Option("--key", help="The key, keys/NAME or NAME.", show_default=False, autocompletion=complete_key)
]
ReceiptOption = Annotated[
    Path | None, typer.Option("--receipt", help="Write the log's receipt here.", show_default=False)
]
AlgorithmOption = Annotated[
    Algorithm | None, typer.Option("--algorithm", help="How; the key's default otherwise.", show_default=False)
]
RequestIdOption = Annotated[
    str,
    typer.Option(
        "--request-id", help="A UUID; the same id again returns the same signature. New otherwise.", show_default=False
    ),
]
MAX_STATEMENT_BYTES: Final = 64 << 20


class StatementFormat(str, Enum):
    """What `sign statement` writes."""

    DSSE = "dsse"
    SIGNATURE = "signature"


def digest(
    context: typer.Context,
    key: KeyOption,
    sha256: Annotated[
        str, typer.Option("--sha256", help="The digest, 64 hexadecimal digits.", show_default=False)
    ] = "",
    sha384: Annotated[
        str, typer.Option("--sha384", help="The digest, 96 hexadecimal digits.", show_default=False)
    ] = "",
    sha512: Annotated[
        str, typer.Option("--sha512", help="The digest, 128 hexadecimal digits.", show_default=False)
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(help="Write the signature's bytes here instead of base64 to stdout.", show_default=False),
    ] = None,
    receipt: ReceiptOption = None,
    algorithm: AlgorithmOption = None,
    subject: Annotated[str, typer.Option(help="What the digest is of; logged as your claim.", show_default=False)] = "",
    request_id: RequestIdOption = "",
    json: JsonOption = False,
) -> None:
    """Have a digest signed that you computed; takes the action signBlind on the key."""
    session = session_of(context, as_json=json)
    value = _hexadecimal(sha256, sha384, sha512)
    require_writable(output, receipt)
    with session.client() as client:
        signature = client.sign_digest(key, value, algorithm=algorithm, claimed_subject=subject, request_id=request_id)
    write_outputs(signature, [(output, signature.signature), (receipt, signature.receipt.to_json())])
    if session.as_json:
        session.emit(described(signature))
    elif output is None:
        print(base64.b64encode(signature.signature).decode())
    _tell(session, signature, output, receipt)


def statement(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The payload, exact bytes; - for standard input.")],
    key: KeyOption,
    payload_type: Annotated[str, typer.Option(help="The DSSE payload type.")] = "application/vnd.in-toto+json",
    output: Annotated[
        Path | None, typer.Option(help="Write the envelope here instead of to stdout.", show_default=False)
    ] = None,
    output_format: Annotated[
        StatementFormat, typer.Option("--format", help="A DSSE envelope, or the signature's bytes alone.")
    ] = StatementFormat.DSSE,
    receipt: ReceiptOption = None,
    algorithm: AlgorithmOption = None,
    request_id: RequestIdOption = "",
    json: JsonOption = False,
) -> None:
    """Have a statement signed as DSSE does: the daemon reads it before it signs."""
    session = session_of(context, as_json=json)
    payload = _payload(file)
    require_writable(output, receipt)
    with session.client() as client:
        signature = client.sign_statement(
            key, payload, payload_type=payload_type, algorithm=algorithm, request_id=request_id
        )
    whole = output_format is StatementFormat.DSSE
    data = _envelope(payload_type, payload, signature) if whole else signature.signature
    write_outputs(signature, [(output, data), (receipt, signature.receipt.to_json())])
    if session.as_json:
        session.emit(described(signature))
    elif output is None and whole:
        print(data.decode())
    elif output is None:
        print(base64.b64encode(data).decode())
    _tell(session, signature, output, receipt)


def described(signature: Signature) -> dict[str, Any]:
    """Return a signature as the object that `--json` writes."""
    return {
        "key_version": signature.key_version,
        "algorithm": signature.algorithm.value,
        "digest": signature.digest.hex(),
        "signature": base64.b64encode(signature.signature).decode(),
        "request_id": signature.request_id,
        "replayed": signature.replayed,
        "intent_index": signature.receipt.intent.index,
        "outcome_index": signature.receipt.outcome.index,
        "receipt": loads(signature.receipt.to_json()),
    }


def require_writable(*paths: Path | None) -> None:
    """Refuse, before anything is signed, what could not be written afterwards.

    Raises:
        UsageError: a directory is missing or cannot be written to, or two outputs are one file.
    """
    given = [path for path in paths if path is not None]
    if len({os.path.realpath(path) for path in given}) != len(given):
        message = f"two outputs would be written to one file: {given[0]}"
        raise UsageError(message)
    for path in given:
        parent = Path(os.path.realpath(path)).parent
        if path.is_dir():
            message = f"{path} is a directory; name a file"
            raise UsageError(message)
        if not parent.is_dir():
            message = f"{path} cannot be written: the directory {parent} does not exist; nothing was signed"
            raise UsageError(message)
        if not os.access(parent, os.W_OK | os.X_OK):
            message = f"{path} cannot be written: no right to write to {parent}; nothing was signed"
            raise UsageError(message)


def write_outputs(signature: Signature, outputs: list[tuple[Path | None, bytes]]) -> None:
    """Write each file whole.

    Raises:
        UsageError: one cannot be written; the message says how to come by the signature again.
    """
    from greatseal.files import write_whole

    for path, data in outputs:
        if path is None:
            continue
        try:
            write_whole(path, data)
        except OSError as error:
            message = (
                f"{path} cannot be written: {error.strerror}. It was signed and logged: "
                f"`--request-id {signature.request_id}` returns the same signature once the cause is gone"
            )
            raise UsageError(message) from None


def _hexadecimal(sha256: str, sha384: str, sha512: str) -> bytes:
    offered = (("sha256", sha256, 32), ("sha384", sha384, 48), ("sha512", sha512, 64))
    given = [(name, text, size) for name, text, size in offered if text]
    if len(given) != 1:
        message = "give one digest: --sha256 HEX, --sha384 HEX or --sha512 HEX"
        raise UsageError(message)
    name, text, size = given[0]
    return hexadecimal(text, f"--{name}", (size,))


def hexadecimal(text: str, what: str, sizes: tuple[int, ...]) -> bytes:
    """Return the bytes of hexadecimal text.

    Raises:
        UsageError: it is none, or of none of these sizes.
    """
    wanted = " or ".join(str(2 * size) for size in sizes)
    try:
        value = bytes.fromhex(text) if text.isalnum() else b""
    except ValueError:
        value = b""
    if len(value) not in sizes:
        message = f"{what} takes {wanted} hexadecimal digits, not {text[:140]!r} ({len(text)} characters)"
        raise UsageError(message)
    return value


def _payload(file: Path) -> bytes:
    data = read_bounded(file, MAX_STATEMENT_BYTES, dash_is_stdin=True)
    if not data:
        message = f"{file} is empty: there is nothing that can be signed"
        raise UsageError(message)
    return data


def _envelope(payload_type: str, payload: bytes, signature: Signature) -> bytes:
    from greatseal.dsse import Envelope, EnvelopeSignature

    # The key id is a hint and nothing relies on it: the public key's SHA-256, as the receipt names it.
    hint = loads(signature.receipt.outcome.entry)["key"]["spki_sha256"]
    return Envelope(payload_type, payload, (EnvelopeSignature(signature.signature, hint),)).to_json()


def _tell(session: Session, signature: Signature, output: Path | None, receipt: Path | None) -> None:
    if session.as_json:
        return
    again = ", the same signature as the first time" if signature.replayed else ""
    say(f"signed by {signature.key_version} ({signature.algorithm.value}){again}")
    say(
        f"in the log at {signature.receipt.intent.index} and {signature.receipt.outcome.index}; request {signature.request_id}"
    )
    for path, what in ((output, "signature"), (receipt, "receipt")):
        if path is not None:
            say(f"{what}: {path}")
