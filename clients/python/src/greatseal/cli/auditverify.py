"""`audit verify`: all of the log through RPC, or its end, in bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from greatseal.cli.auditprogress import progress
from greatseal.cli.audittimestamps import RootsOption, stamped_checkpoints
from greatseal.cli.session import JsonOption, LogKeyOption, say, session_of
from greatseal.errors import InvalidRequest, NotFound, UsageError, VerificationFailed
from greatseal.files import read_bounded

if TYPE_CHECKING:
    from greatseal.checkpoint import Checkpoint
    from greatseal.client import Client
    from greatseal.logcheck import LogCheck
    from greatseal.messages import SignedCheckpoint
    from greatseal.tlog import RootHash

_MAX_NOTE_BYTES: Final = 1_000_000


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
    start: Annotated[
        int,
        typer.Option(
            "--from", min=0, help="Read from this index on only; what is before is proven unchanged, not read."
        ),
    ] = 0,
    directory: Annotated[
        Path | None,
        typer.Option("--directory", help="Verify this export of the log, offline.", show_default=False),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys", help="With --directory: public keys, *.pem, that verify signatures.", show_default=False
        ),
    ] = None,
    timestamps: Annotated[
        Path | None,
        typer.Option("--timestamps", help="Timestamps whose checkpoints must stand in the log.", show_default=False),
    ] = None,
    tsa_roots: RootsOption = None,
    log_key: LogKeyOption = "",
    json: JsonOption = False,
) -> None:
    """Read the whole log, recompute its tree, and check every checkpoint and what the entries say of each other."""
    session = session_of(context, as_json=json)
    from greatseal.logcheck import LogCheck

    if log_key:
        session.settings = {**session.settings, "log_key": log_key}
    profile = session.profile()
    if not profile.log_key:
        message = "verifying the log needs its verifier key: give --log-key, or log_key in the profile"
        raise UsageError(message)
    kept = _kept(profile.log_key, profile.checkpoint_file, checkpoints or [], receipts or [])
    if timestamps is not None:
        from greatseal.profile import log_key_of

        kept.checkpoints += stamped_checkpoints(timestamps, log_key_of(profile.log_key), tsa_roots)
    if directory is not None or keys is not None:
        from greatseal.cli.auditexport import verify_directory

        if directory is None or start:
            message = "--keys goes with --directory, and --from does not"
            raise UsageError(message)
        verify_directory(session, directory, keys, profile.log_key, kept.checkpoints, kept.entries)
        return
    with session.client() as client:
        # Under the newest checkpoint everything older must be found again.
        newest = client.audit.checkpoint()
        pruned = client.audit.pruned_size()
        if start < pruned:
            say(
                f"the entries below {pruned} were dropped after an export: they are proven to be the beginning of the log, "
                "and not read. Read them with --directory and that export"
            )
            start = pruned
        origin = kept.origin
        check = LogCheck(origin, beginning(client, start, newest))
        with progress(session, start, newest.size) as report:
            _walk(client, check, newest.size, kept, report)
        _judge(client, check, newest.size, newest.root, kept)
        _prove(client, pruned, newest.size, newest.root)
    summary = {
        "verified": True,
        "origin": origin,
        "from": start,
        "pruned": pruned,
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
            ("entries", f"{newest.size}{f', read from {start} on' if start else ''}"),
            ("root", newest.root.hex()),
            ("checkpoints", f"{len(kept.checkpoints) + 1} verified"),
            *((("receipts", f"{len(kept.entries)} found in the log"),) if kept.entries else ()),
            *((name, str(count)) for name, count in sorted(check.counts.items())),
            ("open intents", f"{len(check.open_intents)}{_some(check.open_intents)}"),
        ]
    )
    which = f"every entry from {start} on" if start else "every entry"
    say(f"OK: {which} is covered by the newest checkpoint, and every intent has at most one outcome")


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
        kept.checkpoints.append((f"checkpoint {path}", open_checkpoint(read_bounded(path, _MAX_NOTE_BYTES), key)))
    for path in receipts:
        receipt = Receipt.from_json(read_bounded(path, MAX_RECEIPT_BYTES))
        proven = receipt.verify(key)
        kept.checkpoints.append((f"the checkpoint of receipt {path}", open_checkpoint(receipt.checkpoint, key)))
        for index, logged in ((proven.intent_index, receipt.intent), (proven.outcome_index, receipt.outcome)):
            kept.entries.append((f"receipt {path}", index, tlog.leaf_hash(logged.entry)))
    return kept


def beginning(client: Client, start: int, newest: SignedCheckpoint) -> RootHash:
    """The tree of the entries before `start`, proven to be the beginning of the newest."""
    from greatseal import tlog

    if start == 0:
        return tlog.RootHash()
    if start > newest.size:
        message = f"the log has {newest.size} entries: there is nothing to verify from {start} on"
        raise UsageError(message)
    leaf = tlog.leaf_hash(client.audit.entry(start - 1).data)
    tree = tlog.RootHash.from_last(start, leaf, client.audit.inclusion(start - 1, start).hashes)
    hashes = client.audit.consistency(start, newest.size).hashes
    tlog.verify_consistency(start, newest.size, hashes, tree.root(), newest.root)
    return tree


def _walk(client: Client, check: LogCheck, size: int, kept: _Kept, report: Callable[[int], None]) -> None:
    """Feed all entries to the check and note the roots at the sizes that were kept."""
    from greatseal import tlog

    sizes = {checkpoint.size for _, checkpoint in kept.checkpoints}
    wanted = {index for _, index, _ in kept.entries}
    if check.size in sizes:
        kept.roots[check.size] = check.root()
    for entry in islice(client.audit.entries(check.size), size - check.size):
        check.add(entry.index, entry.data)
        if entry.index in wanted:
            kept.leaves[entry.index] = tlog.leaf_hash(entry.data)
        if check.size in sizes:
            kept.roots[check.size] = check.root()
        report(check.size)
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
    repeated = find_repeated_nonce(marks, entries(check.first, size)) if marks else None
    if repeated is not None:
        problems.append(repeated)
    if problems:
        first = min(problems, key=lambda problem: problem.index)
        message = f"the log is bad from entry {first.index} on: entry {first.index} {first.message}"
        raise VerificationFailed(message)
    _prove_unread(client, check.first, size, root, kept)
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


def _prove_unread(client: Client, first: int, size: int, root: bytes, kept: _Kept) -> None:
    """Take the daemon's proofs, checked, of what was kept and stands before the first entry that was read."""
    from greatseal import tlog
    from greatseal.verification import ProofInvalid

    for _, known in kept.checkpoints:
        if known.size < first:
            kept.roots[known.size] = b""
            with contextlib.suppress(ProofInvalid, NotFound, InvalidRequest):
                hashes = client.audit.consistency(known.size, size).hashes if known.size else ()
                tlog.verify_consistency(known.size, size, hashes, known.root, root)
                kept.roots[known.size] = known.root
    for _, index, leaf in kept.entries:
        if index < first:
            with contextlib.suppress(ProofInvalid, NotFound, InvalidRequest):
                tlog.verify_inclusion(index, size, leaf, client.audit.inclusion(index, size).hashes, root)
                kept.leaves[index] = leaf


def _prove(client: Client, first: int, size: int, root: bytes) -> None:
    """Check the daemon's own inclusion proofs of the first entry that is there and of the last."""
    from greatseal import tlog

    for index in sorted({first, size - 1}) if size else ():
        entry = client.audit.entry(index)
        hashes = client.audit.inclusion(index, size).hashes
        tlog.verify_inclusion(index, size, tlog.leaf_hash(entry.data), hashes, root)


def _some(indexes: Sequence[int]) -> str:
    if not indexes:
        return ""
    return f" ({', '.join(str(index) for index in indexes[:10])}{', …' if len(indexes) > 10 else ''})"
