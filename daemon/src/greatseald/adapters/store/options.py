"""What a shared store is told beside its URL: secrets, timeouts, sizes. An embedded store needs none of it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Seconds throughout; 0 means no limit, but for `wait_for_server`, where it means not to wait.

    `password` comes from a file or a credential, never from argv or the environment. `idle_timeout` is
    how long a front may hold a transaction open without a statement before the server ends its session:
    one that stalls there would stop all others at the head row.
    """

    password: str = field(default="", repr=False)
    connect_timeout: float = 10.0
    statement_timeout: float = 30.0
    lock_timeout: float = 30.0
    idle_timeout: float = 10.0
    readers: int = 4
    wait_for_server: float = 0.0


DEFAULTS = StoreOptions()
