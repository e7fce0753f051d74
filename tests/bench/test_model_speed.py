"""The measures of model signing measure what they say: both sides sign the same files, and it is checked."""

from __future__ import annotations

import model_speed
import pytest

from deployment import Deployment

pytestmark = [pytest.mark.softhsm]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_speed, "BIG_BYTES", 3 << 20)
    monkeypatch.setattr(model_speed, "PART_BYTES", 3 << 20)
    monkeypatch.setattr(model_speed, "SMALL_FILES", 30)


@pytest.mark.parametrize("measure", [model_speed.model_1gib, model_speed.model_10k])
def test_both_sides_sign_the_same_files(shared_deployment: Deployment, measure):
    public = shared_deployment.directory / "keys" / "release.pem"
    line = measure(1, shared_deployment.profile, public).line()
    assert line["measure"] in model_speed.NAMES
    assert line["checked"] == 2
    assert min(line["value"], line["baseline"]) > 0


def test_hashing_agrees_with_openssl():
    line = model_speed.hashing(2).line()
    assert line["checked"] == 2
    assert min(line["value"], line["baseline"]) > 0
