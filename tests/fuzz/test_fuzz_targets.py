"""The short form of `make fuzz`: every committed input again, then some seconds of new ones, with the seed printed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from targets import load_all

HERE = Path(__file__).resolve().parent
TARGETS = load_all()
RUNS = "2000"


@pytest.mark.parametrize("name", TARGETS)
def test_every_known_input_is_refused_or_understood(name: str) -> None:
    inputs = sorted((HERE / "corpus" / name).iterdir())
    assert inputs, "a target without a corpus finds nothing"
    for path in inputs:
        try:
            TARGETS[name].run(path.read_bytes())
        except Exception as error:
            error.add_note(f"repeat it with: python tests/fuzz/one.py {name} {path.relative_to(HERE.parent.parent)}")
            raise
    for data in (b"", b"\0", b"\xff" * 100):
        TARGETS[name].run(data)


def test_corpora_are_of_targets_and_small() -> None:
    directories = {path.name for path in (HERE / "corpus").iterdir()}
    assert directories == set(TARGETS)
    assert sum(path.stat().st_size for path in (HERE / "corpus").rglob("*") if path.is_file()) < 600_000


@pytest.mark.slow
def test_new_inputs_find_nothing(tmp_path: Path) -> None:
    """Guided by coverage, a few thousand for each target. GREATSEAL_FUZZ_SEED repeats a run."""
    seed = int(os.environ.get("GREATSEAL_FUZZ_SEED", random.SystemRandom().randrange(1, 1 << 31)))
    print(f"GREATSEAL_FUZZ_SEED={seed}")
    command = [sys.executable, str(HERE), "--runs", RUNS, "--seed", str(seed), "--build", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert done.stdout.count("  ok  ") == len(TARGETS)
