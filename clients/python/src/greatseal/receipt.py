"""Receipts: evidence, checked offline, that a signature stands in the audit log with its intent.

A receipt holds two entries of the log verbatim, the intent committed before the token was called and
the outcome committed before the signature was released, and the proof of each under one checkpoint.

    receipt = Receipt.from_json(path.read_bytes())
    verified = receipt.verify(VerifierKey.parse(vkey_line), public_key=load_public_key(pem), digest=digest)
    print(verified.caller, verified.key, verified.signed_at)

Trust rests on the log's verifier key alone. What `verify` checks, in this order, and the `check` that
its error names: the checkpoint's signature and origin (`checkpoint`), with witnesses that enough of them
cosigned it (`witnesses`), the inclusion of both entries' leaf hashes at their indexes (`intent-inclusion`, `outcome-inclusion`), the entries' form and kinds
(`entries`), the log named in both (`log`), that the outcome closes this intent by index and leaf hash
(`link`), that it says signed (`result`), the key in both (`key`), the algorithm (`algorithm`), the
digest in both and the caller's (`digest`), the payload or model (`payload`), and the signature over
that digest with the public key (`signature`). docs/audit-format.md has each step in detail.

Without a public key nothing can check the signature itself: `VerifiedReceipt.signature_verified`
says so, and the log's word for it is all there is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from greatseal.algorithms import Algorithm
from greatseal.checkpoint import MAX_TREE_SIZE, Checkpoint, open_checkpoint
from greatseal.cosignature import WitnessKey, require_quorum
from greatseal.dsse import pae
from greatseal.errors import VerificationFailed
from greatseal.note import MAX_NOTE_BYTES, VerifierKey
from greatseal.signatures import PublicKey, Verifier, check_key_fits, spki_sha256
from greatseal.statement import OMS_PREDICATE_TYPE
from greatseal.strictjson import JSONInvalid, decode
from greatseal.tlog import TlogProof, leaf_hash, parse_tlog_proof, verify_inclusion
from greatseal.verification import PublicKeyInvalid, ReceiptCheck, ReceiptInvalid, SignatureInvalid

MEDIA_TYPE: Final = "application/vnd.greatseal.receipt.v1+json"
MAX_ENTRY_BYTES: Final = 16 * 1024
MAX_RECEIPT_BYTES: Final = 4 * MAX_NOTE_BYTES

_ENTRY_VERSION: Final = 1
_HEX: Final = re.compile("[0-9a-f]+")
_SHA256_HEX: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Logged:
    """An entry of the log: its index, its exact bytes, and its inclusion proof, hashes from leaf to root."""

    index: int
    entry: bytes
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """What a receipt proves, after everything was checked.

    Attributes:
        log: the log's origin.
        log_size: size of the tree that both proofs are of.
        intent_index, outcome_index: where the two entries stand.
        request_id: the request's id, as the caller chose it.
        caller: the identity that asked, as its certificate proved it to the daemon.
        key, key_version: the key's resource name and version number.
        spki_sha256: SHA-256 of the public key, hexadecimal.
        algorithm: how it signed.
        digest: what was signed; of Ed25519 the SHA-256 of it.
        signature: the signature as logged; DER for ECDSA.
        blind: whether the daemon saw only the digest; subject and types are then the caller's claim.
        payload_type, predicate_type, subject, subject_digest: of what was signed; empty where unknown.
        requested_at, signed_at: RFC 3339 UTC, by the daemon's clock.
        signature_verified: whether the signature itself was verified: a public key was given, and of Ed25519,
            which signs whole messages, the payload as well.
    """

    log: str
    log_size: int
    intent_index: int
    outcome_index: int
    request_id: str
    caller: str
    key: str
    key_version: int
    spki_sha256: str
    algorithm: Algorithm
    digest: bytes
    signature: bytes
    blind: bool
    payload_type: str
    predicate_type: str
    subject: str
    subject_digest: str
    requested_at: str
    signed_at: str
    signature_verified: bool


@dataclass(frozen=True, slots=True)
class Receipt:
    """Both entries of a signature and the checkpoint (a signed note, exact text) that both proofs lead to."""

    intent: Logged
    outcome: Logged
    checkpoint: str

    def to_json(self) -> bytes:
        """The receipt file: compact JSON with base64 entries and C2SP tlog-proofs."""
        document = {"mediaType": MEDIA_TYPE, "intent": self._part(self.intent), "outcome": self._part(self.outcome)}
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Receipt:
        """Read a receipt file, verifying nothing but its form.

        Raises:
            ReceiptInvalid: (`format`) malformed, of another media type, or its proofs carry two
                different checkpoints.
        """
        try:
            document = decode(data, max_bytes=MAX_RECEIPT_BYTES, what="the receipt")
        except JSONInvalid as error:
            raise ReceiptInvalid(ReceiptCheck.FORMAT, error.message) from error
        if not isinstance(document, dict) or document.get("mediaType") != MEDIA_TYPE:
            _fail(ReceiptCheck.FORMAT, f"a receipt is a JSON object with the mediaType {MEDIA_TYPE}")
        if document.keys() != {"mediaType", "intent", "outcome"}:
            _fail(ReceiptCheck.FORMAT, "a receipt has the fields mediaType, intent and outcome, and no others")
        intent, intent_checkpoint = _read_part(document["intent"], "intent")
        outcome, outcome_checkpoint = _read_part(document["outcome"], "outcome")
        if intent_checkpoint != outcome_checkpoint:
            _fail(ReceiptCheck.FORMAT, "the two proofs of the receipt carry different checkpoints")
        return cls(intent, outcome, intent_checkpoint)

    def verify(
        self,
        log_key: VerifierKey,
        *,
        public_key: PublicKey | None = None,
        digest: bytes | None = None,
        payload: bytes | None = None,
        model_digest: str | None = None,
        witnesses: Sequence[WitnessKey] = (),
        quorum: int | None = None,
    ) -> VerifiedReceipt:
        """Verify everything that the receipt claims, against what the caller holds.

        Args:
            log_key: the log's verifier key.
            public_key: the key that must have signed; without it the signature itself stays unchecked.
            digest: the digest that must have been signed (of a statement: of its DSSE encoding).
            payload: the statement, exact bytes, that must have been signed.
            model_digest: the OMS root of the model, hexadecimal, that must have been signed.
            witnesses: who may have cosigned the checkpoint.
            quorum: how many of them must have; all where None.

        Raises:
            ReceiptInvalid: a check failed; `check` says which.
        """
        try:
            checkpoint = open_checkpoint(self.checkpoint, log_key)
        except VerificationFailed as error:
            raise ReceiptInvalid(ReceiptCheck.CHECKPOINT, f"the receipt's checkpoint: {error.message}") from error
        if witnesses:
            try:
                require_quorum(self.checkpoint, witnesses, len(witnesses) if quorum is None else quorum)
            except VerificationFailed as error:
                raise ReceiptInvalid(ReceiptCheck.WITNESSES, error.message) from error
        return self.verify_under(
            checkpoint, public_key=public_key, digest=digest, payload=payload, model_digest=model_digest
        )

    def verify_under(
        self,
        checkpoint: Checkpoint,
        *,
        public_key: PublicKey | None = None,
        digest: bytes | None = None,
        payload: bytes | None = None,
        model_digest: str | None = None,
    ) -> VerifiedReceipt:
        """`verify` under a checkpoint that was opened already: a batch has one for all its receipts.

        Who calls this answers for the checkpoint: it must be that of this receipt's own note.

        Raises:
            ReceiptInvalid: as `verify`.
        """
        self._verify_inclusion(checkpoint)
        intent = _Fields(self.intent, "intent")
        outcome = _Fields(self.outcome, "outcome")
        for each in (intent, outcome):
            each.check_kind()
            if each.text("log") != checkpoint.origin:
                _fail(ReceiptCheck.LOG, f"the {each.kind} says it is of another log than {checkpoint.origin}")
        self._verify_link(outcome)
        if outcome.text("res") != "signed":
            _fail(
                ReceiptCheck.RESULT, f"the outcome of this request is {outcome.text('res')[:40]!r}: nothing was signed"
            )
        spki = intent.hexadecimal("key", "spki_sha256")
        if outcome.hexadecimal("key", "spki_sha256") != spki:
            _fail(ReceiptCheck.KEY, "intent and outcome name different public keys")
        if public_key is not None and spki_sha256(public_key) != spki:
            _fail(
                ReceiptCheck.KEY, f"the receipt is of another key: its SHA-256 is {spki}, not {spki_sha256(public_key)}"
            )
        algorithm = _algorithm(intent, public_key)
        tbs = self._verify_digest(intent, outcome, algorithm, digest)
        _verify_payload(intent, tbs, algorithm, payload, model_digest)
        signature = outcome.base64("sig")
        signed = tbs
        if algorithm.is_pure:  # the signature is over the message, of which the log has the digest
            signed = pae(intent.text("ptype", default=""), payload) if payload is not None else b""
        verifiable = public_key is not None and bool(signed)
        if public_key is not None and signed:
            try:
                Verifier(public_key, algorithm).verify(signed, signature)
            except (SignatureInvalid, PublicKeyInvalid) as error:
                raise ReceiptInvalid(
                    ReceiptCheck.SIGNATURE, f"the logged signature is wrong: {error.message}"
                ) from error
        return VerifiedReceipt(
            log=checkpoint.origin,
            log_size=checkpoint.size,
            intent_index=self.intent.index,
            outcome_index=self.outcome.index,
            request_id=intent.text("req"),
            caller=intent.text("cli", "id"),
            key=intent.text("key", "name"),
            key_version=intent.number("key", "version"),
            spki_sha256=spki,
            algorithm=algorithm,
            digest=tbs,
            signature=signature,
            blind=intent.flag("blind"),
            payload_type=intent.text("ptype", default=""),
            predicate_type=intent.text("pred", default=""),
            subject=intent.text("subj", "name", default=""),
            subject_digest=intent.text("subj", "digest", default=""),
            requested_at=intent.text("ts"),
            signed_at=outcome.text("ts"),
            signature_verified=verifiable,
        )

    def _part(self, logged: Logged) -> dict[str, str]:
        return {
            "entry": base64.b64encode(logged.entry).decode("ascii"),
            "proof": TlogProof(logged.index, logged.hashes, self.checkpoint).text(),
        }

    def _verify_inclusion(self, checkpoint: Checkpoint) -> None:
        for check, kind, logged in (
            (ReceiptCheck.INTENT_INCLUSION, "intent", self.intent),
            (ReceiptCheck.OUTCOME_INCLUSION, "outcome", self.outcome),
        ):
            try:
                verify_inclusion(logged.index, checkpoint.size, leaf_hash(logged.entry), logged.hashes, checkpoint.root)
            except VerificationFailed as error:
                raise ReceiptInvalid(check, f"the {kind} is not in the log: {error.message}") from error

    def _verify_link(self, outcome: _Fields) -> None:
        if self.outcome.index <= self.intent.index:
            _fail(
                ReceiptCheck.LINK,
                f"the outcome at {self.outcome.index} does not follow the intent at {self.intent.index}",
            )
        if outcome.number("intent", "index") != self.intent.index:
            _fail(
                ReceiptCheck.LINK, f"the outcome closes the intent at {outcome.number('intent', 'index')}, not this one"
            )
        if outcome.hexadecimal("intent", "leaf_hash") != leaf_hash(self.intent.entry).hex():
            _fail(ReceiptCheck.LINK, "the outcome closes an intent with another leaf hash")

    @staticmethod
    def _verify_digest(intent: _Fields, outcome: _Fields, algorithm: Algorithm, digest: bytes | None) -> bytes:
        tbs = intent.text("tbs")
        if outcome.text("tbs") != tbs:
            _fail(ReceiptCheck.DIGEST, "intent and outcome name different digests")
        if not _HEX.fullmatch(tbs) or len(tbs) != 2 * algorithm.digest_size:
            _fail(ReceiptCheck.DIGEST, f"the logged digest is not {algorithm.digest_size} bytes in hexadecimal")
        if digest is not None and digest.hex() != tbs:
            _fail(ReceiptCheck.DIGEST, f"the receipt is for another digest: {tbs}, not {digest.hex()[:128]}")
        return bytes.fromhex(tbs)


def _algorithm(intent: _Fields, public_key: PublicKey | None) -> Algorithm:
    name = intent.text("mech")
    try:
        algorithm = Algorithm(name)
    except ValueError:
        _fail(ReceiptCheck.ALGORITHM, f"the intent names an algorithm that is not known here: {name[:80]!r}")
    if public_key is not None:
        try:
            check_key_fits(public_key, algorithm)
        except PublicKeyInvalid as error:
            raise ReceiptInvalid(ReceiptCheck.ALGORITHM, error.message) from error
    return algorithm


def _verify_payload(
    intent: _Fields, tbs: bytes, algorithm: Algorithm, payload: bytes | None, model_digest: str | None
) -> None:
    if payload is not None:
        encoded = pae(intent.text("ptype", default=""), payload)
        if hashlib.new(algorithm.hash_name, encoded).digest() != tbs:
            _fail(ReceiptCheck.PAYLOAD, "the receipt is for another payload")
        logged = intent.text("mdig", default="")
        if logged and logged != hashlib.sha256(payload).hexdigest():
            _fail(ReceiptCheck.PAYLOAD, "the intent names another payload than the digest that was signed is of")
    if model_digest is None:
        return
    if intent.flag("blind"):
        _fail(
            ReceiptCheck.PAYLOAD,
            "the daemon signed this digest blind and cannot vouch for a model: give the digest or the payload instead",
        )
    if intent.text("pred", default="") != OMS_PREDICATE_TYPE:
        _fail(ReceiptCheck.PAYLOAD, f"what was signed is no model but {intent.text('pred', default='')[:120]!r}")
    if intent.text("subj", "digest", default="") != model_digest:
        _fail(
            ReceiptCheck.PAYLOAD, f"the receipt is for another model: {intent.text('subj', 'digest', default='')[:128]}"
        )


class _Fields:
    """An entry's fields, each read as what it must be."""

    def __init__(self, logged: Logged, kind: str) -> None:
        self.kind = kind
        try:
            value = decode(logged.entry, max_bytes=MAX_ENTRY_BYTES, what=f"the {kind}")
        except JSONInvalid as error:
            raise ReceiptInvalid(ReceiptCheck.ENTRIES, f"the {kind}: {error.message}") from error
        if not isinstance(value, dict):
            _fail(ReceiptCheck.ENTRIES, f"the {kind} is not a JSON object")
        self._value: dict[str, Any] = value

    def check_kind(self) -> None:
        if self.number("v") != _ENTRY_VERSION:
            _fail(ReceiptCheck.ENTRIES, f"the {self.kind} is of version {self.number('v')}, and 1 is known here")
        if self.text("t") != self.kind:
            _fail(ReceiptCheck.ENTRIES, f"the {self.kind} is another kind of entry: {self.text('t')[:40]!r}")

    def text(self, *path: str, default: str | None = None) -> str:
        value = self._at(path, default)
        if not isinstance(value, str):
            self._wrong(path, "a text")
        return value

    def number(self, *path: str) -> int:
        value = self._at(path, None)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_TREE_SIZE:
            self._wrong(path, "a whole number")
        return value

    def flag(self, *path: str) -> bool:
        value = self._at(path, None)
        if not isinstance(value, bool):
            self._wrong(path, "true or false")
        return value

    def hexadecimal(self, *path: str) -> str:
        value = self.text(*path)
        if not _SHA256_HEX.fullmatch(value):
            self._wrong(path, "a SHA-256 in hexadecimal")
        return value

    def base64(self, *path: str) -> bytes:
        try:
            return _decode_base64(self.text(*path))
        except ValueError:
            self._wrong(path, "base64")

    def _at(self, path: tuple[str, ...], default: str | None) -> Any:
        value: Any = self._value
        for part in path:
            try:
                value = value[part]
            except KeyError:
                if default is None:
                    self._wrong(path, "there")
                return default
            except TypeError:
                self._wrong(path, "within an object")
        return value

    def _wrong(self, path: tuple[str, ...], what: str) -> NoReturn:
        _fail(ReceiptCheck.ENTRIES, f"the {self.kind}'s field {'.'.join(path)} is not {what}")


