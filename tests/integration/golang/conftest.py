"""The two Go programs of this directory, built once a session with the toolchain that is there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# The toolchain that is there, not one that it would download; build cache and proxy as the machine has them.
ENVIRONMENT = os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": "", "CGO_ENABLED": "0"}


def _build(module: Path, target: Path) -> Path:
    subprocess.run(
        ["go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-o", target, "."],
        cwd=module,
        env=ENVIRONMENT,
        check=True,
        timeout=170,
    )
    return target


@pytest.fixture(scope="session")
def logcheck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """main.go of this directory, on golang.org/x/mod."""
    return _build(HERE, tmp_path_factory.mktemp("logcheck") / "logcheck")


@pytest.fixture(scope="session")
def fsck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tessera's fsck, fetched through the Go module proxy."""
    fetched = subprocess.run(
        ["go", "mod", "download"],
        cwd=HERE / "fsck",
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    if fetched.returncode:
        if "requires go >=" in fetched.stderr:
            pytest.skip("needs a Go toolchain of 1.24 or later")
        pytest.skip(f"needs the Go module proxy: {fetched.stderr[-300:]}")
    return _build(HERE / "fsck", tmp_path_factory.mktemp("fsck") / "fsck")
