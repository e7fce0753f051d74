"""`greatseald backup` copies a log while it grows; `restore` puts a copy back, and the anchor judges it."""

from __future__ import annotations

import json

import pytest

from deployment import Deployment

pytestmark = pytest.mark.softhsm


def sign(deployment: Deployment) -> None:
    done = deployment.client("sign", "digest", "--sha256", "ab" * 32, "--key", "keys/scratch")
    assert done.returncode == 0, done.stderr


def log_size(deployment: Deployment) -> int:
    done = deployment.client("--json", "audit", "checkpoint")
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["size"])


def test_a_running_daemon_is_copied_and_goes_on(deployment, tmp_path):
    with deployment.running():
        sign(deployment)
        done = deployment.daemon("backup", tmp_path / "copy.db", "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["made_by"] == "daemon"
        assert 0 < told["log_size"] <= log_size(deployment)
        assert (tmp_path / "copy.db").stat().st_size == told["bytes"]
        assert (tmp_path / "copy.db").stat().st_mode & 0o077 == 0
        sign(deployment)


def test_the_newest_copy_of_a_stopped_daemon_is_restored_and_goes_on(deployment, tmp_path):
    with deployment.running():
        sign(deployment)
    done = deployment.daemon("backup", tmp_path / "copy.db", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["made_by"] == "offline"
    size = json.loads(done.stdout)["log_size"]
    for path in deployment.database.parent.glob("log.db*"):
        path.unlink()
    restored = deployment.daemon("restore", tmp_path / "copy.db")
    assert restored.returncode == 0, restored.stderr
    with deployment.running():
        assert log_size(deployment) >= size
        sign(deployment)


def test_a_copy_that_is_older_than_the_anchor_is_not_signed_on(deployment, tmp_path):
    with deployment.running():
        sign(deployment)
        assert deployment.daemon("backup", tmp_path / "old.db").returncode == 0
        sign(deployment)
    restored = deployment.daemon("restore", tmp_path / "old.db", "--replace")
    assert restored.returncode == 0, restored.stderr
    assert "anchor" in restored.stderr
    assert list(deployment.database.parent.glob("*.replaced-*")), "what was there must be kept"
    deployment.start(wait=False)
    try:
        code = deployment.wait_exit()
    finally:
        deployment.close()
    assert code == 6, deployment.stderr
    assert "anchor" in deployment.stderr.splitlines()[0]


def test_a_store_in_place_is_not_replaced_unasked(deployment, tmp_path):
    with deployment.running():
        assert deployment.daemon("backup", tmp_path / "copy.db").returncode == 0
    before = deployment.database.read_bytes()
    done = deployment.daemon("restore", tmp_path / "copy.db")
    assert done.returncode == 2
    assert "--replace" in done.stderr
    assert deployment.database.read_bytes() == before


def test_a_store_in_use_is_not_replaced(deployment, tmp_path):
    with deployment.running():
        assert deployment.daemon("backup", tmp_path / "copy.db").returncode == 0
        done = deployment.daemon("restore", tmp_path / "copy.db", "--replace")
        assert done.returncode == 5, done.stderr
        assert log_size(deployment) > 0


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_backup_overwrites_nothing(deployment, tmp_path, running):
    (tmp_path / "copy.db").write_text("mine")
    if running:
        deployment.start()
    done = deployment.daemon("backup", tmp_path / "copy.db")
    assert done.returncode == 2
    assert "overwrites nothing" in done.stderr
    assert (tmp_path / "copy.db").read_text() == "mine"


def test_a_damaged_copy_is_refused_and_nothing_is_put_in_place(deployment, tmp_path):
    with deployment.running():
        sign(deployment)
        assert deployment.daemon("backup", tmp_path / "copy.db").returncode == 0
    for path in deployment.database.parent.glob("log.db*"):
        path.unlink()
    copy = tmp_path / "copy.db"
    copy.write_bytes(b"not a database" + copy.read_bytes()[14:])
    done = deployment.daemon("restore", copy)
    assert done.returncode == 1
    assert str(copy) in done.stderr
    assert "Traceback" not in done.stderr
    assert not deployment.database.exists()


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_a_missing_place_is_a_usage_error(deployment, tmp_path, command):
    done = deployment.daemon(command, tmp_path / "nothere" / "copy.db")
    assert done.returncode == 2
    assert "nothere" in done.stderr
