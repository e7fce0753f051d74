"""Many models in one run: hashed here one after the other on all cores, signed there in batches.

One model's trouble is its own result and never another's. While the daemon signs a batch, the next one is
hashed. Request ids come from a journal (`journal.py`), so that a cut connection, a killed client or a second
run with the same journal has every model signed exactly once.

    with Journal(path) as journal:
        for result in sign_models(client, models, journal=journal):
            print(result.model, result.signed or result.error)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from greatseal.dsse import IN_TOTO_PAYLOAD_TYPE
from greatseal.errors import DaemonError, GreatsealError, UsageError
from greatseal.messages import Signature, SignRequest, StatementRequest
from greatseal.oms.errors import ModelRefused
from greatseal.oms.journal import Journal
from greatseal.oms.listing import model_name
from greatseal.oms.manifest import ModelManifest, build_manifest
from greatseal.oms.method import Method
from greatseal.oms.sign import (
    SIGNATURE_NAME,
    KeyReader,
    ModelSigner,
    SignedModelFile,
    model_signer,
    require_signable,
    write_signed,
)

if TYPE_CHECKING:
    from greatseal.oms.digest_cache import DigestCache

_BATCH_MODELS: Final = 128
_BATCH_BYTES: Final = 8 << 20
"""Statements of a batch: half of what one call may carry, and what is held in memory twice at most."""

Hashing = Callable[[Path, int, int], None]
"""Called with the model, the bytes of it hashed so far, and its bytes in all."""


class BatchClient(Protocol):
    """What signing many models needs of a client; `greatseal.Client` is one."""

    @property
    def keys(self) -> KeyReader: ...

    def sign_batch(
        self, items: Sequence[SignRequest], *, timeout: float | None = ...
    ) -> list[Signature | DaemonError]: ...


@dataclass(frozen=True, slots=True)
class ModelResult:
    """What became of one model: its signature files, or the error that it met."""

    model: Path
    signed: SignedModelFile | None = None
    error: GreatsealError | None = None


@dataclass(slots=True)
class _Prepared:
    """A model that was hashed: what is to be signed, and where it goes."""

    model: Path
    manifest: ModelManifest
    payload: bytes
    request: StatementRequest
    signature: Path
    receipt: Path | None


@dataclass(slots=True)
class _Batch:
    prepared: list[_Prepared] = field(default_factory=list)
    size: int = 0

    @property
    def full(self) -> bool:
        return len(self.prepared) >= _BATCH_MODELS or self.size >= _BATCH_BYTES


def sign_models(
    client: BatchClient,
    models: Sequence[Path],
    *,
    journal: Journal,
    key: str = "keys/release",
    receipts: Path | None = None,
    ignore: Iterable[str] = (),
    method: Method | None = None,
    timeout: float | None = None,
    progress: Hashing | None = None,
    workers: int | None = None,
    cache: DigestCache | None = None,
) -> Iterator[ModelResult]:
    """Sign models and write their signature files, MODEL/model.sig; yield one result for each as it is known.

    Args:
        client: asks the daemon; used by one thread at a time.
        models: directories, each once.
        journal: where request ids come from.
        key: `keys/{key}`, an ECDSA key.
        receipts: a directory for the log's receipts, NAME.receipt.json by the model's name.
        ignore: paths that are not signed, relative to each model.
        method: as of `sign_model`.
        timeout: seconds for one batch, tries after a cut connection included.
        progress: called while a model is hashed.
        workers: threads for hashing; one for each core by default.
        cache: as of `sign_model`.

    Raises:
        UsageError: a model is named twice, two would have one receipt, or the journal cannot be written.
        KeyUnusable, CertificateUnusable: the key or its certificate cannot sign models.
        DaemonError: the key cannot be read.
        VerificationFailed: an answer of the daemon's does not verify, so nothing in it is trusted.
    """
    placed = _places(models, receipts)
    ignore = tuple(ignore)
    signer = model_signer(client.keys.public_key(key), method)
    with ThreadPoolExecutor(1, thread_name_prefix="greatseal-sign") as pool:
        under_way: Future[list[ModelResult]] | None = None
        batch = _Batch()
        for model, receipt in placed:
            try:
                one = _prepare(model, receipt, key, signer, journal, ignore, progress, workers, cache)
            except GreatsealError as error:
                yield ModelResult(model, error=error)
                continue
            batch.prepared.append(one)
            batch.size += len(one.payload)
            if batch.full:
                journal.sync()
                if under_way is not None:
                    yield from under_way.result()
                under_way = pool.submit(_sign, client, signer, batch.prepared, timeout)
                batch = _Batch()
        journal.sync()
        if under_way is not None:
            yield from under_way.result()
        if batch.prepared:
            yield from _sign(client, signer, batch.prepared, timeout)


def _places(models: Sequence[Path], receipts: Path | None) -> list[tuple[Path, Path | None]]:
    seen: dict[str, Path] = {}
    names: dict[Path, Path] = {}
    placed: list[tuple[Path, Path | None]] = []
    if receipts is not None and not receipts.is_dir():
        message = f"there is no directory {receipts} for the receipts"
        raise UsageError(message)
    for model in models:
        real = os.path.realpath(model)
        if real in seen:
            message = f"{model} is named twice (as {seen[real]})" if model != seen[real] else f"{model} is named twice"
            raise UsageError(message)
        seen[real] = model
        receipt = None
        if receipts is not None:
            try:
                receipt = receipts / f"{model_name(model)}.receipt.json"
            except ModelRefused as error:
                raise UsageError(error.message) from error
            if receipt in names:
                message = f"{model} and {names[receipt]} would have one receipt, {receipt}: sign them in two runs"
                raise UsageError(message)
            names[receipt] = model
        placed.append((model, receipt))
    return placed


def _prepare(
    model: Path,
    receipt: Path | None,
    key: str,
    signer: ModelSigner,
    journal: Journal,
    ignore: tuple[str, ...],
    progress: Hashing | None,
    workers: int | None,
    cache: DigestCache | None,
) -> _Prepared:
    signature = model / SIGNATURE_NAME
    ignored = require_signable(model, signature, receipt, ignore)
    told = None if progress is None else lambda done, total: progress(model, done, total)
    manifest = build_manifest(model, ignored, progress=told, workers=workers, cache=cache)
    payload = manifest.payload()
    request_id = journal.request_id(key, hashlib.sha256(payload).hexdigest())
    request = StatementRequest(key, payload, IN_TOTO_PAYLOAD_TYPE, signer.algorithm, request_id)
    return _Prepared(model, manifest, payload, request, signature, receipt)


def _sign(
    client: BatchClient, signer: ModelSigner, prepared: Sequence[_Prepared], timeout: float | None
) -> list[ModelResult]:
    # Two models of one name and content have one payload, so one request: it is asked for once.
    distinct = {one.request.request_id: one.request for one in prepared}
    outcomes = dict(zip(distinct, client.sign_batch(list(distinct.values()), timeout=timeout), strict=True))
    results = []
    for one in prepared:
        outcome = outcomes[one.request.request_id]
        if isinstance(outcome, DaemonError):
            results.append(ModelResult(one.model, error=outcome))
            continue
        try:
            signed = write_signed(one.manifest, one.payload, signer, outcome, one.signature, one.receipt)
        except GreatsealError as error:
            results.append(ModelResult(one.model, error=error))
        else:
            results.append(ModelResult(one.model, signed=signed))
    return results
