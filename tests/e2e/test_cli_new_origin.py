"""`greatseald log new-origin`: the way out where a log cannot be gone on with, which says what became of the old one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deployment import Deployment, greatseal
from greatseal.checkpoint import open_checkpoint
from greatseal.note import VerifierKey
from outside_site import WitnessProcess
from postgres_server import PostgresServer

pytestmark = pytest.mark.softhsm

OLD, NEW = "greatseal.local/log", "greatseal.local/log-2"


def sign(daemon: Deployment, receipt: Path, text: str = "ab") -> None:
    done = daemon.client("sign", "digest", "--sha256", text * 32, "--key", "scratch", "--receipt", receipt)
    assert done.returncode == 0, done.stderr


def files(daemon: Deployment) -> dict[Path, bytes]:
    kept = ("log", "anchor", "data")
    found = [path for name in kept for path in (daemon.directory / name).iterdir() if not path.name.endswith(".lock")]
    return {path: path.read_bytes() for path in [daemon.config, *found]}


@pytest.mark.slow
def test_a_log_that_was_rolled_back_ends_and_a_new_one_names_it(deployment: Deployment, tmp_path: Path) -> None:
    witness = WitnessProcess(tmp_path / "w1").start(deployment.log_vkey)
    deployment.append(witness.table(timeout=5))
    deployment.append(f'[[outbox]]\nname = "siem"\ntarget = "file://{tmp_path}/siem"\n')
    old_vkey = deployment.log_vkey.read_text()
    deployment.start()
    sign(deployment, tmp_path / "first.json")
    deployment.stop()
    copy = tmp_path / "copy.db"
    assert deployment.daemon("backup", copy).returncode == 0
    deployment.start()
    sign(deployment, tmp_path / "second.json", "cd")
    lost = json.loads(deployment.client("audit", "checkpoint", "--witness", witness.vkey, "--json").stdout)
    deployment.stop()
    assert deployment.daemon("restore", copy, "--replace").returncode == 0
    deployment.start(wait=False)
    assert deployment.wait_exit() == 6

    command = ("log", "new-origin", NEW)
    before = files(deployment)
    for options, told in (
        ((), f"this ends the log {OLD} for good, and nothing was done"),
        (("--closing", OLD), "--reason is missing"),
        (("--closing", OLD, "--reason", "x", "--old-store", "postgresql://x/y"), "--old-store is for PostgreSQL alone"),
    ):
        refused = deployment.daemon(*command, *options)
        assert (refused.returncode, told in refused.stderr) == (2, True), refused.stderr
    wrong = deployment.daemon("log", "new-origin", "no name", "--closing", OLD, "--reason", "x")
    assert (wrong.returncode, "must be HOST/NAME" in wrong.stderr) == (2, True), wrong.stderr
    assert files(deployment) == before

    done = deployment.daemon(*command, "--closing", OLD, "--reason", "the volume was lost", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["origin"], said["closed"]["origin"]) == (NEW, OLD)
    kept = {Path(path).read_bytes() for path in said["set_aside"] if Path(path).is_file()}
    # Nothing of the old log is gone but what was restored over before.
    assert {
        data for path, data in before.items() if path.parent.name in {"log", "anchor"} and path.suffix != ".halted"
    } <= kept
    assert before[deployment.database] in kept

    deployment.start()  # although the anchor had disagreed; the witness does not know the new log, which is an alarm
    assert deployment.log_vkey.read_text() == said["vkey"] + "\n"
    sign(deployment, tmp_path / "third.json", "ef")
    entry = json.loads(deployment.client("audit", "show", "0", "--json").stdout)["entry"]
    assert (entry["t"], entry["what"], entry["log"]) == ("admin", "new-origin", NEW)
    info = entry["info"]
    assert (info["old_origin"], info["old_vkey"] + "\n", info["why"]) == (OLD, old_vkey, "the volume was lost")
    assert info["released_size"] >= lost["size"] > info["old_size"]
    closed = open_checkpoint(info["old_checkpoint"], VerifierKey.parse(old_vkey))
    assert (closed.size, closed.root.hex()) == (info["old_size"], info["old_root"])
    assert deployment.client("audit", "verify").returncode == 0
    assert f'"log":"{NEW}"' in (tmp_path / "siem").read_text()
    # Old receipts verify as ever under the old key, new ones under the new key, and neither under the other's.
    for receipt, key, code in (
        ("second.json", old_vkey, 0),
        ("third.json", said["vkey"], 0),
        ("second.json", said["vkey"], 6),
        ("third.json", old_vkey, 6),
    ):
        done = greatseal("receipt", "verify", tmp_path / receipt, "--log-key", key.strip())
        assert done.returncode == code, done.stderr
    witness.stop()


def test_a_log_with_a_daemon_is_not_ended(deployment: Deployment) -> None:
    with deployment.running():
        before = {path: data for path, data in files(deployment).items() if path.parent.name != "data"}
        refused = deployment.daemon("log", "new-origin", NEW, "--closing", OLD, "--reason", "x")
        assert (refused.returncode, "in use by another process" in refused.stderr) == (5, True), refused.stderr
        assert {path: data for path, data in files(deployment).items() if path.parent.name != "data"} == before


def test_a_log_that_somebody_edited_is_not_named_as_if_it_were_the_old_one(deployment: Deployment) -> None:
    deployment.start()
    deployment.stop()
    (deployment.directory / "log" / "head-mac.key").write_text("00" * 32 + "\n")
    refused = deployment.daemon("log", "new-origin", NEW, "--closing", OLD, "--reason", "x")
    assert (refused.returncode, "what is left of the old log cannot be named" in refused.stderr) == (6, True)


@pytest.mark.postgres
def test_on_postgresql_the_new_log_is_written_to_a_database_of_its_own(deployment: Deployment) -> None:
    with PostgresServer.start() as server:
        old, new = server.empty_database("old"), server.empty_database("new")
        deployment.edit(r"^url = .*", f'url = "{old}"')
        deployment.start()
        options = ("log", "new-origin", NEW, "--closing", OLD, "--reason", "moved")
        assert "make an empty database" in deployment.daemon(*options).stderr
        deployment.edit(r"^url = .*", f'url = "{new}"')
        busy = deployment.daemon(*options, "--old-store", old)
        assert (busy.returncode, "1 front(s) run on the old database" in busy.stderr) == (5, True), busy.stderr
        deployment.stop()
        done = deployment.daemon(*options, "--old-store", old, "--json")
        assert done.returncode == 0, done.stderr
        deployment.start()
        info = json.loads(deployment.client("audit", "show", "0", "--json").stdout)["entry"]["info"]
        assert (info["old_origin"], info["old_size"]) == (OLD, json.loads(done.stdout)["closed"]["size"])
        assert info["old_size"] > 0
        again = deployment.daemon(
            "log", "new-origin", "x.example/y", "--closing", NEW, "--reason", "x", "--old-store", old
        )
        assert again.returncode != 0
        deployment.close()
    shutil.rmtree(deployment.directory)
