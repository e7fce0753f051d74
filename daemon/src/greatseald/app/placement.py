"""Which version and which token a request is given to, out of all that could do it.

    placement.place(jobs, now)      # each job has its version and its holding, and counts as theirs
    placement.asked(jobs)           # now their token counts them itself

A lane is a version with one of the tokens that hold it. Lanes are the primary version's; those of another
ENABLED version step in where the primary has none. A job never goes to a lane that failed it before. How the rest is shared is arithmetic (`domain.scheduling`).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from greatseald.domain.scheduling import Lane, spread
from greatseald.ports.tokens import BreakerState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from greatseald.app.admission import Admitted
    from greatseald.app.job import Job
    from greatseald.app.keys import KeyRing
    from greatseald.app.versions import Holding, SigningVersion


class Way(NamedTuple):
    """A version, and one of the tokens that hold it."""

    version: SigningVersion
    holding: Holding


class Placement:
    """Places jobs. Belongs to the event loop: what is placed and not asked for yet is counted here."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys
        self._placed: Counter[str] = Counter()

    def place(self, jobs: Sequence[Job], now: float) -> None:
        """Give each job its version and its holding."""
        if len(jobs) == 1:
            self._share(jobs, now)
            return
        alike: dict[tuple[object, ...], list[Job]] = {}
        for job in jobs:
            request = job.request
            kind = (id(request.version), request.pinned, request.algorithm, tuple(map(id, job.tried)))
            alike.setdefault(kind, []).append(job)
        for group in alike.values():
            self._share(group, now)

    def _share(self, jobs: Sequence[Job], now: float) -> None:
        """Share jobs that have the same choice among the lanes that they can take."""
        version, algorithm = jobs[0].request.version, jobs[0].request.algorithm
        ways = self.ways(jobs[0], now)
        if not ways:
            self._assign(jobs, Way(version, version.holding_for(algorithm)), movable=False)
            return
        # A first failure moves to another; where there is none, what waits for a token stays with it.
        movable = len(ways) > 1
        if not movable:
            self._assign(jobs, ways[0], movable=False)
            return
        lanes = [self._lane(way.holding) for way in ways]
        shares = spread(len(jobs), lanes)
        left = len(jobs) - sum(shares)
        if left:  # every one of them is being tried: they wait in line there
            shares = [a + b for a, b in zip(shares, spread(left, [lane.unlimited() for lane in lanes]), strict=True)]
        start = 0
        for way, share in zip(ways, shares, strict=True):
            if share:
                self._assign(jobs[start : start + share], way, movable=True)
                start += share

    def _assign(self, jobs: Sequence[Job], way: Way, *, movable: bool) -> None:
        for job in jobs:
            job.request.version, job.holding = way
            job.movable, job.placed = movable, True
        self._placed[way.holding.token.name] += len(jobs)

    def asked(self, jobs: Iterable[Job]) -> None:
        """Count these no longer: their token has them, or they never got there."""
        for job in jobs:
            if job.placed and job.holding is not None:
                job.placed = False
                self._placed[job.holding.token.name] -= 1

    def ways(self, job: Job, now: float) -> list[Way]:
        """Return the lanes that could take a job now and have not failed it."""
        request = job.request
        for version in self._versions(request):
            if version.may_sign(request.algorithm, now):
                ways = [
                    Way(version, holding)
                    for holding in version.holdings
                    if holding.ready and request.algorithm in holding.algorithms and holding not in job.tried
                ]
                if ways:
                    return ways
        return []

    def _versions(self, request: Admitted) -> Iterable[SigningVersion]:
        """The versions that may answer a request: the one that it names, or the primary, and then those that stand by."""
        key = self._keys.keys.get(request.version.key)
        if key is None or request.pinned is not None:
            return (request.version,)
        primary = key.primary_version
        return (primary, *(version for version in key.versions.values() if version is not primary))

    def has_another(self, job: Job, now: float) -> bool:
        """Whether a lane is left for a job besides the one that failed it just now."""
        return any(way.holding is not job.holding for way in self.ways(job, now))

    def _lane(self, holding: Holding) -> Lane:
        load = holding.token.load
        backlog = load.waiting + load.in_flight + self._placed[holding.token.name]
        limit = max(0, 1 - backlog) if load.breaker is not BreakerState.CLOSED else None
        return Lane(backlog, load.operation_seconds / max(1, load.sessions), load.late, limit)
