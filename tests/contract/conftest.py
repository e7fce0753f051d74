"""The stores that the contract runs over, each empty and each test's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from greatseald.adapters.store.opening import open_store
from greatseald.ports.store import Store
from postgres_server import BINARIES, PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    if not (BINARIES / "postgres").exists():
        pytest.skip(f"PostgreSQL is not installed in {BINARIES}")
    with PostgresServer.start() as server:
        yield server


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/log.db"


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    return postgres.empty_database()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest) -> str:
    """A place for a log in each kind of store."""
    found = request.getfixturevalue(f"{request.param}_url")
    assert isinstance(found, str)
    return found


@pytest.fixture
def opened() -> Iterator[Callable[..., Store]]:
    """Opens stores and closes what the test leaves open."""
    stores: list[Store] = []

    def opening(url: str, boot: bytes | None = None) -> Store:
        stores.append(open_store(url, os.urandom(16) if boot is None else boot))
        return stores[-1]

    yield opening
    for store in stores:
        with suppress(Exception):
            store.close()


@pytest.fixture
def store(url: str, opened: Callable[..., Store]) -> Store:
    return opened(url, BOOT)


BOOT = bytes(range(16))
