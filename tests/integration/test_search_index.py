"""The search index: it finds what reading finds, catches up, and is dropped and built anew rather than believed."""

from __future__ import annotations

import json
import shutil
import sqlite3
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deployment import Deployment
from front_site import connected, pipeline, sign, wait_for
from grown_log import grow, signatures

pytestmark = pytest.mark.softhsm

LONG = 12_000
DIGEST = f"{4000:064x}"[::-1]


@pytest.fixture
def site(made: Deployment, tmp_path: Path) -> Iterator[Deployment]:
    """A copy of a long log, running."""
    shutil.copytree(made.directory, tmp_path / "seal")
    for file in ("greatseald.toml", "client.toml", "tokens/soft/softhsm2.conf"):
        text = (tmp_path / "seal" / file).read_text().replace(str(made.directory), str(tmp_path / "seal"))
        (tmp_path / "seal" / file).write_text(text)
    copy = Deployment(tmp_path / "seal")
    copy.start()
    yield copy
    copy.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    site = Deployment.create(tmp_path_factory.mktemp("index"))
    grow(site, signatures("greatseal.local/log", 0, LONG // 2), at_once=200)
    return site


def index_file(site: Deployment) -> Path:
    return Path(f"{site.database}.index")


def behind(site: Deployment) -> float:
    address = (site.directory / "run" / "metrics_address").read_text().strip()
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return next(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("greatseald_index_behind_entries ")
    )


def found(site: Deployment, *options: str) -> list[Any]:
    done = site.client("audit", "list", "--limit", "0", "--json", *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


SEARCHES = (
    ("--digest", DIGEST[:16]),
    ("--caller", "spiffe://greatseal.local/ci-3", "--since", "2020-01-01"),
    ("--key", "scratch", "--result", "signed"),
    ("--type", "denied"),
    ("--type", "admin"),
    ("--caller", "spiffe://greatseal.local/ci-1*", "--reverse"),
    ("--caller", "nobody"),
)


def test_with_the_index_a_search_finds_what_it_finds_without(site: Deployment) -> None:
    with connected(site, pipeline(site)) as channel:
        for _ in range(3):
            sign(channel)
    site.stop()
    site.edit(r"^\[log\]$", "[log]\nindex = false")
    with site.running():
        read = {search: found(site, *search) for search in SEARCHES}
    assert len(read[SEARCHES[0]]) == 2, "an intent and its outcome"
    assert len(read[SEARCHES[2]]) == 3
    site.edit(r"^index = false$", "index = true")
    with site.running():
        early = {search: found(site, *search) for search in SEARCHES}
        wait_for(lambda: behind(site) == 0, 60)
        late = {search: found(site, *search) for search in SEARCHES}
    for search in SEARCHES:
        if search != ("--type", "admin"):  # each start adds one
            assert early[search] == read[search], search
            assert late[search] == read[search], search
    assert len(late["--type", "admin"]) >= len(read["--type", "admin"]) > 0
    assert index_file(site).stat().st_mode & 0o777 == 0o600


def test_what_was_signed_just_now_is_found(site: Deployment) -> None:
    wait_for(lambda: behind(site) == 0, 60)
    with connected(site, pipeline(site)) as channel:
        sign(channel)
        assert len(found(site, "--result", "signed", "--key", "scratch")) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no database at all" * 1000),
        lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\xa5" * (path.stat().st_size - 4096)),
        lambda path: path.unlink(),
        lambda path: edit(path, "UPDATE covered SET root = x'00'"),
        lambda path: edit(path, "UPDATE covered SET size = 999999999"),
        lambda path: edit(path, "PRAGMA user_version = 77"),
        lambda path: edit(path, "DROP TABLE digests"),
    ],
    ids=["text", "pages", "gone", "other history", "beyond", "version", "schema"],
)
def test_an_index_that_is_damaged_or_of_another_log_is_built_anew(site: Deployment, damage: Any) -> None:
    wait_for(lambda: behind(site) == 0, 60)
    site.stop()
    for suffix in ("-wal", "-shm"):
        Path(f"{index_file(site)}{suffix}").unlink(missing_ok=True)
    damage(index_file(site))
    with site.running():
        assert len(found(site, "--digest", DIGEST[:16])) == 2, "a search does not wait for the index"
        wait_for(lambda: behind(site) == 0, 60)
        assert len(found(site, "--digest", DIGEST[:16])) == 2


def edit(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement)


def test_it_is_built_anew_at_will(site: Deployment) -> None:
    wait_for(lambda: behind(site) == 0, 60)
    edit(index_file(site), "DELETE FROM digests")  # what no check of its own can notice
    assert found(site, "--digest", DIGEST[:16]) == []
    done = site.daemon("log", "reindex", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["entries"] >= LONG
    assert len(found(site, "--digest", DIGEST[:16])) == 2
    wait_for(lambda: behind(site) == 0, 60)
    assert len(found(site, "--digest", DIGEST[:16])) == 2
    site.stop()
    assert site.daemon("log", "reindex").returncode == 0
    assert not index_file(site).exists()


def test_entries_that_were_pruned_are_not_looked_for(site: Deployment) -> None:
    grow_more = site.client("audit", "export", site.directory / "export")
    assert grow_more.returncode == 0
    wait_for(lambda: behind(site) == 0, 60)
    site.stop()
    grow(site, signatures("greatseal.local/log", LONG + 2, 10_000), at_once=200)
    with site.running():
        done = site.daemon("log", "prune", "--before", "5000", "--exported", site.directory / "export")
        assert done.returncode == 0, done.stderr
        wait_for(lambda: found(site, "--digest", DIGEST[:16]) == [], 30)
        assert len(found(site, "--digest", f"{6000:064x}"[::-1][:16])) == 2
