"""The ports to anchors that are other parties: witnesses, peers, and what all of them have seen of the log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from greatseal.cosignature import WitnessKey
from greatseal.tlogwitness import AddCheckpoint


class OutsideUnreachable(Exception):
    """Somebody outside gave no answer, or none that can be used; the message says who and why. An alarm, no more."""


@dataclass(frozen=True, slots=True)
class Cosigned:
    """The witness took the checkpoint: signature lines, not yet verified."""

    lines: str


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The witness has cosigned another size, or this size with another root; `size` is what it says."""

    size: int


@dataclass(frozen=True, slots=True)
class ProofRejected:
    """The witness says that the proof does not lead from what it cosigned to the checkpoint."""


class Witness(Protocol):
    """Another party that cosigns checkpoints (C2SP tlog-witness)."""

    @property
    def key(self) -> WitnessKey:
        """Its key; the key's name is the witness's."""
        ...

    def add_checkpoint(self, request: AddCheckpoint) -> Cosigned | Elsewhere | ProofRejected:
        """Ask for a cosignature. Blocks, no longer than the witness's time-out.

        Raises:
            OutsideUnreachable: there is no answer of these three.
        """
        ...


class Peer(Protocol):
    """A front or a mirror that has seen the log, too."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        ...

    def note(self) -> str:
        """Return its newest checkpoint, a signed note, not yet verified. Blocks, within its time-out.

        Raises:
            OutsideUnreachable: there is none.
        """
        ...


@dataclass(slots=True)
class Seen:
    """What is remembered: by anchor's name the newest note that it saw, and why one disagreed."""

    heads: dict[str, str] = field(default_factory=dict)
    against: dict[str, str] = field(default_factory=dict)


class SightingsUnusable(Exception):
    """What others have seen cannot be read or written; the message says where, why, and what to do."""


class Sightings(Protocol):
    """Remembers what witnesses and peers have seen, across restarts. Any thread."""

    @property
    def name(self) -> str:
        """What an operator would look for: a path."""
        ...

    def read(self) -> Seen:
        """Return what is remembered. Raises SightingsUnusable."""
        ...

    def remember(self, anchor: str, note: str) -> None:
        """Remember durably that an anchor saw this note, and that it agrees. Raises SightingsUnusable."""
        ...

    def dispute(self, anchor: str, why: str) -> None:
        """Remember durably that an anchor disagrees. Raises SightingsUnusable."""
        ...
