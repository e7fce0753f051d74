"""`--witness` and `--quorum`, wherever a checkpoint is verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from greatseal.errors import ProfileError, UsageError, VerificationFailed

if TYPE_CHECKING:
    from greatseal.cosignature import WitnessKey

WitnessOption = Annotated[
    list[str] | None,
    typer.Option(
        "--witness", help="Verifier key of a witness, or a file that holds it; may be repeated.", show_default=False
    ),
]
QuorumOption = Annotated[
    int | None,
    typer.Option(
        "--quorum", min=1, help="How many of the witnesses must have cosigned; all otherwise.", show_default=False
    ),
]


def witness_keys(values: Sequence[str] | None, quorum: int | None) -> list[WitnessKey]:
    """Return the keys that `--witness` names.

    Raises:
        UsageError: one is none, or the quorum is more than there are.
    """
    from greatseal.cosignature import WitnessKey
    from greatseal.profile import read_log_key

    keys = []
    for value in values or ():
        try:
            keys.append(WitnessKey.parse(read_log_key(value, name="--witness")))
        except VerificationFailed as error:
            message = f"--witness: {error.message}"
            raise ProfileError(message) from error
    if quorum is not None and quorum > len({key.public_key for key in keys}):
        message = f"--quorum {quorum} is more than the {len(keys)} different --witness keys that were given"
        raise UsageError(message)
    return keys


def described_witnesses(cosigned: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return a field for each witness that cosigned, with its time."""
    return [
        ("witnessed by", f"{name} at {datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}")
        for name, seconds in cosigned.items()
    ]
