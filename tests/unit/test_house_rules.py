"""The rules of a test run: one closing line that counts, and no silent skips in CI."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deployment import run

TESTS = Path(__file__).resolve().parents[1]
SAMPLE = """
import pytest

def test_good(): pass

@pytest.mark.parametrize("n", [1, 2])
def test_many(n): pass

@pytest.mark.skip(reason="{reason}")
def test_skipped(): pass
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(TESTS / "conftest.py", tmp_path / "conftest.py")
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {TESTS}\n")
    return tmp_path


def pytest_run(project: Path, ci: str, *arguments: str):
    import sys

    return run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, cwd=project, env={"CI": ci})


def test_a_skip_outside_ci_is_counted_and_tolerated(project):
    (project / "test_sample.py").write_text(SAMPLE.format(reason="SoftHSM is missing"))
    done = pytest_run(project, "")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "3 passed, 0 failed, 1 skipped"


def test_a_skip_of_something_that_setup_installs_fails_a_ci_run(project):
    (project / "test_sample.py").write_text(SAMPLE.format(reason="SoftHSM is missing"))
    done = pytest_run(project, "true")
    assert done.returncode == 1
    assert "test_sample.py::test_skipped: " in done.stdout
    assert done.stdout.splitlines()[-1] == "3 passed, 1 failed, 0 skipped"


def test_a_skip_on_the_list_is_accepted_in_ci(project):
    (project / "test_sample.py").write_text(SAMPLE.format(reason="needs a Go toolchain: go is not on PATH"))
    done = pytest_run(project, "true")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "3 passed, 0 failed, 1 skipped"


@pytest.mark.parametrize(
    "body",
    ["def test_bad(): assert False", "def test_bad(nothing): pass", "import nothing_of_that_name"],
    ids=["assertion", "fixture", "collection"],
)
def test_every_kind_of_failure_is_counted(project, body):
    (project / "test_sample.py").write_text(f"{body}\n")
    done = pytest_run(project, "")
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1] == "0 passed, 1 failed, 0 skipped"
    assert (project / "build/test-result").read_text() == "0 passed, 1 failed, 0 skipped\n"
