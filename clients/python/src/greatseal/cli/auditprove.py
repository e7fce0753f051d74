"""`audit prove`, and `verify entry`, which checks offline what it wrote."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from greatseal.cli.session import JsonOption, LogKeyOption, Session, say, session_of
from greatseal.errors import InvalidRequest, NotFound, UsageError, VerificationFailed
from greatseal.files import read_bounded

if TYPE_CHECKING:
    from greatseal.checkpoint import Checkpoint
    from greatseal.client import Client
    from greatseal.messages import SignedCheckpoint
    from greatseal.note import VerifierKey

_MAX_NOTE_BYTES: Final = 1_000_000
_MAX_DIGITS: Final = 19


class _Tree:
    """A beginning of the log: its size and root, and its signed note where there is one."""

    def __init__(self, size: int, root: bytes, note: str = "") -> None:
        self.size = size
        self.root = root
        self.note = note


def prove(
    context: typer.Context,
    places: Annotated[list[str], typer.Argument(metavar="INDEX", help="The entry; with --consistency OLD [NEW].")],
    size: Annotated[
        int | None,
        typer.Option(min=1, help="In the tree of so many entries; the newest otherwise.", show_default=False),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="In the tree of this checkpoint, kept earlier.", show_default=False)
    ] = None,
    consistency: Annotated[
        bool,
        typer.Option("--consistency", help="Prove that the tree OLD begins NEW: sizes, or files of checkpoints."),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write the proof here, with its checkpoint (C2SP).", show_default=False)
    ] = None,
    entry: Annotated[Path | None, typer.Option(help="Write the entry's exact bytes here.", show_default=False)] = None,
    json: JsonOption = False,
) -> None:
    """Prove that an entry stands in the log, or that the log only grew; the proof is checked here."""
    session = session_of(context, as_json=json)
    key = _log_key(session, "")
    if consistency:
        if len(places) > 2 or size is not None or checkpoint is not None or entry is not None:
            message = "--consistency takes OLD and perhaps NEW, and neither --size, --checkpoint nor --entry"
            raise UsageError(message)
        _consistency(session, key, places[0], places[1] if len(places) > 1 else None, output)
        return
    if len(places) != 1 or (size is not None and checkpoint is not None):
        message = "give one INDEX, and at most one of --size and --checkpoint; two sizes are for --consistency"
        raise UsageError(message)
    _inclusion(session, key, _number(places[0], "INDEX"), size, checkpoint, output, entry)


def _inclusion(
    session: Session,
    key: VerifierKey,
    index: int,
    size: int | None,
    checkpoint: Path | None,
    output: Path | None,
    entry: Path | None,
) -> None:
    from greatseal import tlog
    from greatseal.files import write_whole

    kept = _read_checkpoint(checkpoint, key) if checkpoint is not None else None
    with session.client() as client:
        newest = client.audit.checkpoint()
        if kept is not None:
            _require_begins(client, kept, newest)
        wanted = kept.size if kept is not None else size or newest.size
        if not index < wanted <= newest.size:
            message = f"entry {index} does not stand in a tree of {wanted} entries; the log has {newest.size}"
            raise UsageError(message)
        found = client.audit.entry(index)
        leaf = tlog.leaf_hash(found.data)
        hashes = client.audit.inclusion(index, wanted).hashes
        if kept is not None:
            tree = kept
            tlog.verify_inclusion(index, wanted, leaf, hashes, tree.root)
        else:
            # Of an earlier tree no signature is at hand: its root is the one that the newest continues.
            root = tlog.inclusion_root(index, wanted, leaf, hashes)
            tree = _Tree(wanted, root, newest.note if wanted == newest.size else "")
        _require_begins(client, tree, newest)
    proof = tlog.TlogProof(index, hashes, tree.note).text() if tree.note else ""
    if output is not None:
        _write(output, proof, tree, newest)
    if entry is not None:
        write_whole(entry, found.data)
        say(f"entry {index} written to {entry}")
    if session.as_json:
        said = {"index": index, "leaf_hash": leaf.hex(), "data": base64.b64encode(found.data).decode()}
        session.emit(said | _described(tree, hashes))
        return
    session.fields(
        [("entry", str(index)), ("leaf hash", leaf.hex()), ("tree", f"{tree.size} entries"), ("root", tree.root.hex())]
    )
    say(f"OK: entry {index} stands in the tree of {tree.size} entries, {_signed(tree, newest)}")


def _consistency(session: Session, key: VerifierKey, old: str, new: str | None, output: Path | None) -> None:

    with session.client() as client:
        newest = client.audit.checkpoint()
        latest = _Tree(newest.size, newest.root, newest.note)
        first = _tree(client, key, old, newest)
        second = latest if new is None else _tree(client, key, new, newest)
        if new is not None and first.size > second.size:
            message = f"OLD has {first.size} entries and NEW {second.size}: give the smaller one first"
            raise UsageError(message)
        hashes = _require_begins(client, first, second)
        _require_begins(client, second, newest)
    if output is not None:
        lines = "".join(f"{base64.b64encode(each).decode()}\n" for each in hashes)
        _write(output, f"old {first.size}\n{lines}\n{second.note}" if second.note else "", second, newest)
    if session.as_json:
        said = {"old_size": first.size, "old_root": first.root.hex()}
        session.emit(said | _described(second, hashes))
        return
    session.fields(
        [
            ("old", f"{first.size} entries, root {first.root.hex()}"),
            ("new", f"{second.size} entries, root {second.root.hex()}"),
        ]
    )
    say(f"OK: the tree of {first.size} entries is the beginning of that of {second.size}, {_signed(second, newest)}")


def _tree(client: Client, key: VerifierKey, place: str, newest: SignedCheckpoint) -> _Tree:
    from greatseal import tlog

    if not place.isascii() or not place.isdigit():
        return _read_checkpoint(Path(place), key)
    size = _number(place, "a size")
    if not 1 <= size <= newest.size:
        message = f"a tree of {size} entries cannot be proven: the log has {newest.size}"
        raise UsageError(message)
    if size == newest.size:
        return _Tree(size, newest.root, newest.note)
    leaf = tlog.leaf_hash(client.audit.entry(size - 1).data)
    return _Tree(size, tlog.RootHash.from_last(size, leaf, client.audit.inclusion(size - 1, size).hashes).root())


def _require_begins(client: Client, tree: _Tree, later: SignedCheckpoint | _Tree) -> tuple[bytes, ...]:
    """Return the proof that a tree begins a later one, checked."""
    from greatseal import tlog

    if tree.size > later.size:
        message = f"the log has {later.size} entries and the checkpoint {tree.size}: the log was cut off or rolled back"
        raise VerificationFailed(message)
    try:
        hashes = () if tree.size in {0, later.size} else client.audit.consistency(tree.size, later.size).hashes
    except (NotFound, InvalidRequest) as error:
        message = f"the daemon does not prove that the tree of {tree.size} entries begins that of {later.size}: {error.message}"
        raise VerificationFailed(message) from error
    tlog.verify_consistency(tree.size, later.size, hashes, tree.root, later.root)
    return hashes


def verify_entry(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="ENTRY", help="The entry's exact bytes, as `prove --entry` wrote them.")
    ],
    proof: Annotated[Path, typer.Option(help="Its proof, as `prove --output` wrote it (C2SP tlog-proof).")],
    log_key: LogKeyOption = "",
    json: JsonOption = False,
) -> None:
    """Verify offline that an entry stands in the log, by its proof."""
    session = session_of(context, as_json=json)
    from greatseal import tlog
    from greatseal.checkpoint import open_checkpoint
    from greatseal.logcheck import MAX_ENTRY_BYTES
    from greatseal.verification import ProofInvalid

    key = _log_key(session, log_key)
    data = read_bounded(file, MAX_ENTRY_BYTES)
    try:
        text = read_bounded(proof, tlog.MAX_TLOG_PROOF_CHARS).decode()
    except UnicodeDecodeError:
        message = f"{proof} is not UTF-8, so no tlog-proof"
        raise ProofInvalid(message) from None
    parsed = tlog.parse_tlog_proof(text)
    checkpoint: Checkpoint = open_checkpoint(parsed.checkpoint, key)
    leaf = tlog.leaf_hash(data)
    tlog.verify_inclusion(parsed.index, checkpoint.size, leaf, parsed.hashes, checkpoint.root)
    if session.as_json:
        session.emit(
            {
                "verified": True,
                "log": checkpoint.origin,
                "index": parsed.index,
                "size": checkpoint.size,
                "root": checkpoint.root.hex(),
                "leaf_hash": leaf.hex(),
            }
        )
        return
    session.fields([("log", checkpoint.origin), ("entry", str(parsed.index)), ("leaf hash", leaf.hex())])
    say(f"OK: entry {parsed.index} stands in the tree of {checkpoint.size} entries that the log's key signed")


def _log_key(session: Session, given: str) -> VerifierKey:
    from greatseal.profile import log_key_of, read_log_key

    line = read_log_key(given) if given else session.profile().log_key
    if not line:
        message = "a proof needs the log's verifier key: give --log-key, or log_key in the profile"
        raise UsageError(message)
    return log_key_of(line)


def _read_checkpoint(path: Path, key: VerifierKey) -> _Tree:
    from greatseal.checkpoint import open_checkpoint

    data = read_bounded(path, _MAX_NOTE_BYTES)
    found = open_checkpoint(data, key)
    return _Tree(found.size, found.root, data.decode())


def _described(tree: _Tree, hashes: tuple[bytes, ...]) -> dict[str, Any]:
    return {
        "verified": True,
        "size": tree.size,
        "root": tree.root.hex(),
        "hashes": [each.hex() for each in hashes],
        "checkpoint": tree.note or None,
    }


def _signed(tree: _Tree, newest: SignedCheckpoint) -> str:
    return (
        "which the log's key signed"
        if tree.note
        else f"which the checkpoint of {newest.size} entries proves to be its own"
    )


def _write(path: Path, proof: str, tree: _Tree, newest: SignedCheckpoint) -> None:
    from greatseal.files import write_whole

    if not proof:
        message = (
            f"--output holds a signed checkpoint, and of the tree of {tree.size} entries there is none here: leave the "
            f"size out for the newest ({newest.size}), or give the file of a checkpoint that was kept"
        )
        raise UsageError(message)
    write_whole(path, proof.encode())
    say(f"proof written to {path}")


def _number(text: str, what: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS or int(text) >= 1 << 63:
        message = f"{what} is a number from 0 to 2^63 - 1, not {text[:80]!r}"
        raise UsageError(message)
    return int(text)
