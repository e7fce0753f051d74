"""The benchmark runs and writes the lines that it documents. What they say is nobody's verdict here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deployment import clean_environment

pytestmark = [pytest.mark.shim, pytest.mark.softhsm, pytest.mark.slow]

RUN = Path(__file__).with_name("run.py")


def test_shortest_run_writes_one_whole_line_for_each_measure() -> None:
    only = [part for name in ("batch-p256", "batch-device", "unary-32", "unary-idle") for part in ("--only", name)]
    done = subprocess.run(
        [sys.executable, str(RUN), "--rounds", "1", "--seconds", "0.3", *only],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["measure"] for line in lines] == ["batch-p256", "batch-device", "unary-32", "unary-idle"]
    for line in lines:
        assert {"measure", "value", "unit", "against", "baseline", "ratio", "range", "aim", "cpu_us"} <= set(line)
        assert line["value"] > 0
        assert line["baseline"] > 0
        assert line["checked"] > 0, "no signature was checked"
        assert {"front", "hosts", "client"} <= set(line["cpu_us"])
    assert "batch-p256" in done.stderr, "the table for people"


def test_quick_and_only_are_explained() -> None:
    done = subprocess.run([sys.executable, str(RUN), "--help"], capture_output=True, text=True, check=True)
    assert "--quick" in done.stdout
    assert "--only" in done.stdout
