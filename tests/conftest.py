"""Fixtures that every test may use, and two rules of the house.

- With CI set, a skip is a failure, unless its reason is one of `ALLOWED_SKIPS`: whatever setup
  installs is there, so a test that finds it missing has found a fault.
- A run ends with one plain line that counts: `N passed, N failed, N skipped`. It also stands in
  build/test-result, so that whoever ran the tests first can repeat it last. Where workers share the
  tests (pytest-xdist), whoever leads them counts.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from deployment import Deployment

# The same examples in every run: a failure must be everybody's. Fuzzing beyond them belongs to a run of its own.
settings.register_profile("greatseal", derandomize=True, deadline=None, database=None)
settings.load_profile("greatseal")

ALLOWED_SKIPS = (
    # Debian 12's Go is older than golang.org/x/mod wants, so setup does not install one.
    "needs a Go toolchain",
    # Tessera's fsck is fetched; setup installs nothing of Go.
    "needs the Go module proxy",
)


@pytest.fixture
def new_deployment(tmp_path: Path) -> Iterator[Callable[..., Deployment]]:
    """A function that runs `greatseald init` with options; every daemon it leads to is ended after the test."""
    made: list[Deployment] = []

    def make(*init_options: str, name: str = "seal") -> Deployment:
        made.append(Deployment.create(tmp_path, *init_options, name=name))
        return made[-1]

    yield make
    for deployment in made:
        deployment.close()


@pytest.fixture
def deployment(new_deployment: Callable[..., Deployment]) -> Deployment:
    """An installation of the test's own, not started."""
    return new_deployment()


@pytest.fixture(scope="module")
def shared_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A running daemon for the tests of one module that only ask it things."""
    deployment = Deployment.create(tmp_path_factory.mktemp("shared"))
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.close()


class _Count:
    """Counts outcomes by test, not by phase."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.failed: set[str] = set()
        self.skipped: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.skipped:
            self.skipped[report.nodeid] = _reason(report)
        elif report.when == "call":
            self.passed.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.skipped:
            self.skipped[report.nodeid] = _reason(report)

    @property
    def offences(self) -> dict[str, str]:
        """Skips that CI does not accept, by test."""
        if os.environ.get("CI", "").lower() not in {"1", "true", "yes"}:
            return {}
        return {
            node: reason
            for node, reason in self.skipped.items()
            if not any(allowed in reason for allowed in ALLOWED_SKIPS)
        }

    @property
    def line(self) -> str:
        failed = self.failed | set(self.offences)
        skipped = set(self.skipped) - failed
        return f"{len(self.passed - failed)} passed, {len(failed)} failed, {len(skipped)} skipped"


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    longrepr = report.longrepr
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


_count = _Count()


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    if _is_worker(config):
        # Workers ignore interrupts, and so would every program that a test starts and interrupts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    else:
        config.pluginmanager.register(_count, "greatseal-count")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _count.offences and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _count.offences:
        return
    terminalreporter.section("skips that CI does not accept", sep="=", red=True)
    for node, reason in sorted(_count.offences.items()):
        terminalreporter.write_line(f"{node}: {reason}")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    if config.option.collectonly or config.option.help or _is_worker(config):
        return
    result = config.rootpath / "build" / "test-result"
    result.parent.mkdir(exist_ok=True)
    result.write_text(_count.line + "\n")
    print(_count.line, flush=True)
