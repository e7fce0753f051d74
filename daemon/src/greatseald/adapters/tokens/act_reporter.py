"""Tells a front what operators did, and keeps the others from working before that is in the log.

One front at a time is told; when it has gone without saying that it noted them, the next one is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Protocol

from greatseald.adapters.tokens.frames import FromHost, OperatorActs
from greatseald.adapters.tokens.operator_acts import ActJournal


class Front(Protocol):
    """A front that has said hello."""

    def send(self, message: FromHost) -> None:
        """Send one message; never raises for a front that is gone."""
        ...


class ActReporter:
    """Between the journal of one host and its fronts. Called by any thread."""

    def __init__(self, acts: ActJournal, on_settled: Callable[[], None]) -> None:
        """`on_settled` is called once nothing that operators did is missing in the log any more."""
        self._acts = acts
        self._on_settled = on_settled
        self._lock = threading.Lock()
        self._fronts: list[Front] = []
        self._told: Front | None = None
        self._told_ids: frozenset[str] = frozenset()

    @property
    def settled(self) -> bool:
        """Whether everything that operators did is in the log."""
        return self._acts.settled

    def came(self, front: Front) -> None:
        """A front has said hello."""
        with self._lock:
            self._fronts.append(front)
        self.tell()

    def gone(self, front: Front) -> None:
        """A front has gone: what it did not note, another one is told."""
        with self._lock:
            self._fronts = [each for each in self._fronts if each is not front]
            if self._told is front:
                self._told, self._told_ids = None, frozenset()
        self.tell()

    def noted(self, front: Front, ids: Collection[str]) -> None:
        """A front has these in the log.

        Raises:
            ActsUnusable: the journal cannot be written.
        """
        with self._lock:
            mine = self._told is front
            noted = self._told_ids & frozenset(ids) if mine else frozenset()
            self._acts.noted(noted)
            self._told_ids -= noted
            if mine and not self._told_ids:
                self._told = None
        self.tell()

    def tell(self) -> None:
        """Tell a front what waits, if one is there and none is at it."""
        with self._lock:
            waiting = self._acts.waiting
            if waiting and self._told is None and self._fronts:
                self._told = self._fronts[0]
                self._told_ids = frozenset(act.id for act in waiting)
                self._told.send(OperatorActs(waiting))
        if self.settled:
            self._on_settled()
