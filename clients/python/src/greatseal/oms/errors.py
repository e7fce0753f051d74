"""What can be wrong with a model or with its signature file, in the client's tree.

    UsageError
    ├── ModelRefused             the model cannot be signed (or read) as it is
    │   └── ModelChanged         something in it changed while it was read
    └── KeyUnusable              the daemon's key is not of a kind that signs models
    GreatsealError
    └── CertificateUnusable      the key's certificate may not sign now: its operator has to renew it
    VerificationFailed
    └── ModelUnverified          what was signed is not this model, or not by whom it should be
        ├── BundleInvalid        the signature file is not one that can be read
        ├── SignerUntrusted      wrong key, wrong root, a certificate that may not sign
        ├── SignatureMismatch    the signature is not over this payload
        ├── ModelUnreadable      the model is one that cannot have been signed; its cause is a ModelRefused
        └── ModelDiffers         files are missing, extra or changed; names them

Nothing here is worth a retry without a change. The same symbolic link is a ModelRefused for who
signs (exit 2) and a ModelUnreadable for who verifies (exit 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from greatseal.errors import GreatsealError, UsageError, VerificationFailed


class ModelRefused(UsageError):
    """The model holds something that cannot be signed; `path` is relative to the model."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class ModelChanged(ModelRefused):
    """A file, or the list of files, changed while the model was read."""


class KeyUnusable(UsageError):
    """The daemon's key cannot sign models, or not in the way that was asked for; name another."""


class CertificateUnusable(GreatsealError):
    """The certificate of the daemon's key is expired, of another key, or may not sign code."""

    exit_code: ClassVar[int] = 5


class ModelUnverified(VerificationFailed):
    """Verification failed."""


class BundleInvalid(ModelUnverified):
    """The signature file is not a Sigstore bundle of a kind that is verified here."""


class SignerUntrusted(ModelUnverified):
    """The signature was made by a key or certificate that is not trusted for it."""


class SignatureMismatch(ModelUnverified):
    """The signature does not verify over the payload that stands beside it."""


class ModelUnreadable(ModelUnverified):
    """The model is one that cannot have been signed, or changed while it was read."""


class ModelDiffers(ModelUnverified):
    """The signature is good and the model is not the one that was signed.

    `missing`, `extra` and `changed` hold names relative to the model, sorted.
    """

    def __init__(self, missing: Sequence[str], extra: Sequence[str], changed: Sequence[str]) -> None:
        self.missing = tuple(missing)
        self.extra = tuple(extra)
        self.changed = tuple(changed)
        counts = (("changed", self.changed), ("missing", self.missing), ("extra", self.extra))
        parts = [f"{len(names)} {word} ({_first(names)})" for word, names in counts if names]
        super().__init__(f"the model is not the one that was signed: {', '.join(parts)}")


def _first(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(printable(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown}, and {len(names) - limit} more"


def printable(name: str) -> str:
    """A file name as one line of text: control characters are escaped, the rest stays as it is."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in name)
