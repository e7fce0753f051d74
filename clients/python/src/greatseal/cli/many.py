"""`sign models`: many directories in one run."""

from __future__ import annotations

import json as jsonlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from greatseal.cli.failures import describe, report
from greatseal.cli.models import DigestCacheOption, described_signed, open_digest_cache, require_outside, tell_trouble
from greatseal.cli.progress import ProgressOption, models_progress, show_bytes
from greatseal.cli.session import JsonOption, Session, say, session_of
from greatseal.errors import UsageError
from greatseal.files import read_bounded
from greatseal.oms.method import Method

if TYPE_CHECKING:
    from greatseal.oms.many import ModelResult

_MAX_LIST_BYTES: Final = 16 << 20
_UNEXPECTED: Final = 1


def sign_models_command(
    context: typer.Context,
    models: Annotated[
        list[Path] | None, typer.Argument(metavar="MODEL...", help="The models' directories.", show_default=False)
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option("--from-file", help="Read more directories from here, one a line; - for standard input."),
    ] = None,
    key: Annotated[str, typer.Option("--key", help="The key, keys/NAME or NAME.")] = "keys/release",
    receipts: Annotated[
        Path | None,
        typer.Option("--receipts", metavar="DIR", help="Write the log's receipts there, NAME.receipt.json."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="FILE",
            help="Keep the request ids in this journal; the same run again goes on where it was cut.",
            show_default=False,
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", metavar="PATH", help="Leave this path out of each; repeatable.", show_default=False),
    ] = None,
    method: Annotated[Method | None, typer.Option("--method", help="As of `sign model`.", show_default=False)] = None,
    batch_timeout: Annotated[
        float, typer.Option("--batch-timeout", help="Seconds for one batch, tries after a cut connection included.")
    ] = 300.0,
    digest_cache: DigestCacheOption = None,
    progress: ProgressOption = None,
    json: JsonOption = False,
) -> None:
    """Hash and sign many models in one run; each gets its own result, and none is held up by another's trouble.

    With --json one object a line, as each model is done. The exit code is 0 if all were signed, that of the
    failures where all failed alike, else 1.
    """
    session = session_of(context, as_json=json)
    paths = [*(models or ()), *_listed(from_file)]
    if not paths:
        message = "name at least one model's directory, or a list of them with --from-file"
        raise UsageError(message)
    from greatseal.oms.journal import Journal
    from greatseal.oms.many import sign_models

    if resume is not None:
        require_outside(resume, paths, "the journal")
    codes: Counter[int] = Counter()
    with (
        session.client() as client,
        Journal(resume) as journal,
        open_digest_cache(digest_cache, paths) as cache,
        models_progress(session, len(paths), progress) as watched,
    ):
        results = sign_models(
            client,
            paths,
            journal=journal,
            key=key if "/" in key else f"keys/{key}",
            receipts=receipts,
            ignore=ignore or (),
            method=method,
            timeout=batch_timeout,
            progress=watched.hashing,
            cache=cache,
        )
        for result in results:
            codes[_show(session, result)] += 1
            watched.finished()
    tell_trouble(cache)
    signed = codes.pop(0, 0)
    if not session.as_json:
        say(f"{signed:,} of {len(paths):,} models signed")
    if codes:
        raise typer.Exit(next(iter(codes)) if len(codes) == 1 and not signed else _UNEXPECTED)


def _show(session: Session, result: ModelResult) -> int:
    """Write one result; return its exit code."""
    model = str(result.model)
    if result.signed is not None:
        if session.as_json:
            print(jsonlib.dumps({"path": model, "signed": True, **described_signed(result.signed)}), flush=True)
        else:
            from greatseal.text import one_line

            again = "again" if result.signed.released.replayed else "signed"
            size = show_bytes(result.signed.size)
            print(f"{again}\t{result.signed.root}\t{size}\t{one_line(model)}", flush=True)
        return 0
    assert result.error is not None  # noqa: S101 - it is the one or the other
    if session.as_json:
        described = describe(result.error)
        print(jsonlib.dumps({"path": model, "signed": False, "error": described}), flush=True)
        return int(described["exit_code"])
    say(f"{model} was not signed:")
    return report(result.error, as_json=False)


def _listed(file: Path | None) -> list[Path]:
    if file is None:
        return []
    data = read_bounded(file, _MAX_LIST_BYTES, dash_is_stdin=True)
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        message = f"{file} is not UTF-8"
        raise UsageError(message) from None
    return [Path(line) for line in lines if line.strip()]
