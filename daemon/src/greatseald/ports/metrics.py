"""The port to metrics: what the core reports of itself, without knowing who listens.

Names follow Prometheus; see docs/user-guide for each one's meaning. All methods are cheap, never
raise, and may be called from any thread.
"""

from __future__ import annotations

from typing import Protocol


class Metrics(Protocol):
    """What the core reports."""

    def signed(self, key: str, algorithm: str, count: int, seconds: float) -> None:
        """`count` signatures of one group were released, `seconds` after they were asked for."""
        ...

    def not_signed(self, key: str, algorithm: str, result: str) -> None:
        """An intent of this key ended without a signature: `failed`, `unknown` or `aborted`."""
        ...

    def refused(self, reason: str, count: int = 1) -> None:
        """Requests were refused or failed with this ErrorReason."""
        ...

    def committed(self, entries: int, seconds: float) -> None:
        """One group commit of so many entries, anchor included, took so long."""
        ...

    def log_size(self, entries: int, open_intents: int) -> None:
        """The log has so many entries; so many intents of this front are open."""
        ...

    def token_seconds(self, token: str, operations: int, seconds: float) -> None:
        """A token worked on so many operations for so long."""
        ...

    def token_state(self, token: str, state: str) -> None:
        """A token went into this state."""
        ...

    def token_failed(self, token: str, kind: str, operations: int) -> None:
        """Operations gave no signature: `unavailable`, `locked`, `refused`, `unknown`, or `wrong` for one that does not verify."""
        ...

    def touch_awaited(self, token: str, waiting: bool) -> None:
        """A token began, or ended, to wait for a person's touch."""
        ...

    def host_restarted(self, token: str, cause: str) -> None:
        """A token's host was replaced: `crash`, `timeout`, `lost`."""
        ...

    def denial_suppressed(self, count: int) -> None:
        """Denials were counted but not logged one by one."""
        ...

    def anchor_failed(self) -> None:
        """The anchor could not be advanced."""
        ...