def _read_part(value: object, name: str) -> tuple[Logged, str]:
    if not isinstance(value, dict) or value.keys() != {"entry", "proof"}:
        _fail(ReceiptCheck.FORMAT, f"{name} of the receipt is not an object with the fields entry and proof")
    entry, proof = value["entry"], value["proof"]
    if not isinstance(entry, str) or not isinstance(proof, str):
        _fail(ReceiptCheck.FORMAT, f"entry and proof of the receipt's {name} are not texts")
    try:
        data = _decode_base64(entry)
    except ValueError:
        _fail(ReceiptCheck.FORMAT, f"the entry of the receipt's {name} is not canonical base64")
    if len(data) > MAX_ENTRY_BYTES:
        _fail(ReceiptCheck.FORMAT, f"the entry of the receipt's {name} is over the limit of {MAX_ENTRY_BYTES} bytes")
    try:
        parsed = parse_tlog_proof(proof)
    except VerificationFailed as error:
        raise ReceiptInvalid(ReceiptCheck.FORMAT, f"the proof of the receipt's {name}: {error.message}") from error
    return Logged(parsed.index, data, parsed.hashes), parsed.checkpoint


def _decode_base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError from error
    if base64.b64encode(data).decode("ascii") != text:
        raise ValueError
    return data


def _fail(check: ReceiptCheck, message: str) -> NoReturn:
    raise ReceiptInvalid(check, message)
