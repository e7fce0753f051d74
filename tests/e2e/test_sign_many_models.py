"""`greatseal sign models`: many models in one run, each signed exactly once, whatever happens to the connection or the client."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import greatseal
from cutting_proxy import CuttingProxy
from deployment import SCRIPTS, Deployment, clean_environment
from greatseal.oms.verify import Trust, verify_model

pytestmark = pytest.mark.softhsm


def make_models(parent: Path, count: int, *, prefix: str = "model") -> list[Path]:
    models = []
    for number in range(count):
        model = parent / f"{prefix}-{number:04}"
        (model / "weights").mkdir(parents=True)
        (model / "config.json").write_text(json.dumps({"number": number}))
        (model / "weights" / "part.bin").write_bytes(number.to_bytes(4, "big") * 64)
        models.append(model)
    return models


def signed_subjects(site: Deployment) -> Counter[str]:
    """How often the log says that a model of each name was signed."""
    with greatseal.Client.from_profile(site.profile) as client:
        entries = {entry.index: json.loads(entry.data) for entry in client.audit.entries()}
    subjects: Counter[str] = Counter()
    for entry in entries.values():
        if entry["t"] == "outcome" and entry["res"] == "signed":
            subjects[entries[entry["intent"]["index"]]["subj"]["name"]] += 1
    return subjects


def require_verified(site: Deployment, models: list[Path]) -> None:
    trust = Trust.in_key((site.directory / "keys" / "release.pem").read_bytes())
    for model in models:
        assert verify_model(model, model / "model.sig", trust).name == model.name


@pytest.fixture
def site(new_deployment: Any) -> Any:
    deployment = new_deployment()
    with deployment.running():
        yield deployment


def test_a_thousand_models_over_a_connection_that_is_cut_five_times(site: Deployment, tmp_path: Path) -> None:
    models = make_models(tmp_path / "models", 1000)
    listing = tmp_path / "list"
    listing.write_text("".join(f"{model}\n" for model in models))
    with CuttingProxy(site.address, up=[50_000, 400_000, 900_000], down=[150_000, 900_000]) as proxy:
        ran = site.client(
            *("sign", "models", "--from-file", listing, "--json", "--resume", tmp_path / "journal"),
            env={"GREATSEAL_ADDRESS": proxy.address},
        )
    assert ran.returncode == 0, ran.stderr
    assert proxy.cuts == 5
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    assert {result["path"] for result in results if result["signed"]} == set(map(str, models))
    assert signed_subjects(site) == Counter({model.name: 1 for model in models})
    require_verified(site, models)
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(models[7])]
    options = [
        "--signature",
        str(models[7] / "model.sig"),
        "--public_key",
        str(site.directory / "keys" / "release.pem"),
    ]
    upstream = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert "Verification succeeded" in upstream.stdout, upstream.stderr


def test_a_run_that_was_killed_goes_on_where_it_was(site: Deployment, tmp_path: Path) -> None:
    models = make_models(tmp_path / "models", 300)
    command = [
        SCRIPTS / "greatseal",
        "--profile",
        site.profile,
        "sign",
        "models",
        "--json",
        "--resume",
        tmp_path / "journal",
    ]
    process = subprocess.Popen([*command, *models], stdout=subprocess.PIPE, env=clean_environment(), text=True)
    assert process.stdout is not None
    process.stdout.readline()  # at least one batch is done, and others are under way
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = site.client("sign", "models", "--json", "--resume", tmp_path / "journal", *models)
    assert again.returncode == 0, again.stderr
    assert signed_subjects(site) == Counter({model.name: 1 for model in models})
    require_verified(site, models)
    assert any(json.loads(line)["replayed"] for line in again.stdout.splitlines())


def test_one_models_trouble_is_its_own(site: Deployment, tmp_path: Path) -> None:
    good, linked, empty, changed = make_models(tmp_path / "models", 4)
    (linked / "link").symlink_to("config.json")
    for file in [*empty.rglob("*.json"), *empty.rglob("*.bin")]:
        file.unlink()
    (changed / "model.sig").write_text("not a signature")
    missing = tmp_path / "nowhere"
    ran = site.client("sign", "models", "--json", good, linked, empty, changed, missing)
    results = {json.loads(line)["path"]: json.loads(line) for line in ran.stdout.splitlines()}
    assert ran.returncode == 1
    assert [path for path, result in results.items() if result["signed"]] == [str(good)]
    assert "link" in results[str(linked)]["error"]["message"]
    assert all(results[str(bad)]["error"]["exit_code"] == 2 for bad in (linked, empty, changed, missing))
    assert (changed / "model.sig").read_text() == "not a signature"
    shown = site.client("sign", "models", good, missing)
    assert "1 of 2 models signed" in shown.stderr
    assert str(good) in shown.stdout


def test_who_may_not_sign_is_told_so_for_each_model_and_with_the_code_for_it(site: Deployment, tmp_path: Path) -> None:
    models = make_models(tmp_path / "models", 3)
    reader = site.add_client("reader", "--actions", "readKeys", "--keys", "release")
    site.reload()
    ran = site.client("sign", "models", "--json", *models, profile=reader)
    assert ran.returncode == 3, ran.stderr
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [result["error"]["reason"] for result in results] == ["ACCESS_DENIED"] * 3
    assert not any((model / "model.sig").exists() for model in models)


def test_receipts_go_where_they_are_asked_for_and_verify(site: Deployment, tmp_path: Path) -> None:
    models = make_models(tmp_path / "models", 3)
    receipts = tmp_path / "receipts"
    assert site.client("sign", "models", "--receipts", receipts, *models).returncode == 2, "there is no such directory"
    receipts.mkdir()
    assert site.client("sign", "models", "--receipts", receipts, *models).returncode == 0
    for model in models:
        receipt = receipts / f"{model.name}.receipt.json"
        checked = site.client("receipt", "verify", receipt, "--log-key", site.log_vkey, "--model", model)
        assert checked.returncode == 0, checked.stderr


def test_results_go_to_stdout_and_progress_to_the_terminal(site: Deployment, tmp_path: Path) -> None:
    models = make_models(tmp_path / "models", 3)
    command = [SCRIPTS / "greatseal", "--profile", site.profile, "sign", "models", "--progress", *models]
    ours, theirs = pty.openpty()
    try:
        environment = clean_environment() | {"TERM": "xterm-256color", "COLUMNS": "120", "NO_COLOR": "1"}
        ran = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, stderr=theirs, env=environment, check=True)
        shown = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert [json.loads(line)["path"] for line in ran.stdout.splitlines()] == list(map(str, models))
    assert "3 of 3 models done" in shown
    assert "model-0002" in shown
    assert "{" not in shown
    piped = subprocess.run(command, capture_output=True, env=clean_environment(), text=True, check=True)
    assert "3 of 3 models done" in piped.stderr
    assert len(piped.stdout.splitlines()) == 3


def test_a_digest_cache_saves_reading_and_changes_nothing(site: Deployment, tmp_path: Path) -> None:
    models = make_models(tmp_path / "models", 3)
    cached = ("--json", "--digest-cache", tmp_path / "digests")
    assert site.client("sign", "models", *cached, *models).returncode == 0
    (models[1] / "config.json").write_text("{}")
    ran = site.client("sign", "models", *cached, *models)
    assert [json.loads(line)["files_from_cache"] for line in ran.stdout.splitlines()] == [2, 1, 2]
    require_verified(site, models)
    one = site.client("sign", "model", models[0], "--digest-cache", tmp_path / "digests")
    assert "2 of 2 files not read" in one.stderr
    for inside in (
        site.client("sign", "model", models[0], "--digest-cache", models[0] / "ours"),
        site.client("sign", "models", *models, "--digest-cache", models[2] / "weights" / "ours"),
        site.client("sign", "models", *models, "--resume", models[2] / "ours"),
    ):
        assert inside.returncode == 2
        assert "inside the model" in inside.stderr
    assert not list((tmp_path / "models").rglob("ours*")), "what was refused was made all the same"
    (tmp_path / "other").write_text("mine")
    wrong = site.client("sign", "models", *models, "--digest-cache", tmp_path / "other")
    assert wrong.returncode == 2
    assert "no digest cache" in wrong.stderr


def test_models_that_would_share_a_receipt_or_are_named_twice_are_refused_before_anything(
    site: Deployment, tmp_path: Path
) -> None:
    (one,) = make_models(tmp_path / "a", 1)
    (two,) = make_models(tmp_path / "b", 1)
    (tmp_path / "receipts").mkdir()
    assert site.client("sign", "models", "--receipts", tmp_path / "receipts", one, two).returncode == 2
    twice = site.client("sign", "models", one, two, one.parent / "." / one.name)
    assert twice.returncode == 2
    assert "named twice" in twice.stderr
    assert site.client("sign", "models").returncode == 2
    assert signed_subjects(site) == Counter()


@pytest.mark.parametrize(
    "content", [b"{}\n", b"junk\n", b'{"greatseal":"sign-models-journal","version":2}\n', os.urandom(300)]
)
def test_a_file_that_is_no_journal_is_left_alone(site: Deployment, tmp_path: Path, content: bytes) -> None:
    models = make_models(tmp_path / "models", 1)
    journal = tmp_path / "journal"
    journal.write_bytes(content)
    refused = site.client("sign", "models", "--resume", journal, *models)
    assert refused.returncode == 2
    assert "journal" in refused.stderr
    assert journal.read_bytes() == content


def test_a_model_that_changed_since_is_another_request(site: Deployment, tmp_path: Path) -> None:
    (model,) = make_models(tmp_path / "models", 1)
    resume = ("sign", "models", "--json", "--resume", tmp_path / "journal", model)
    first, second = (json.loads(site.client(*resume).stdout) for _ in range(2))
    assert second["request_id"] == first["request_id"]
    assert second["replayed"]
    (model / "config.json").write_text("{}")
    third = json.loads(site.client(*resume).stdout)
    assert third["request_id"] != first["request_id"]
    require_verified(site, [model])
