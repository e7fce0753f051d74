"""One conversation with one witness, and what it means where the witness has seen something else.

A witness tells the size that it cosigned last. From there a consistency proof of our own tree must lead to our
checkpoint; where the witness refuses such a proof, or has seen more than there is, our log is not the one that it saw.

    line = cosign(witness, known, head.size, head.note, consistency)      # blocks: not for the event loop
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from greatseal.errors import VerificationFailed
from greatseal.note import open_note, parse_signature_line, signature_line
from greatseal.tlogwitness import AddCheckpoint
from greatseald.ports.sightings import Cosigned, Elsewhere, OutsideUnreachable, ProofRejected, Witness

_TRIES: Final = 3


class Disagrees(Exception):
    """An anchor has seen another history of the log; the message says which anchor and what it has seen."""


class Ahead(Exception):
    """A witness has cosigned more entries than the checkpoint that it was asked to cosign has."""

    def __init__(self, size: int) -> None:
        super().__init__(f"cosigned up to {size} entries")
        self.size = size


class Cosignature(NamedTuple):
    """A verified signature line of a witness, newline included."""

    witness: str
    line: str


def cosign(
    witness: Witness, known: int, size: int, note: str, consistency: Callable[[int, int], Sequence[bytes]]
) -> Cosignature:
    """Have a witness cosign a checkpoint; `known` is the size that it is believed to have cosigned last.

    Raises:
        OutsideUnreachable: it gave no answer that can be used.
        Ahead: it has cosigned more entries than these; whether we have them is for the caller to find out.
        Disagrees: it has seen another history.
    """
    name = witness.key.name
    old = min(known, size)
    for _ in range(_TRIES):
        answer = witness.add_checkpoint(AddCheckpoint(old, tuple(consistency(old, size)), note))
        if isinstance(answer, Cosigned):
            return Cosignature(name, _own_line(witness, note, answer.lines))
        if isinstance(answer, ProofRejected):
            raise Disagrees(
                f"witness {name} has cosigned another beginning of this log, {old} entries of it: the database was "
                "rewritten, or is a forked copy"
            )
        if answer.size > size:
            raise Ahead(answer.size)
        if answer.size == old:
            _require_another_root(answer, name, old, size)
        old = answer.size
    raise OutsideUnreachable(f"witness {name} names another size at every try")


def _require_another_root(answer: Elsewhere, name: str, old: int, size: int) -> None:
    """The witness says that it is where we said it was: of the same size that means another root."""
    if old == size:
        raise Disagrees(f"witness {name} has cosigned other entries than these {size}: the log was forked or rewritten")
    raise OutsideUnreachable(
        f"witness {name} contradicts itself: it has cosigned {answer.size} entries, and refuses a proof from there"
    )


def _own_line(witness: Witness, note: str, lines: str) -> str:
    """Take the witness's own line out of its answer, verified over the checkpoint; lines of other keys are dropped."""
    key = witness.key
    for text in lines.splitlines()[:100]:
        try:
            signature = parse_signature_line(text)
        except VerificationFailed:
            continue
        if (signature.name, signature.key_id) == (key.name, key.key_id):
            line = signature_line(signature)
            try:
                open_note(note + line, key)
            except VerificationFailed as error:
                raise OutsideUnreachable(
                    f"witness {key.name} answered with a wrong cosignature: {error.message}"
                ) from error
            return line
    raise OutsideUnreachable(f"witness {key.name} answered without a cosignature of its key")
