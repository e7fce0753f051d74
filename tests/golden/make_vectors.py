"""Writes docs/audit-vectors.json: what a verifier of the audit format can be tried against. Made once; refuses to overwrite.

python tests/golden/make_vectors.py
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from greatseal.algorithms import Algorithm  # noqa: E402 - found through the line above
from greatseal.receipt import Receipt  # noqa: E402
from sample_log import PrivateKey, SampleLog, as_json, new_key, oms_document, sign_digest  # noqa: E402

TARGET = HERE.parent.parent / "docs" / "audit-vectors.json"
LOG_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def pem(key: PrivateKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def main() -> None:
    if TARGET.exists():
        sys.exit(f"{TARGET} exists: published vectors do not change")
    log, receipts = SampleLog(private_key=LOG_KEY), []
    p256, other, edwards = new_key(), new_key(), new_key(Algorithm.ED25519)
    digest, statement = hashlib.sha256(b"vector").digest(), as_json(oms_document())
    log.grow(1)
    blind = log.sign(p256, digest, between=1)
    modelled = log.sign_statement(p256, statement)
    pure = log.sign_statement(edwards, statement, Algorithm.ED25519)
    wrong = base64.b64encode(sign_digest(other, Algorithm.ECDSA_P256_SHA256, digest)).decode()
    forged = log.sign(p256, digest, edit_outcome={"sig": wrong})
    failed = log.sign(p256, digest, edit_outcome={"res": "failed", "sig": None})
    log.grow(2)
    size = len(log.entries)

    def receipt(name: str, made: Receipt, expect: str, key: PrivateKey = p256, **held: str) -> None:
        receipts.append(
            {"name": name, "receipt": made.to_json().decode(), "public_key": pem(key), **held, "expect": expect}
        )

    whole = log.receipt(blind)
    receipt("a digest", whole, "ok", digest=digest.hex())
    receipt("a model's statement", log.receipt(modelled), "ok", payload=base64.b64encode(statement).decode())
    receipt("Ed25519 over a statement", log.receipt(pure), "ok", edwards, payload=base64.b64encode(statement).decode())
    receipt("another digest", whole, "digest", digest="00" * 32)
    receipt("another payload", log.receipt(modelled), "payload", payload=base64.b64encode(statement + b" ").decode())
    receipt("another key", whole, "key", other, digest=digest.hex())
    receipt("a signature by another key", log.receipt(forged), "signature", digest=digest.hex())
    receipt("a request that failed", log.receipt(failed), "result", digest=digest.hex())
    swapped = Receipt(whole.outcome, whole.intent, whole.checkpoint)
    receipt("intent and outcome swapped", swapped, "entries", digest=digest.hex())
    mixed = Receipt(whole.intent, log.receipt(modelled).outcome, whole.checkpoint)
    receipt("the outcome of another intent", mixed, "link", digest=digest.hex())
    forged_log = SampleLog(private_key=Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))
    forged_log.append(log.entries)
    receipt("a checkpoint by another key", forged_log.receipt(blind), "checkpoint", digest=digest.hex())
    stale = Receipt(whole.intent, whole.outcome, log.note(size - 1))
    receipt("a checkpoint of another size", stale, "intent-inclusion", digest=digest.hex())

    def root(count: int) -> str:
        return log.tree.prover(count).root().hex()

    def split(proof: bytes) -> list[str]:
        return [proof[at : at + 32].hex() for at in range(0, len(proof), 32)]

    vectors: dict[str, Any] = {
        "format": "greatseal audit log, entries of version 1",
        "vkey": log.vkey.line(),
        "log_private_key_seed": bytes(range(32)).hex(),
        "entries": [entry.decode() for entry in log.entries],
        "leaf_hashes": [hashlib.sha256(b"\0" + entry).hexdigest() for entry in log.entries],
        "roots": [root(count) for count in range(size + 1)],
        "inclusion": [
            {"index": index, "size": count, "proof": split(log.tree.prover(count).inclusion(index))}
            for count in range(1, size + 1)
            for index in range(count)
        ],
        "consistency": [
            {"old": old, "new": new, "proof": [each.hex() for each in log.tree.prover(new).consistency(old, new)]}
            for new in range(1, size + 1)
            for old in range(1, new + 1)
        ],
        "checkpoints": [log.note(count) for count in range(1, size + 1)],
        "receipts": receipts,
    }

    TARGET.write_text(json.dumps(vectors, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {TARGET.name}: {size} entries, {len(receipts)} receipts, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
