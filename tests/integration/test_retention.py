"""Pruning what an export holds: what goes, what stays, what still verifies, and who cannot bring it about."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import greatseal
from deployment import Deployment, DeploymentError
from front_site import connected, pipeline, sign, wait_for
from greatseal.logdirectory import LogDirectory
from greatseal.note import VerifierKey
from greatseal.tlog import leaf_hash, verify_inclusion
from grown_log import grow, signatures

pytestmark = pytest.mark.softhsm

OLD = 20_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """An installation that has signed, then has a long history, and signed again; with an export of all of it."""
    site = Deployment.create(tmp_path_factory.mktemp("retention"))
    grow(site, signatures("greatseal.local/log", 0, OLD // 2), at_once=200)
    with site.running():
        sign_some(site, 3)
        assert site.client("audit", "export", site.directory / "export").returncode == 0
    return site


@pytest.fixture
def site(made: Deployment, tmp_path: Path) -> Iterator[Deployment]:
    """A copy of it, running."""
    shutil.copytree(made.directory, tmp_path / "seal")
    for file in ("greatseald.toml", "client.toml", "tokens/soft/softhsm2.conf"):
        text = (tmp_path / "seal" / file).read_text().replace(str(made.directory), str(tmp_path / "seal"))
        (tmp_path / "seal" / file).write_text(text)
    copy = Deployment(tmp_path / "seal")
    copy.start()
    yield copy
    copy.close()


def sign_some(site: Deployment, count: int) -> None:
    with connected(site, pipeline(site)) as channel:
        for _ in range(count):
            sign(channel)


def prune(site: Deployment, *options: str | Path) -> Any:
    done = site.daemon("log", "prune", *options, "--exported", site.directory / "export", "--json")
    return json.loads(done.stdout) if done.returncode == 0 else done


def pruned_size(site: Deployment) -> int:
    with greatseal.Client.from_profile(site.profile) as client:
        return client.audit.pruned_size()


def test_what_was_pruned_is_gone_and_everything_goes_on(site: Deployment, tmp_path: Path) -> None:
    export = site.directory / "export"
    vkey = VerifierKey.parse(site.log_vkey.read_text().strip())
    said = prune(site, "--before", "3100")
    assert said["pruned_below"] == 3000, "a commit goes whole or stays"
    assert said["limit"] == ""
    wait_for(lambda: pruned_size(site) == 3000)
    sign_some(site, 1)
    with greatseal.Client.from_profile(site.profile) as client:
        with pytest.raises(greatseal.NotFound, match="pruned after an export") as caught:
            client.audit.entry(10)
        assert caught.value.metadata["export"] == str(export)
        assert caught.value.metadata["pruned_size"] == "3000"
        newest = client.audit.checkpoint()
        # What is gone is proven by its hash, from the export.
        entry = next(data for index, data in LogDirectory(export, vkey).entries(3000) if index == 10)
        proof = client.audit.inclusion(10, newest.size)
        verify_inclusion(10, newest.size, leaf_hash(entry), proof.hashes, newest.root)
        recorded = json.loads(client.audit.entry(said["entry"]).data)
    assert recorded["what"] == "prune"
    assert recorded["info"]["size"] == 3000
    assert recorded["info"]["root"] == said["root"]
    assert recorded["info"]["directory"] == str(export)
    assert len(recorded["info"]["export_checkpoint_sha256"]) == 64

    for command in (
        ("audit", "verify"),
        ("audit", "verify", "--directory", export),
        ("audit", "reconcile", "--ledger", site.directory / "tokens" / "soft" / "state" / "ledger"),
        ("audit", "list", "--limit", "0", "--result", "signed"),
        ("audit", "list", "--type", "admin", "--limit", "0"),
        ("audit", "tail"),
        ("audit", "export", export),
    ):
        done = site.client(*command)
        assert done.returncode == 0, (command, done.stderr)
    said_of_it = json.loads(site.client("audit", "verify", "--json").stdout)
    assert (said_of_it["pruned"], said_of_it["from"]) == (3000, 3000)
    assert "below 3000 were dropped" in site.client("audit", "verify").stderr
    fresh = site.client("audit", "export", tmp_path / "fresh")
    assert fresh.returncode == 2
    assert "copy of that export" in fresh.stderr
    assert site.client("audit", "verify", "--directory", export).returncode == 0

    site.kill()
    site.start()
    sign_some(site, 1)
    assert pruned_size(site) == 3000
    assert site.client("audit", "verify").returncode == 0


def test_as_much_goes_as_nothing_needs_any_more_and_the_command_says_why_not_more(site: Deployment) -> None:
    said = prune(site, "--before", "1000000")
    assert said["pruned_below"] <= OLD
    assert "the newest 16384 entries stay" in said["limit"]
    again = prune(site, "--before", "100")
    assert again.returncode == 2
    assert "nothing is dropped" in again.stderr


def test_by_age(site: Deployment) -> None:
    done = prune(site, "--older-than", "36000")
    assert done.returncode == 2
    assert "nothing is dropped" in done.stderr
    assert prune(site, "--older-than", "1")["pruned_below"] > 0


def test_a_pruning_that_was_cut_off_is_gone_on_with(site: Deployment) -> None:
    said = prune(site, "--before", "3100")
    site.kill()
    site.start()
    wait_for(lambda: pruned_size(site) == said["pruned_below"] == 3000)
    assert site.client("audit", "verify").returncode == 0


def test_an_export_that_is_not_sound_or_another_logs_prunes_nothing(site: Deployment, new_deployment: Any) -> None:
    export = site.directory / "export"
    bundle = export / "tile" / "entries" / "003"
    data = bundle.read_bytes()
    bundle.write_bytes(data[:100] + b"X" + data[101:])
    done = prune(site, "--before", "3000")
    assert done.returncode == 6
    assert "nothing was dropped" in done.stderr
    bundle.unlink()
    assert prune(site, "--before", "3000").returncode == 6
    bundle.write_bytes(data)
    (export / "checkpoint").unlink()
    assert prune(site, "--before", "3000").returncode == 2

    other = new_deployment(name="other")
    with other.running():
        assert other.client("audit", "export", export / "other").returncode == 0
    done = site.daemon("log", "prune", "--before", "2", "--exported", export / "other")
    assert done.returncode == 6
    assert pruned_size(site) == 0


def test_an_outbox_that_has_not_delivered_holds_what_it_waits_for(site: Deployment) -> None:
    site.stop()
    site.append('[[outbox]]\nname = "siem"\ntarget = "syslog+tcp://127.0.0.1:1"\n')
    site.start()
    done = prune(site, "--before", "3000")
    assert done.returncode == 2
    assert "outbox siem" in done.stderr


def test_the_command_says_what_it_wants(site: Deployment) -> None:
    export = site.directory / "export"
    for options, code, says in (
        ((), 2, "either --before INDEX or --older-than DAYS"),
        (("--before", "5", "--older-than", "5"), 2, "either --before INDEX or --older-than DAYS"),
        (("--before", "5", "--as", "postgresql://x@y/z"), 2, "SQLite has no roles"),
        (("--before", "0"), 2, "--before"),
    ):
        done = site.daemon("log", "prune", *options, "--exported", export)
        assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    site.stop()
    done = site.daemon("log", "prune", "--before", "3000", "--exported", export)
    assert done.returncode == 5
    assert "no daemon listens" in done.stderr


def test_the_space_is_given_back_while_no_daemon_runs(site: Deployment) -> None:
    prune(site, "--before", "3100")
    wait_for(lambda: pruned_size(site) == 3000)
    assert site.daemon("store", "compact").returncode == 5
    site.stop()
    done = site.daemon("store", "compact", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["bytes"] < said["bytes_before"]
    site.start()
    assert site.client("audit", "verify").returncode == 0


@pytest.mark.parametrize(
    "attack",
    [
        "DELETE FROM commits WHERE size <= 3000; REPLACE INTO pruned VALUES (1, 3000, 3000, 20000)",
        "REPLACE INTO pruned VALUES (1, 400, 400, 5)",
        "REPLACE INTO pruned VALUES (1, 400, 400, 999999)",
    ],
)
def test_rows_that_say_so_are_not_enough(site: Deployment, attack: str) -> None:
    """Whoever can write the database drops entries, and says that they were pruned."""
    site.stop()
    with closing(sqlite3.connect(site.database)) as database, database:
        database.executescript(attack)
    with pytest.raises(DeploymentError, match="exited 6"):
        site.start()
    assert "were pruned" in site.stderr
