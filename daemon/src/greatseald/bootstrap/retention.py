"""What the retention of the log has to know of the other parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from greatseal.note import NoteSigner
from greatseald.app.retention import Limit, Retention
from greatseald.config import read_log_key

if TYPE_CHECKING:
    from greatseald.app.outbox import Outbox
    from greatseald.bootstrap.compose import OpenLog
    from greatseald.bootstrap.tiles import Tiles
    from greatseald.config import LogSettings


def build_retention(
    settings: LogSettings, opened: OpenLog, outboxes: Sequence[Outbox], tiles: Tiles | None
) -> Retention:
    """Put the use case over the log. Raises FileProblem where the log key cannot be read."""

    def needed() -> Iterator[Limit]:
        for outbox in outboxes:
            yield Limit(outbox.position, f"the outbox {outbox.name} has not delivered the rest")
        if tiles is not None:
            yield Limit(tiles.publishing.published, "[log.tiles] has not published the rest")

    return Retention(
        opened.log,
        opened.store,
        NoteSigner(settings.origin, read_log_key(settings.key_file)).verifier,
        needed=lambda: [*needed()],
        by_owner=opened.shared,
    )
