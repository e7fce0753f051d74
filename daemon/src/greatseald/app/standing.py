"""Whether any anchor outside contradicts this log. While one does, nothing is signed and nothing is released.

It holds until the daemon is started anew: a start asks every anchor again.
"""

from __future__ import annotations

import structlog

from greatseald.domain.errors import AnchorDisagrees

_log = structlog.get_logger("greatseald.anchors")


class Standing:
    """Who disagrees, and why. Belongs to the event loop; a reader on another thread sees the newest or the one before."""

    def __init__(self) -> None:
        self.against: dict[str, str] = {}

    def contradict(self, anchor: str, why: str) -> None:
        """Sign no more: this anchor has seen another history."""
        if anchor not in self.against:
            self.against[anchor] = why
            _log.error("anchor_disagrees", anchor=anchor, why=why)

    @property
    def why(self) -> str:
        """What the first that disagreed has seen; empty while none does."""
        return next(iter(self.against.values()), "")

    def refusal(self) -> AnchorDisagrees | None:
        """Return why nothing may be signed or released, None while every anchor agrees."""
        if not self.against:
            return None
        others = f" (and {len(self.against) - 1} more)" if len(self.against) > 1 else ""
        message = f"nothing is signed, for an anchor disagrees with the log: {self.why}{others}"
        return AnchorDisagrees(message, anchor=next(iter(self.against)))

    def require_agreement(self) -> None:
        """Return if no anchor disagrees.

        Raises:
            AnchorDisagrees: one does.
        """
        refusal = self.refusal()
        if refusal is not None:
            raise refusal
