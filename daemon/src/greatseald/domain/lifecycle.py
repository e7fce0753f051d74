"""The states of a key version.

PRE_GENERATED is a key pair that nobody may use yet, ENABLED one that signs, DISABLED one that does
not. A version is destroyed after a delay in which that can be cancelled. COMPROMISED is for good. Whatever
its state, a version verifies for ever. Keys of the configuration are ENABLED; nothing changes a state yet.
"""

from __future__ import annotations

from enum import Enum


class VersionState(str, Enum):
    """Where a key version is in its life."""

    PRE_GENERATED = "PRE_GENERATED"
    ENABLED = "ENABLED"
    DISABLED = "DISABLED"
    DESTROY_SCHEDULED = "DESTROY_SCHEDULED"
    DESTROYED = "DESTROYED"
    COMPROMISED = "COMPROMISED"
