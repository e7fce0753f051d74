"""Writes tests/golden/anchors-0.1: a checkpoint of the golden log, cosigned by a witness and stamped by an authority.

    python tests/golden/make_anchors.py

What is written once stays: it must verify for ever (tests/unit/test_golden.py).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402

from greatseal.cosignature import WitnessSigner  # noqa: E402
from greatseal.note import parse_note  # noqa: E402
from greatseal.timestamps import Stamped, read_roots  # noqa: E402
from greatseald.adapters.timestamps import HttpAuthority  # noqa: E402
from timestamp_authority import Authority  # noqa: E402

NOW = 1_767_225_600


def main() -> None:
    target = HERE / "anchors-0.1"
    target.mkdir()
    note = (HERE / "0.1" / "checkpoint").read_text()
    witness = WitnessSigner("witness.example/w1", Ed25519PrivateKey.generate())
    (target / "witness.vkey").write_text(witness.verifier.line() + "\n")
    (target / "checkpoint").write_text(note + witness.cosign(parse_note(note).text, NOW))
    with tempfile.TemporaryDirectory() as directory:
        authority = Authority(Path(directory) / "tsa")
        response = HttpAuthority("tsa", authority.url, None, 10, read_roots([authority.root])).stamp(note.encode())
        authority.close()
        (target / "timestamps.jsonl").write_text(Stamped("tsa", note, response).line())
        shutil.copy(authority.root, target / "tsa-root.pem")


if __name__ == "__main__":
    main()
