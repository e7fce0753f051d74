"""A small audit log in memory, made with the daemon's own entries and tree: what proofs and receipts are tested on.

Signatures are real, by software keys made on the fly; nothing here talks to a daemon.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from greatseal.algorithms import Algorithm
from greatseal.checkpoint import Checkpoint
from greatseal.dsse import IN_TOTO_PAYLOAD_TYPE, pae
from greatseal.note import NoteSigner, VerifierKey
from greatseal.receipt import Logged, Receipt
from greatseal.signatures import spki_sha256
from greatseal.statement import OMS_PREDICATE_TYPE, STATEMENT_TYPE, parse_statement
from greatseal.tlog import split_hashes
from greatseald.domain import entries as entry_format
from greatseald.domain.tree import Tree, leaf_hash

ORIGIN = "greatseal.local/log"
BOOT = "0197f3f0-0000-7000-8000-000000000001"
REQUEST = "0197f3f0-1111-7000-8000-000000000002"
TIMESTAMP = "2026-01-02T03:04:05.678901Z"

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | Ed25519PrivateKey


def new_key(algorithm: Algorithm = Algorithm.ECDSA_P256_SHA256) -> PrivateKey:
    curves = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}
    if algorithm.is_pure:
        return Ed25519PrivateKey.generate()
    if algorithm.family in curves:
        return ec.generate_private_key(curves[algorithm.family])
    return rsa.generate_private_key(65537, 2048)


def sign_digest(key: PrivateKey, algorithm: Algorithm, digest: bytes) -> bytes:
    """Sign a digest, or with Ed25519 the message itself."""
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(digest)
    kinds = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}
    kind = kinds[algorithm.hash_name]
    hashed = Prehashed(kind)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(digest, ec.ECDSA(hashed))
    if "pss" in algorithm.value:
        return key.sign(digest, padding.PSS(padding.MGF1(kind), algorithm.digest_size), hashed)
    return key.sign(digest, padding.PKCS1v15(), hashed)


def oms_document(names: Sequence[str] = ("a-b", "a/b", "config.json"), name: str = "tiny-model") -> dict[str, Any]:
    """An OMS statement of files whose contents are their names, as a JSON document."""
    digests = [hashlib.sha256(each.encode()).hexdigest() for each in names]
    root = hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest()
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": OMS_PREDICATE_TYPE,
        "predicate": {
            "resources": [
                {"name": each, "algorithm": "sha256", "digest": digest}
                for each, digest in zip(names, digests, strict=True)
            ],
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [".git", ".gitattributes", ".github", ".gitignore", "model.sig"],
            },
        },
    }


def as_json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()


@dataclass(frozen=True)
class Pair:
    """Indexes of an intent and its outcome."""

    intent: int
    outcome: int


@dataclass
class SampleLog:
    """A log with its key."""

    origin: str = ORIGIN
    private_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    entries: list[bytes] = field(default_factory=list, init=False)
    tiles: dict[tuple[int, int], bytes] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.signer = NoteSigner(self.origin, self.private_key)
        self.tree = Tree(lambda level, index: self.tiles.get((level, index)))

    @property
    def vkey(self) -> VerifierKey:
        return self.signer.verifier

    def append(self, entries: Iterable[bytes]) -> None:
        added = list(entries)
        self.tree.mark()
        for level, index, data in self.tree.append([leaf_hash(each) for each in added]):
            self.tiles[level, index] = data
        self.entries += added

    def grow(self, count: int) -> None:
        """Append entries about nothing."""
        start = len(self.entries)
        self.append(
            entry_format.encode(
                entry_format.Admin(info={"n": start + each}, inst=BOOT, log=self.origin, ts=TIMESTAMP, what="reload")
            )
            for each in range(count)
        )

    def sign(
        self,
        key: PrivateKey,
        digest: bytes = hashlib.sha256(b"what is signed").digest(),
        algorithm: Algorithm = Algorithm.ECDSA_P256_SHA256,
        *,
        edit_intent: dict[str, Any] | None = None,
        edit_outcome: dict[str, Any] | None = None,
        between: int = 0,
    ) -> Pair:
        """Append the entries of one blind signature; edits replace top-level fields, None removes them."""
        intent = entry_format.Intent(
            att=1,
            blind=True,
            cli=_client(),
            inst=BOOT,
            key=_key_version(key),
            log=self.origin,
            mech=algorithm.value,
            peer="ipv4:127.0.0.1:50000",
            pol=entry_format.Policy(ids=("allow[0]",), set="00" * 32),
            req=REQUEST,
            tbs=digest.hex(),
            ts=TIMESTAMP,
        )
        return self._sign(key, algorithm, digest, intent, edit_intent or {}, edit_outcome or {}, between)

    def sign_statement(
        self,
        key: PrivateKey,
        payload: bytes,
        algorithm: Algorithm = Algorithm.ECDSA_P256_SHA256,
        *,
        edit_outcome: dict[str, Any] | None = None,
    ) -> Pair:
        """Append the entries of one statement's signature."""
        statement = parse_statement(payload)
        encoded = pae(IN_TOTO_PAYLOAD_TYPE, payload)
        digest = hashlib.new(algorithm.hash_name, encoded).digest()
        first = statement.subjects[0]
        intent = entry_format.Intent(
            att=1,
            blind=False,
            cli=_client(),
            inst=BOOT,
            key=_key_version(key),
            log=self.origin,
            mdig=hashlib.sha256(payload).hexdigest(),
            mech=algorithm.value,
            peer="ipv4:127.0.0.1:50000",
            pol=entry_format.Policy(ids=("allow[0]",), set="00" * 32),
            pred=statement.predicate_type,
            ptype=IN_TOTO_PAYLOAD_TYPE,
            req=REQUEST,
            subj=entry_format.Subject(
                count=len(statement.subjects), digest=first.digest.get("sha256", ""), name=first.name
            ),
            tbs=digest.hex(),
            ts=TIMESTAMP,
        )
        return self._sign(key, algorithm, encoded if algorithm.is_pure else digest, intent, {}, edit_outcome or {}, 0)

    def note(self, size: int | None = None) -> str:
        """The signed checkpoint of the first `size` entries."""
        size = len(self.entries) if size is None else size
        tree = Tree(lambda _level, _index: None)
        tree.append([leaf_hash(each) for each in self.entries[:size]])
        return Checkpoint(self.origin, size, tree.root()).sign(self.signer)

    def logged(self, index: int, size: int | None = None) -> Logged:
        prover = self.tree.prover(len(self.entries) if size is None else size)
        return Logged(index, self.entries[index], split_hashes(prover.inclusion(index)))

    def receipt(self, pair: Pair, size: int | None = None) -> Receipt:
        return Receipt(self.logged(pair.intent, size), self.logged(pair.outcome, size), self.note(size))

    def _sign(
        self,
        key: PrivateKey,
        algorithm: Algorithm,
        signed: bytes,
        intent: entry_format.Intent,
        edit_intent: dict[str, Any],
        edit_outcome: dict[str, Any],
        between: int,
    ) -> Pair:
        intent_bytes = _edited(entry_format.encode(intent), edit_intent)
        index = len(self.entries)
        self.append([intent_bytes])
        self.grow(between)
        outcome = entry_format.Outcome(
            dur_us=1234,
            hsm=entry_format.Hsm(fw="2.6", seq=7, serial="0123456789abcdef"),
            inst=BOOT,
            intent=entry_format.IntentRef(index=index, leaf_hash=leaf_hash(intent_bytes).hex()),
            key=entry_format.KeyRef(spki_sha256=spki_sha256(key.public_key())),
            log=self.origin,
            res="signed",
            sig=base64.b64encode(sign_digest(key, algorithm, signed)).decode(),
            tbs=intent.tbs,
            ts=TIMESTAMP,
        )
        self.append([_edited(entry_format.encode(outcome), edit_outcome)])
        return Pair(index, len(self.entries) - 1)


def _client() -> entry_format.Client:
    return entry_format.Client(
        cert_sha256="11" * 32, id="spiffe://greatseal.local/pipeline", issuer="CN=Greatseal local CA", serial="0a0b"
    )


def _key_version(key: PrivateKey) -> entry_format.KeyVersion:
    return entry_format.KeyVersion(name="keys/release", spki_sha256=spki_sha256(key.public_key()), version=1)


def _edited(entry: bytes, edits: dict[str, Any]) -> bytes:
    if not edits:
        return entry
    document = json.loads(entry) | edits
    return as_json({name: value for name, value in document.items() if value is not None})
