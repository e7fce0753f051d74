"""`audit show` and `audit checkpoint`."""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from greatseal.cli.session import JsonOption, say, session_of
from greatseal.cli.witnesses import QuorumOption, WitnessOption, described_witnesses, witness_keys

if TYPE_CHECKING:
    from greatseal.client import Client
    from greatseal.cosignature import WitnessKey
    from greatseal.messages import SignedCheckpoint


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
    witness: WitnessOption = None,
    quorum: QuorumOption = None,
    json: JsonOption = False,
) -> None:
    """Print the newest checkpoint, a C2SP signed note; with --witness the newest that enough of them have cosigned."""
    session = session_of(context, as_json=json)
    keys = witness_keys(witness, quorum)
    needed = len(keys) if quorum is None else quorum
    with session.client() as client:
        found, cosigned = _witnessed(client, keys, needed) if keys else (client.audit.checkpoint(), {})
    if output is not None:
        from greatseal.files import write_whole

        write_whole(output, found.note.encode())
        say(f"checkpoint of {found.size} entries written to {output}")
    if session.as_json:
        shown = {"size": found.size, "root": found.root.hex(), "note": found.note, "verified": found.verified}
        session.emit(shown | ({"witnesses": cosigned} if keys else {}))
    elif output is None:
        sys.stdout.write(found.note)
    if not session.as_json:
        for what, who in described_witnesses(cosigned):
            say(f"{what} {who}")
    if not found.verified:
        say(f"The checkpoint is {_UNSIGNED}.")


def _witnessed(client: Client, keys: Sequence[WitnessKey], quorum: int) -> tuple[SignedCheckpoint, dict[str, int]]:
    """Read a checkpoint that `quorum` of these witnesses cosigned, and who did.

    The daemon counts all of its witnesses, of whom these may be some: so it is asked for more until they are among them.

    Raises:
        QuorumMissing: its witnesses are others.
    """
    from greatseal.cosignature import require_quorum
    from greatseal.errors import InvalidRequest
    from greatseal.verification import QuorumMissing

    wanted = quorum
    missing: QuorumMissing | None = None
    while True:
        try:
            found = client.audit.checkpoint(cosignatures=wanted)
        except InvalidRequest:
            if missing is None:
                raise
            raise missing from None
        try:
            return found, require_quorum(found.note, keys, quorum)
        except QuorumMissing as error:
            missing = error
            wanted += 1


_UNSIGNED: Final = "not verified: give the log's key with --log-key or in the profile"


def _read(data: bytes) -> Any:
    try:
        return loads(data)
    except (ValueError, RecursionError):
        return None
