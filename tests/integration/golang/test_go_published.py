"""What a daemon publishes is accepted by golang.org/x/mod and by Tessera's fsck, from the directory and over HTTP."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployment import Deployment
from front_site import connected, pipeline, sign, wait_for
from greatseal.checkpoint import read_unverified

pytestmark = [
    pytest.mark.go,
    pytest.mark.softhsm,
    pytest.mark.skipif(shutil.which("go") is None, reason="needs a Go toolchain"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A running daemon that has published partial and full tiles."""
    made = Deployment.create(tmp_path_factory.mktemp("published"))
    made.append('[log.tiles]\ndirectory = "tiles"\ninterval = 0.1\nlisten = "127.0.0.1:0"\n')
    with made.running():
        with connected(made, pipeline(made)) as channel:
            for _ in range(300):
                sign(channel)
        wait_for(lambda: published(made) > 600)
        yield made


def published(site: Deployment) -> int:
    checkpoint = site.directory / "tiles" / "checkpoint"
    return read_unverified(checkpoint.read_bytes()).size if checkpoint.exists() else 0


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_go_reads_every_tile_and_entry(site: Deployment, logcheck: Path) -> None:
    tiles = site.directory / "tiles"
    done = run(logcheck, "tiles", site.log_vkey, tiles / "checkpoint", tiles)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{published(site)} entries\n"


@pytest.mark.parametrize("over_http", [False, True], ids=["directory", "http"])
def test_tesseras_fsck_finds_nothing(site: Deployment, fsck: Path, over_http: bool) -> None:
    address = (site.directory / "run" / "tiles_address").read_text().strip()
    done = run(fsck, site.log_vkey, f"http://{address}/" if over_http else site.directory / "tiles")
    assert (done.returncode, done.stdout) == (0, "sound\n"), done.stderr


@pytest.mark.parametrize("name", ["tile/0/000", "tile/0/001", "tile/entries/001"])
def test_tesseras_fsck_and_ours_refuse_what_was_edited(site: Deployment, fsck: Path, tmp_path: Path, name: str) -> None:
    tiles = tmp_path / "tiles"
    shutil.copytree(site.directory / "tiles", tiles)
    data = bytearray((tiles / name).read_bytes())
    data[100] ^= 1
    (tiles / name).write_bytes(data)
    assert run(fsck, site.log_vkey, tiles).returncode == 1
    assert site.client("audit", "verify", "--directory", tiles).returncode == 6
