"""Makes tests/golden/oms-0.1: one model and the bundles about it, by us and by the OpenSSF tool.

Run once for each release that changes how bundles are written, into a new directory; what is there
is never made again, for its purpose is to have been made then.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import model_site as site

HERE = Path(__file__).parent
# Names that every file system and version control system gives back as they were.
NAMES = (
    "config.json",
    "a-b",
    "a/b",
    "a.b",
    "empty",
    "weights/00001.bin",
    "weights/.gitignore",
    "Gewichte/größe-模型-🦙.bin",
)


def main(target: Path) -> None:
    target.mkdir()
    model = site.make_model(target / "llama", {name: site.FILES[name][:300] for name in NAMES})
    root = site.Authority.root(ends=timedelta(days=3650))
    middle = root.intermediate(ends=timedelta(days=3650))
    (target / "root.pem").write_bytes(site.certificate_pem(root.certificate))
    for curve in ("P-256", "P-384"):
        key = site.new_key(curve)
        (target / f"{curve}.pem").write_bytes(site.public_pem(key))
        chain = (middle.leaf(key), middle.certificate)
        site.sign_locally(model, key).rename(target / f"ours-key-{curve}.sig")
        site.sign_locally(model, key, chain).rename(target / f"ours-certificate-{curve}.sig")
        private, leaf, rest = target / "private", target / "leaf", target / "rest"
        private.write_bytes(site.private_pem(key))
        leaf.write_bytes(site.certificate_pem(chain[0]))
        rest.write_bytes(site.certificate_pem(chain[1]))
        upstream = [sys.executable, "-m", "model_signing", "sign"]
        made = ["--signature", target / f"upstream-key-{curve}.sig", "--private_key", private]
        subprocess.run([*upstream, "key", model, *made], check=True)
        made = ["--signature", target / f"upstream-certificate-{curve}.sig", "--private_key", private]
        certificates = ["--signing_certificate", leaf, "--certificate_chain", rest]
        subprocess.run([*upstream, "certificate", model, *made, *certificates], check=True)
        for temporary in (private, leaf, rest):
            temporary.unlink()


if __name__ == "__main__":
    main(HERE / sys.argv[1])
