"""What the client checks in every answer before its caller sees it.

A signature must be over what was asked, by the key that was asked, and its receipt must say the
same in both of its entries and prove both. With the log's key the checkpoint's signature is
verified as well; with the public key the signature is. Without either, the daemon is believed in
that one point, for nothing else is known.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from greatseal import messages, wire
from greatseal.algorithms import Algorithm
from greatseal.checkpoint import Checkpoint, open_checkpoint, read_unverified
from greatseal.dsse import pae
from greatseal.errors import DaemonError, VerificationFailed
from greatseal.note import VerifierKey
from greatseal.profile import log_key_of
from greatseal.remembered import Seen
from greatseal.signatures import PublicKey, load_public_key, spki_sha256, verify_digest, verify_message
from greatseal.text import clean


class Checks:
    """The keys that are trusted, and the checks that they make possible.

    Args:
        log_key: the log's verifier key line; empty where it is not known.
        public_keys: public keys of the daemon's keys, PEM or DER.

    Raises:
        ProfileError: the log key is malformed.
        PublicKeyInvalid: a public key is.
    """

    def __init__(self, log_key: str, public_keys: Iterable[str | bytes] = ()) -> None:
        self.log_key: VerifierKey | None = log_key_of(log_key) if log_key else None
        self._public_keys: dict[str, PublicKey] = {}
        self._lock = threading.Lock()
        for key in public_keys:
            self.know(key)

    def know(self, public_key: str | bytes) -> None:
        """Verify signatures by this key, PEM or DER, from now on.

        Raises:
            PublicKeyInvalid: it is none.
        """
        loaded = load_public_key(public_key.encode() if isinstance(public_key, str) else public_key)
        with self._lock:
            self._public_keys[spki_sha256(loaded)] = loaded

    def checkpoint(self, note: str) -> tuple[Checkpoint, Seen | None]:
        """Return the checkpoint of a note; Seen only where its signature was verified.

        Raises:
            VerificationFailed: it is malformed, or not signed by the log's key.
        """
        if self.log_key is None:
            return read_unverified(note), None
        checkpoint = open_checkpoint(note, self.log_key)
        return checkpoint, Seen(note, checkpoint)

    def signature(self, item: messages.SignRequest, answer: Any, note: str) -> tuple[messages.Signature, Seen | None]:
        """Return the signature of one item and its checkpoint.

        Raises:
            VerificationFailed: anything does not agree with what was asked, or is not proven.
        """
        checkpoint, seen = self.checkpoint(note)
        return self._signature(item, answer, note, checkpoint), seen

    def batch(
        self, items: Sequence[messages.SignRequest], answer: Any
    ) -> tuple[list[messages.Signature | DaemonError], Seen | None]:
        """Return the result of every item and the checkpoint that they share.

        Raises:
            VerificationFailed: the results are not one for each item, or one does not verify.
        """
        if len(answer.results) != len(items):
            message = f"the daemon answered a batch of {len(items)} with {len(answer.results)} results"
            raise VerificationFailed(message)
        checkpoint: Checkpoint | None = None
        seen: Seen | None = None
        results: list[messages.Signature | DaemonError] = []
        for item, result in zip(items, answer.results, strict=True):
            kind = result.WhichOneof("result")
            if kind == "error":
                results.append(wire.error_from_status(result.error, request_id=item.request_id))
                continue
            if kind is None:
                message = "the daemon answered an item with neither a signature nor an error"
                raise VerificationFailed(message)
            if checkpoint is None:
                checkpoint, seen = self.checkpoint(answer.checkpoint)
            results.append(self._signature(item, result.signature, answer.checkpoint, checkpoint))
        return results, seen

    def _signature(
        self, item: messages.SignRequest, answer: Any, note: str, checkpoint: Checkpoint
    ) -> messages.Signature:
        algorithm = wire.algorithm(answer.algorithm)
        if item.algorithm is not None and algorithm is not item.algorithm:
            message = f"{item.algorithm.value} was asked for and the daemon signed with {algorithm.value}"
            raise VerificationFailed(message)
        if answer.key_version != item.key and not answer.key_version.startswith(f"{item.key}/versions/"):
            message = f"{item.key} was asked to sign and the daemon answers for {clean(answer.key_version, 120)}"
            raise VerificationFailed(message)
        expected = _digest_of(item, algorithm)
        if answer.digest != expected:
            message = (
                f"the daemon signed another digest ({answer.digest.hex()[:128]}) than was asked for ({expected.hex()})"
            )
            raise VerificationFailed(message)
        receipt = wire.receipt(answer.receipt, note)
        proven = receipt.verify_under(checkpoint, digest=expected)
        public_key = self._public_keys.get(proven.spki_sha256)
        if public_key is not None:
            _verify_signature(item, public_key, algorithm, answer.signature)
        version = f"{proven.key}/versions/{proven.key_version}"
        for what, logged, answered in (
            ("signature", proven.signature, answer.signature),
            ("algorithm", proven.algorithm, algorithm),
            ("request id", proven.request_id, item.request_id),
            ("key version", version, answer.key_version),
        ):
            if logged != answered:
                message = f"the receipt is of another {what} than the daemon's answer"
                raise VerificationFailed(message)
        return messages.Signature(
            key_version=answer.key_version,
            algorithm=algorithm,
            signature=answer.signature,
            digest=answer.digest,
            receipt=receipt,
            replayed=answer.replayed,
            request_id=item.request_id,
        )


def _verify_signature(
    item: messages.SignRequest, public_key: PublicKey, algorithm: Algorithm, signature: bytes
) -> None:
    if isinstance(item, messages.DigestRequest):
        verify_digest(public_key, algorithm, item.digest, signature)
    else:
        verify_message(public_key, algorithm, pae(item.payload_type, item.payload), signature)


def _digest_of(item: messages.SignRequest, algorithm: Algorithm) -> bytes:
    """Return the digest that must stand in the log: the one that was signed, or of Ed25519 that of the message."""
    if isinstance(item, messages.DigestRequest):
        return item.digest
    return hashlib.new(algorithm.hash_name, pae(item.payload_type, item.payload)).digest()
