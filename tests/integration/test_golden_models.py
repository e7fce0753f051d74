"""What was signed by an earlier release, or by the OpenSSF tool of its day, verifies forever."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from greatseal.oms.bundle import read_bundle
from greatseal.oms.listing import IgnoredPaths
from greatseal.oms.manifest import build_manifest
from greatseal.oms.verify import Trust, verify_model

GOLDEN = Path(__file__).parent.parent / "golden"
BUNDLES = sorted(GOLDEN.glob("oms-*/*.sig"))


def test_there_is_something_to_verify():
    assert {path.name.rsplit("-", 2)[0] for path in BUNDLES} == {
        "ours-key",
        "ours-certificate",
        "upstream-key",
        "upstream-certificate",
    }


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_bundle_of_an_earlier_release_verifies(path: Path):
    bundle = read_bundle(path)
    if bundle.certificates:
        trust = Trust.in_root_pem((path.parent / "root.pem").read_bytes())
        at = bundle.certificates[0].not_valid_before_utc
    else:
        trust = Trust.in_key((path.parent / f"{path.stem[-5:]}.pem").read_bytes())
        at = datetime.now(UTC)
    assert verify_model(path.parent / "llama", path, trust, at=at).name == "llama"


@pytest.mark.parametrize(
    "path", [path for path in BUNDLES if path.name.startswith("ours-")], ids=lambda path: path.stem
)
def test_the_same_model_still_gives_the_same_payload(path: Path):
    manifest = build_manifest(path.parent / "llama", IgnoredPaths.of(["model.sig"]))
    assert manifest.payload() == read_bundle(path).payload
