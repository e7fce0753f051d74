"""`receipt verify`: offline, against the log's key alone and whatever else the user holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from greatseal.cli.session import JsonOption, LogKeyOption, say, session_of
from greatseal.cli.witnesses import QuorumOption, WitnessOption, described_witnesses, witness_keys
from greatseal.errors import UsageError
from greatseal.files import read_bounded

if TYPE_CHECKING:
    from greatseal.receipt import VerifiedReceipt

_MAX_FILE_BYTES: Final = 64 << 20
SIGNATURE_NAME: Final = "model.sig"


def verify(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The receipt.")],
    log_key: LogKeyOption = "",
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="The key that must have signed, PEM.", show_default=False)
    ] = None,
    digest: Annotated[
        str, typer.Option("--digest", help="The digest that must have been signed, hexadecimal.", show_default=False)
    ] = "",
    model: Annotated[
        Path | None, typer.Option("--model", help="The model that must have been signed.", show_default=False)
    ] = None,
    signature: Annotated[
        Path | None,
        typer.Option("--signature", help="The model's signature file; MODEL/model.sig otherwise.", show_default=False),
    ] = None,
    statement: Annotated[
        Path | None, typer.Option("--statement", help="The statement that must have been signed.", show_default=False)
    ] = None,
    witness: WitnessOption = None,
    quorum: QuorumOption = None,
    json: JsonOption = False,
) -> None:
    """Verify a receipt offline: both entries stand in the log, and they are of what you hold."""
    session = session_of(context, as_json=json)
    if sum(1 for given in (digest, model, statement) if given) > 1:
        message = "give one of --digest, --model and --statement"
        raise UsageError(message)
    from greatseal.cli.sign import hexadecimal
    from greatseal.cosignature import cosigned_by
    from greatseal.profile import log_key_of, read_log_key
    from greatseal.receipt import MAX_RECEIPT_BYTES, Receipt
    from greatseal.signatures import load_public_key

    line = read_log_key(log_key) if log_key else session.profile().log_key
    if not line:
        message = "--log-key is missing: the log's verifier key, one line, from whoever runs the log (log.vkey)"
        raise UsageError(message)
    key = log_key_of(line)
    witnesses = witness_keys(witness, quorum)
    expected = hexadecimal(digest, "--digest", (32, 48, 64)) if digest else None
    public = load_public_key(read_bounded(public_key, _MAX_FILE_BYTES)) if public_key is not None else None
    payload = read_bounded(statement, _MAX_FILE_BYTES) if statement is not None else None
    receipt = Receipt.from_json(read_bounded(file, MAX_RECEIPT_BYTES))
    if model is not None:
        from greatseal.oms.verify import signed_payload

        payload = signed_payload(model, signature or model / SIGNATURE_NAME)
    proven = receipt.verify(
        key, public_key=public, digest=expected, payload=payload, witnesses=witnesses, quorum=quorum
    )
    checked = "signature, log and content" if expected or payload else "signature and log"
    cosigned = cosigned_by(receipt.checkpoint, witnesses)
    if session.as_json:
        session.emit({"verified": True} | _described(proven) | ({"witnesses": cosigned} if witnesses else {}))
        return
    session.fields(
        [
            ("log", f"{proven.log}, entries {proven.intent_index} and {proven.outcome_index} of {proven.log_size}"),
            ("key", f"{proven.key}, version {proven.key_version}, {proven.algorithm.value}"),
            ("spki sha256", proven.spki_sha256),
            ("digest", proven.digest.hex()),
            ("requested by", proven.caller),
            ("request", proven.request_id),
            ("signed at", proven.signed_at),
            ("subject", f"{proven.subject or '-'}{' (the caller says; signed blind)' if proven.blind else ''}"),
            *described_witnesses(cosigned),
        ]
    )
    if not proven.signature_verified:
        checked = checked.replace("signature and ", "").replace("signature, ", "")
        needed = "--public-key" if public is None else f"--statement beside --public-key ({proven.algorithm.value})"
        say(f"The signature itself was not verified: {needed} does that.")
    if expected is None and payload is None:
        say("What was signed was not compared with anything: --digest, --statement or --model does that.")
    say(f"OK: verified {checked}")


def _described(proven: VerifiedReceipt) -> dict[str, object]:
    described = dataclasses.asdict(proven)
    described |= {
        "algorithm": proven.algorithm.value,
        "digest": proven.digest.hex(),
        "signature": proven.signature.hex(),
    }
    return described
