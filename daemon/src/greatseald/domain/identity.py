"""Who calls, as the certificate proves it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated client.

    `id` is what rules match: the one SPIFFE id, else the DNS name, e-mail address or subject.
    Hashes and `serial` are lower-case hexadecimal without prefix; `not_after` is aware, UTC.
    """

    id: str
    cert_sha256: str
    serial: str
    issuer: str
    spki_sha256: str
    not_after: datetime
    request_scope: bytes = field(init=False, repr=False, compare=False)
    """The 16 bytes under which this caller's request ids are kept: renewed certificates share it."""

    def __post_init__(self) -> None:
        """Derive the scope once: it is asked for with every call."""
        object.__setattr__(self, "request_scope", hashlib.sha256(self.id.encode()).digest()[:16])
