"""`audit`: reading the log, and checking all of it."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from greatseal.cli.session import JsonOption, say, session_of
from greatseal.errors import UsageError, VerificationFailed

if TYPE_CHECKING:
    from greatseal.checkpoint import Checkpoint
    from greatseal.client import Client
    from greatseal.logcheck import LogCheck

_MAX_NOTE_BYTES: Final = 1_000_000
_PROGRESS_EVERY: Final = 50_000


def show(
    context: typer.Context,
    index: Annotated[int, typer.Argument(metavar="INDEX", min=0, help="The entry's place, from 0.")],
    json: JsonOption = False,
) -> None:
    """Show one entry, and prove that it stands in the log."""
    session = session_of(context, as_json=json)
    from greatseal import tlog

    with session.client() as client:
        entry = client.audit.entry(index)
        checkpoint = client.audit.checkpoint()
        proof = client.audit.inclusion(index, checkpoint.size)
    leaf = tlog.leaf_hash(entry.data)
    tlog.verify_inclusion(index, checkpoint.size, leaf, proof.hashes, checkpoint.root)
    if session.as_json:
        session.emit(
            {
                "index": index,
                "leaf_hash": leaf.hex(),
                "log_size": checkpoint.size,
                "entry": _read(entry.data),
                "data": base64.b64encode(entry.data).decode(),
            }
        )
        return
    print(dumps(_read(entry.data), indent=2, ensure_ascii=True))
    say(f"leaf hash {leaf.hex()}")
    signed = "under a checkpoint that the log's key signed" if checkpoint.verified else _UNSIGNED
    say(f"stands in the log at {index} of {checkpoint.size}, {signed}")


def checkpoint(
    context: typer.Context,
    output: Annotated[
        Path | None, typer.Option(help="Write the checkpoint here instead of to stdout.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print the newest checkpoint, a C2SP signed note."""
    session = session_of(context, as_json=json)
    with session.client() as client:
        found = client.audit.checkpoint()
    if output is not None:
        from greatseal.files import write_whole

        write_whole(output, found.note.encode())
        say(f"checkpoint of {found.size} entries written to {output}")
    if session.as_json:
        session.emit({"size": found.size, "root": found.root.hex(), "note": found.note, "verified": found.verified})
    elif output is None:
        sys.stdout.write(found.note)
    if not found.verified:
        say(f"The checkpoint is {_UNSIGNED}.")


_UNSIGNED: Final = "not verified: give the log's key with --log-key or in the profile"


