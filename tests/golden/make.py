"""Writes what this version produces, so that every later version must still verify it.

    python tests/golden/make.py 0.1        # once, when a version is released; refuses an existing directory

Keys are made on the fly and never written: what is here can be verified forever and signed never again.
Run it with the two distributions installed. tests/unit/test_golden.py verifies every directory.
"""

from __future__ import annotations

import base64
import hashlib
import sys
from pathlib import Path

from cryptography.hazmat.primitives import serialization

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from greatseal.algorithms import Algorithm  # noqa: E402
from sample_log import SampleLog, as_json, new_key, oms_document  # noqa: E402 - found through the line above

DIGESTS = {
    "sha256": hashlib.sha256(b"golden").digest(),
    "sha384": hashlib.sha384(b"golden").digest(),
    "sha512": hashlib.sha512(b"golden").digest(),
}


def main(version: str) -> None:
    """Write the directory of one version."""
    target = HERE / version
    target.mkdir()
    log = SampleLog()
    log.grow(3)
    (target / "log.vkey").write_text(log.vkey.line() + "\n")
    (target / "checkpoint-3").write_text(log.note())

    statement = as_json(oms_document(["a-b", "a/b", "config.json", "empty", "sub/.gitignore", "ünïcode/模型.bin"]))
    (target / "statement.json").write_bytes(statement)
    pairs = {}
    for algorithm in Algorithm:
        key = new_key(algorithm)
        pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        (target / f"{algorithm.value}.pem").write_bytes(pem)
        if not algorithm.is_pure:
            pairs[f"digest-{algorithm.value}"] = log.sign(key, DIGESTS[algorithm.hash_name], algorithm, between=1)
        pairs[f"statement-{algorithm.value}"] = log.sign_statement(key, statement, algorithm)
    for name, pair in pairs.items():
        (target / f"{name}.receipt.json").write_bytes(log.receipt(pair).to_json())

    size = len(log.entries)
    (target / "checkpoint").write_text(log.note())
    (target / "entries.jsonl").write_bytes(b"".join(entry + b"\n" for entry in log.entries))
    proof = log.tree.prover(size).consistency(3, size)
    (target / "consistency-3").write_text("".join(base64.b64encode(each).decode() + "\n" for each in proof))
    print(f"wrote {target.relative_to(HERE.parent.parent)} with a log of {size} entries")


if __name__ == "__main__":
    main(sys.argv[1])
