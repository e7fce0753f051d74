"""The soak's verdict finds what it is there for, and its load runs against a real daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from soak import judge

HERE = Path(__file__).parent


def hour(**growth: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Samples of an hour in which something grows by so much."""
    samples = []
    for at in range(0, 3600, 10):
        part = at / 3600
        grown = {name: value * part for name, value in growth.items()}
        front = {"rss": 100 + at % 30 / 30 + grown.get("memory", 0), "fds": 40 + int(grown.get("fds", 0)), "threads": 9}
        samples.append({"at": at, "front": front, "hosts": {"rss": 30, "fds": 12, "threads": 4}})
    minutes = [{"at": at, "p99_ms": 10 + at % 3 + growth.get("p99", 0) * at / 3600} for at in range(60, 3600, 60)]
    return samples, minutes


def failing(**growth: float) -> set[str]:
    return {name for name, each in judge(*hour(**growth)).items() if not each["holds"]}


def test_what_grows_is_named() -> None:
    assert failing() == set()
    assert failing(memory=10) == {"front_memory"}
    assert failing(fds=5) == {"front_fds"}
    assert failing(p99=8) == {"p99"}


@pytest.mark.softhsm
@pytest.mark.slow
def test_short_soak_checks_answers_and_log() -> None:
    environment = {**os.environ, "SOAK_MINUTES": "0.1"}
    command = [sys.executable, str(HERE / "soak.py"), "--sample", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    verdict = lines[-1]["verdict"]
    assert verdict["answers"]["holds"], verdict["answers"]
    assert verdict["log"]["holds"], verdict["log"]
    assert verdict["log"]["entries"] > 100
    calls = lines[-2]["calls"] if "calls" in lines[-2] else lines[-3]["calls"]
    assert {"unary", "batch", "statement", "replay", "read"} <= set(calls)
