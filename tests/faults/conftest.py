"""The sites of the fault tests: everything they start ends with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fault_site import FaultSite


@pytest.fixture
def new_site(tmp_path: Path) -> Iterator[Callable[..., FaultSite]]:
    """A function that makes an installation with its tokens behind shims; not started."""
    made: list[FaultSite] = []

    def make(**options: Any) -> FaultSite:
        directory = tmp_path / f"site{len(made)}"
        directory.mkdir()
        made.append(FaultSite(directory, **options))
        return made[-1]

    yield make
    for site in made:
        site.close()


@pytest.fixture
def site(new_site: Callable[..., FaultSite]) -> FaultSite:
    """One installation with one token."""
    return new_site()


@pytest.fixture
def two_tokens(new_site: Callable[..., FaultSite]) -> FaultSite:
    """One installation with two tokens, whose hosts give up on an operation after two seconds."""
    return new_site(two_tokens=True, operation_timeout=2)
