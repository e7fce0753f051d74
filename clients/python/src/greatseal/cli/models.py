"""`sign model` and `verify model`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from greatseal.cli.progress import ProgressOption, hashing_progress, show_bytes
from greatseal.cli.session import JsonOption, Session, say, session_of
from greatseal.errors import UsageError
from greatseal.files import read_bounded
from greatseal.oms.method import Method

if TYPE_CHECKING:
    from greatseal.oms.digest_cache import DigestCache
    from greatseal.oms.errors import ModelDiffers
    from greatseal.oms.sign import SignedModelFile
    from greatseal.oms.verify import Trust, VerifiedModel

_MAX_PEM_BYTES: Final = 1024 * 1024

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="The model's directory.", show_default=False)]
IgnoreOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore", metavar="PATH", help="Leave this path out, relative to MODEL; repeatable.", show_default=False
    ),
]
DigestCacheOption = Annotated[
    Path | None,
    typer.Option(
        "--digest-cache",
        metavar="FILE",
        help="Keep files' digests there, and read no file again that has not changed.",
        show_default=False,
    ),
]


def sign_model_command(
    context: typer.Context,
    model: ModelArgument,
    key: Annotated[str, typer.Option("--key", help="The key, keys/NAME or NAME.")] = "keys/release",
    signature: Annotated[
        Path | None,
        typer.Option("--signature", help="The signature file; MODEL/model.sig otherwise.", show_default=False),
    ] = None,
    receipt: Annotated[
        Path | None,
        typer.Option(
            "--receipt", help="Write the log's receipt here; inside MODEL it is not signed.", show_default=False
        ),
    ] = None,
    ignore: IgnoreOption = None,
    method: Annotated[
        Method | None,
        typer.Option(
            "--method",
            help="Name the key, or hold its certificates; certificate where the key has a chain.",
            show_default=False,
        ),
    ] = None,
    request_id: Annotated[
        str,
        typer.Option("--request-id", help="A UUID; the same id again returns the same signature.", show_default=False),
    ] = "",
    digest_cache: DigestCacheOption = None,
    progress: ProgressOption = None,
    json: JsonOption = False,
) -> None:
    """Hash a model, have its statement signed, and write an OpenSSF Model Signing bundle."""
    session = _session(context, as_json=json)
    from greatseal.oms.sign import sign_model

    with (
        session.client() as client,
        open_digest_cache(digest_cache, [model]) as cache,
        hashing_progress(session, "hashing", progress) as told,
    ):
        signed = sign_model(
            client,
            model,
            key=key,
            signature=signature,
            receipt=receipt,
            ignore=ignore or (),
            method=method,
            request_id=request_id,
            progress=told,
            cache=cache,
        )
    tell_trouble(cache)
    if session.as_json:
        session.emit(described_signed(signed))
        return
    released = signed.released
    session.fields(
        [
            ("model", f"{signed.name}, {_files(signed.files)}, {show_bytes(signed.size)}"),
            ("sha256", signed.root),
            ("signed by", f"{released.key_version} ({released.algorithm.value}), method {signed.method.value}"),
            ("signature", str(signed.signature_path)),
            *([("receipt", str(signed.receipt_path))] if signed.receipt_path else []),
        ]
    )
    if signed.known:
        say(f"{signed.known:,} of {_files(signed.files)} not read: unchanged since the digest cache has them")
    again = ", the same signature as the first time" if released.replayed else ""
    entries = released.receipt
    say(f"in the log at {entries.intent.index} and {entries.outcome.index}; request {released.request_id}{again}")


def verify_model_command(
    context: typer.Context,
    model: ModelArgument,
    signature: Annotated[
        Path | None,
        typer.Option("--signature", help="The signature file; MODEL/model.sig otherwise.", show_default=False),
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="Trust this key, PEM.", show_default=False)
    ] = None,
    root_cert: Annotated[
        Path | None,
        typer.Option("--root-cert", help="Trust who this root certificate leads to, PEM.", show_default=False),
    ] = None,
    ignore: IgnoreOption = None,
    progress: ProgressOption = None,
    json: JsonOption = False,
) -> None:
    """Verify offline that a model is the one that was signed, file by file."""
    session = _session(context, as_json=json)
    from greatseal.oms.errors import ModelDiffers
    from greatseal.oms.listing import relative_to_model
    from greatseal.oms.sign import SIGNATURE_NAME
    from greatseal.oms.verify import verify_model

    trust = _trust(public_key, root_cert)
    signature = signature or model / SIGNATURE_NAME
    try:
        with hashing_progress(session, "verifying", progress) as told:
            verified = verify_model(model, signature, trust, ignore=ignore or (), progress=told)
    except ModelDiffers as error:
        _show_differences(session, error)
        raise
    if session.as_json:
        session.emit(_described_verified(verified))
        return
    session.fields(
        [
            ("model", f"{verified.name}, {_files(verified.files)}, {show_bytes(verified.size)}"),
            ("sha256", verified.root),
            ("signed by", verified.signer or f"the trusted key, {verified.key_hint[:16]}…"),
        ]
    )
    itself = relative_to_model(model, signature)
    others = [path for path in verified.ignored if path != itself]
    if others:
        say(f"not signed, and not compared: {', '.join(_printable(others))}")
    say("OK: every file is the one that was signed")


def open_digest_cache(path: Path | None, models: Sequence[Path]) -> AbstractContextManager[DigestCache | None]:
    """Open the cache that was asked for; a context manager.

    Raises:
        UsageError: it cannot be used, or it would lie inside one of the models.
    """
    if path is None:
        return nullcontext()
    from greatseal.oms.digest_cache import DigestCache

    require_outside(path, models, "the digest cache")
    return DigestCache(path)


def require_outside(path: Path, models: Sequence[Path], what: str) -> None:
    """Refuse a file of ours inside a model, which it would change, before it is made.

    Raises:
        UsageError: it lies inside one of `models`.
    """
    from greatseal.oms.listing import relative_to_model

    for model in models:
        if relative_to_model(model, path) is not None:
            message = f"{what} {path} would lie inside the model {model} and change it; choose another place"
            raise UsageError(message)


def tell_trouble(cache: DigestCache | None) -> None:
    """Say that a cache was of no use."""
    if cache is not None and cache.trouble:
        say(f"warning: {cache.trouble}")


def _trust(public_key: Path | None, root_cert: Path | None) -> Trust:
    from greatseal.oms.verify import Trust

    if public_key is not None and root_cert is None:
        return Trust.in_key(read_bounded(public_key, _MAX_PEM_BYTES))
    if root_cert is not None and public_key is None:
        return Trust.in_root_pem(read_bounded(root_cert, _MAX_PEM_BYTES))
    message = "say whom you trust: --public-key PEM or --root-cert PEM, one of the two"
    raise UsageError(message)


def _session(context: typer.Context, *, as_json: bool) -> Session:
    session = session_of(context)
    session.as_json = session.as_json or as_json
    return session


def _show_differences(session: Session, error: ModelDiffers) -> None:
    kinds = {"changed": error.changed, "missing": error.missing, "extra": error.extra}
    if session.as_json:
        session.emit({"verified": False, **{kind: list(names) for kind, names in kinds.items()}})
        return
    for kind, names in kinds.items():
        for name in _printable(names):
            print(f"{kind}\t{name}")


def described_signed(signed: SignedModelFile) -> dict[str, Any]:
    """Return a signed model as the object that `--json` writes."""
    from greatseal.cli.sign import described

    return {
        "model": signed.name,
        "sha256": signed.root,
        "files": signed.files,
        "bytes": signed.size,
        "files_from_cache": signed.known,
        "method": signed.method.value,
        "signature_file": str(signed.signature_path),
        "receipt_file": str(signed.receipt_path) if signed.receipt_path else None,
        **described(signed.released),
    }


def _described_verified(verified: VerifiedModel) -> dict[str, Any]:
    return {
        "verified": True,
        "model": verified.name,
        "sha256": verified.root,
        "files": verified.files,
        "bytes": verified.size,
        "key_hint": verified.key_hint,
        "signer": verified.signer or None,
        "ignored": list(verified.ignored),
    }


def _printable(names: Sequence[str]) -> list[str]:
    from greatseal.oms.errors import printable

    return [printable(name) for name in names]


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"
