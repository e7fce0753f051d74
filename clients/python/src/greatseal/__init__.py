"""Greatseal's client: signatures by keys in hardware, with evidence that verifies offline.

    import greatseal

    with greatseal.Client.from_profile("client.toml") as client:
        signature = client.sign_digest("keys/scratch", hashlib.sha256(data).digest())
        print(signature.key_version, signature.receipt.outcome.index)

`Client` blocks, `AsyncClient` is awaited. Everything that fails raises a `GreatsealError`; the tree
is in `greatseal.errors`. What verifies needs no daemon: `Receipt.verify`, `greatseal.tlog`,
`greatseal.note`, `greatseal.oms`.

Importing this package imports nothing else; each name loads its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greatseal.aio import AsyncClient
    from greatseal.algorithms import Algorithm
    from greatseal.checkpoint import Checkpoint, open_checkpoint
    from greatseal.client import Client
    from greatseal.errors import (
        ConnectionRefused,
        DaemonError,
        DaemonFault,
        DeadlineExceeded,
        Denied,
        Exhausted,
        GreatsealError,
        InFlight,
        InvalidRequest,
        LogRegressed,
        NotFound,
        NotReady,
        ProfileError,
        RequestIdReused,
        Unavailable,
        UsageError,
        VerificationFailed,
    )
    from greatseal.ids import new_request_id
    from greatseal.messages import (
        Capability,
        ConsistencyProof,
        DigestRequest,
        Entry,
        EntryFilter,
        EntryPage,
        Grant,
        InclusionProof,
        Key,
        PublicKey,
        Signature,
        SignedCheckpoint,
        StatementRequest,
        Token,
        WhoAmI,
    )
    from greatseal.note import VerifierKey
    from greatseal.profile import Profile
    from greatseal.receipt import Receipt, VerifiedReceipt
    from greatseal.signatures import load_public_key, verify_digest, verify_message
    from greatseal.version import VERSION

    __version__ = VERSION

_HOMES = {
    "aio": ("AsyncClient",),
    "algorithms": ("Algorithm",),
    "checkpoint": ("Checkpoint", "open_checkpoint"),
    "client": ("Client",),
    "errors": (
        "ConnectionRefused",
        "DaemonError",
        "DaemonFault",
        "DeadlineExceeded",
        "Denied",
        "Exhausted",
        "GreatsealError",
        "InFlight",
        "InvalidRequest",
        "LogRegressed",
        "NotFound",
        "NotReady",
        "ProfileError",
        "RequestIdReused",
        "Unavailable",
        "UsageError",
        "VerificationFailed",
    ),
    "ids": ("new_request_id",),
    "messages": (
        "Capability",
        "ConsistencyProof",
        "DigestRequest",
        "Entry",
        "EntryFilter",
        "EntryPage",
        "Grant",
        "InclusionProof",
        "Key",
        "PublicKey",
        "Signature",
        "SignedCheckpoint",
        "StatementRequest",
        "Token",
        "WhoAmI",
    ),
    "note": ("VerifierKey",),
    "profile": ("Profile",),
    "receipt": ("Receipt", "VerifiedReceipt"),
    "signatures": ("load_public_key", "verify_digest", "verify_message"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # the same names once more, for tools that read and do not run
    "Algorithm",
    "AsyncClient",
    "Capability",
    "Checkpoint",
    "Client",
    "ConnectionRefused",
    "ConsistencyProof",
    "DaemonError",
    "DaemonFault",
    "DeadlineExceeded",
    "Denied",
    "DigestRequest",
    "Entry",
    "EntryFilter",
    "EntryPage",
    "Exhausted",
    "Grant",
    "GreatsealError",
    "InFlight",
    "InclusionProof",
    "InvalidRequest",
    "Key",
    "LogRegressed",
    "NotFound",
    "NotReady",
    "Profile",
    "ProfileError",
    "PublicKey",
    "Receipt",
    "RequestIdReused",
    "Signature",
    "SignedCheckpoint",
    "StatementRequest",
    "Token",
    "Unavailable",
    "UsageError",
    "VerificationFailed",
    "VerifiedReceipt",
    "VerifierKey",
    "WhoAmI",
    "__version__",
    "load_public_key",
    "new_request_id",
    "open_checkpoint",
    "verify_digest",
    "verify_message",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("greatseal.version").VERSION
    module = _MODULE_OF.get(name)
    if module is None:
        message = f"module 'greatseal' has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(importlib.import_module(f"greatseal.{module}"), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