def verify(
    context: typer.Context,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Option("--checkpoint", help="A checkpoint kept earlier; may be repeated.", show_default=False),
    ] = None,
    receipts: Annotated[
        list[Path] | None,
        typer.Option("--receipt", help="A receipt that must stand in the log; may be repeated.", show_default=False),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Read the whole log, recompute its tree, and check every checkpoint and what the entries say of each other."""
    session = session_of(context, as_json=json)
    from greatseal.logcheck import LogCheck

    profile = session.profile()
    if not profile.log_key:
        message = "verifying the log needs its verifier key: give --log-key, or log_key in the profile"
        raise UsageError(message)
    kept = _kept(profile.log_key, profile.checkpoint_file, checkpoints or [], receipts or [])
    with session.client() as client:
        # Under the newest checkpoint everything older must be found again.
        newest = client.audit.checkpoint()
        origin = kept.origin
        check = LogCheck(origin)
        _walk(client, check, newest.size, kept, quiet=session.as_json)
        _judge(client, check, newest.size, newest.root, kept)
        _prove(client, newest.size, newest.root)
    summary = {
        "verified": True,
        "origin": origin,
        "size": newest.size,
        "root": newest.root.hex(),
        "checkpoints": len(kept.checkpoints) + 1,
        "receipts": len(kept.entries),
        "open_intents": check.open_intents,
        "counts": check.counts,
    }
    if session.as_json:
        session.emit(summary)
        return
    session.fields(
        [
            ("log", origin),
            ("entries", str(newest.size)),
            ("root", newest.root.hex()),
            ("checkpoints", f"{len(kept.checkpoints) + 1} verified"),
            *((("receipts", f"{len(kept.entries)} found in the log"),) if kept.entries else ()),
            *((name, str(count)) for name, count in sorted(check.counts.items())),
            ("open intents", f"{len(check.open_intents)}{_some(check.open_intents)}"),
        ]
    )
    say("OK: every entry is covered by the newest checkpoint, and every intent has at most one outcome")


class _Kept:
    """What was kept from earlier, and must be found in the log again.

    Attributes:
        checkpoints: their sources by what they say, verified.
        entries: index, leaf hash and source of entries that receipts hold.
        roots: the computed roots at the checkpoints' sizes, filled while walking.
    """

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.checkpoints: list[tuple[str, Checkpoint]] = []
        self.entries: list[tuple[str, int, bytes]] = []
        self.roots: dict[int, bytes] = {}
        self.leaves: dict[int, bytes] = {}


def _kept(log_key: str, remembered: Path | None, checkpoints: Iterable[Path], receipts: Iterable[Path]) -> _Kept:
    from greatseal import tlog
    from greatseal.checkpoint import open_checkpoint
    from greatseal.profile import log_key_of
    from greatseal.receipt import MAX_RECEIPT_BYTES, Receipt
    from greatseal.remembered import CheckpointFile

    key = log_key_of(log_key)
    kept = _Kept(key.name)
    if remembered is not None:
        seen = CheckpointFile(remembered, key).read()
        if seen is not None:
            kept.checkpoints.append((f"the remembered checkpoint {remembered}", seen.checkpoint))
    for path in checkpoints:
        kept.checkpoints.append((f"checkpoint {path}", open_checkpoint(_bounded(path, _MAX_NOTE_BYTES), key)))
    for path in receipts:
        receipt = Receipt.from_json(_bounded(path, MAX_RECEIPT_BYTES))
        proven = receipt.verify(key)
        kept.checkpoints.append((f"the checkpoint of receipt {path}", open_checkpoint(receipt.checkpoint, key)))
        for index, logged in ((proven.intent_index, receipt.intent), (proven.outcome_index, receipt.outcome)):
            kept.entries.append((f"receipt {path}", index, tlog.leaf_hash(logged.entry)))
    return kept


def _walk(client: Client, check: LogCheck, size: int, kept: _Kept, *, quiet: bool) -> None:
    """Feed all entries to the check and note the roots at the sizes that were kept."""
    from greatseal import tlog

    sizes = {checkpoint.size for _, checkpoint in kept.checkpoints}
    wanted = {index for _, index, _ in kept.entries}
    if 0 in sizes:
        kept.roots[0] = check.root()
    for entry in islice(client.audit.entries(), size):
        check.add(entry.index, entry.data)
        if entry.index in wanted:
            kept.leaves[entry.index] = tlog.leaf_hash(entry.data)
        if check.size in sizes:
            kept.roots[check.size] = check.root()
        if not quiet and check.size % _PROGRESS_EVERY == 0:
            say(f"{check.size} of {size} entries read")
    if check.size != size:
        message = (
            f"entry {check.size} is missing: the checkpoint covers {size} entries and the daemon returned {check.size}"
        )
        raise VerificationFailed(message)


def _judge(client: Client, check: LogCheck, size: int, root: bytes, kept: _Kept) -> None:
    """Raise for the first entry that is wrong, by the hashes or by what it says."""
    from greatseal.logcheck import Problem, find_repeated_nonce, first_difference

    def entries(start: int, end: int) -> Iterable[tuple[int, bytes]]:
        return ((entry.index, entry.data) for entry in islice(client.audit.entries(start), end - start))

    def proof(old: int, new: int) -> Sequence[bytes]:
        return client.audit.consistency(old, new).hashes

    problems: list[Problem] = []
    if check.root() != root:
        problems.append(first_difference(check, size, root, entries, proof))
    if check.problem is not None:
        problems.append(check.problem)
    marks = check.repeated_nonces()
    repeated = find_repeated_nonce(marks, entries(0, size)) if marks else None
    if repeated is not None:
        problems.append(repeated)
    if problems:
        first = min(problems, key=lambda problem: problem.index)
        message = f"the log is bad from entry {first.index} on: entry {first.index} {first.message}"
        raise VerificationFailed(message)
    for source, kept_checkpoint in kept.checkpoints:
        computed = kept.roots.get(kept_checkpoint.size)
        if computed is None:
            message = f"the log has {size} entries and {source} has {kept_checkpoint.size}: the log was cut off or rolled back"
            raise VerificationFailed(message)
        if computed != kept_checkpoint.root:
            message = (
                f"the first {kept_checkpoint.size} entries do not lead to the root of {source}: the log was forked or "
                f"rewritten; an entry below {kept_checkpoint.size} is another now than when that was signed"
            )
            raise VerificationFailed(message)
    for source, index, leaf in kept.entries:
        if kept.leaves.get(index) != leaf:
            message = f"entry {index} is not the one that {source} holds: the log was rewritten or cut off"
            raise VerificationFailed(message)


def _prove(client: Client, size: int, root: bytes) -> None:
    """Check the daemon's own inclusion proofs of the first and the last entry."""
    from greatseal import tlog

    for index in sorted({0, size - 1}) if size else ():
        entry = client.audit.entry(index)
        hashes = client.audit.inclusion(index, size).hashes
        tlog.verify_inclusion(index, size, tlog.leaf_hash(entry.data), hashes, root)


def _read(data: bytes) -> Any:
    try:
        return loads(data)
    except (ValueError, RecursionError):
        return None


def _some(indexes: Sequence[int]) -> str:
    if not indexes:
        return ""
    return f" ({', '.join(str(index) for index in indexes[:10])}{', …' if len(indexes) > 10 else ''})"


def _bounded(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        message = f"{path} is over {limit} bytes, more than any file of its kind"
        raise UsageError(message)
    return data
