"""What is signed for a model: the OMS statement, as one exact sequence of bytes.

The statement lists every file with its SHA-256, sorted by the *string* of its path (`a-b` comes
before `a/b`), and names the model by its root: the SHA-256 over the raw digests in that order. Its
JSON has sorted keys, no spaces and UTF-8 text, so the same model always gives the same payload, and
a request that is sent again is the same request.
Source: OMS specification 1.0, 5.2; in-toto Statement v1.

    manifest = build_manifest(Path("llama"), IgnoredPaths.of(["model.sig"]))
    manifest.root, manifest.payload()
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from greatseal.oms.errors import ModelRefused, printable
from greatseal.oms.hashing import Progress, hash_files, require_unchanged, settled
from greatseal.oms.listing import IgnoredPaths, Listing, model_name
from greatseal.statement import (
    MAX_RESOURCES,
    MAX_STATEMENT_BYTES,
    OMS_PREDICATE_TYPE,
    STATEMENT_TYPE,
    Resource,
    manifest_root,
)

if TYPE_CHECKING:
    from greatseal.oms.digest_cache import DigestCache

_NO_DIGEST: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """A model's files with their SHA-256, sorted by name, and what was left out."""

    name: str
    resources: tuple[Resource, ...]
    ignore_paths: tuple[str, ...]
    size: int
    """Bytes in all files together."""
    known: int = 0
    """Files whose digests came from the digest cache."""

    @property
    def root(self) -> str:
        """The model's SHA-256, 64 hexadecimal digits."""
        return manifest_root([each.sha256 for each in self.resources])

    def payload(self) -> bytes:
        """The statement's bytes; the same for the same model, always."""
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": self.name, "digest": {"sha256": self.root}}],
            "predicateType": OMS_PREDICATE_TYPE,
            "predicate": {
                "resources": [
                    {"name": name, "algorithm": "sha256", "digest": sha256} for name, sha256 in self.resources
                ],
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": False,
                    "ignore_paths": list(self.ignore_paths),
                },
            },
        }
        return json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def build_manifest(
    model: Path,
    ignored: IgnoredPaths,
    *,
    progress: Progress | None = None,
    workers: int | None = None,
    cache: DigestCache | None = None,
) -> ModelManifest:
    """Read the model and hash it; with a cache, only the files that it does not know. Progress counts what is read.

    Raises:
        ModelRefused: something in it cannot be signed, or there are more files than one statement
            holds (100,000, or 16 MiB of names and digests); found before the first byte is hashed.
        ModelChanged: it did not hold still.
    """
    name = model_name(model)
    listing = settled(model, ignored)
    _require_room(name, listing, ignored)
    part = cache.of(model, listing) if cache is not None else None
    known = part.known if part is not None else {}
    unknown = [file for file in listing.files if file.name not in known]
    digests = {**known, **hash_files(unknown, progress=progress, workers=workers)}
    require_unchanged(model, ignored, listing)
    if part is not None:
        part.remember(digests)
    return ModelManifest(
        name,
        tuple(Resource(file.name, digests[file.name].hex()) for file in listing.files),
        tuple(sorted(ignored)),
        listing.size,
        len(known),
    )


def _require_room(name: str, listing: Listing, ignored: IgnoredPaths) -> None:
    """Refuse what no statement can hold, while that costs nothing: every digest has the same length."""
    count = len(listing.files)
    if not count:
        raise ModelRefused(
            f"the model '{printable(name)}' has no files to sign; a signature over nothing proves nothing"
        )
    if count > MAX_RESOURCES:
        raise ModelRefused(
            f"the model has {count} files, and one statement holds {MAX_RESOURCES}; pack small files together"
        )
    blank = tuple(Resource(file.name, _NO_DIGEST) for file in listing.files)
    size = len(ModelManifest(name, blank, tuple(sorted(ignored)), 0).payload())
    if size > MAX_STATEMENT_BYTES:
        raise ModelRefused(
            f"the statement about the model's {count} files would have {size} bytes, and {MAX_STATEMENT_BYTES} "
            "is the limit; pack small files together, or shorten their names"
        )
