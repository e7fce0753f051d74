"""One pcscd for each module, with YubiKeys that are as new in each test; nothing is left when it has ended."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from yubikey_site import YubiKeySite
from yubikeys import YubiKeyRig


@pytest.fixture(scope="module")
def module_rig() -> Iterator[YubiKeyRig]:
    with YubiKeyRig([{"serial": 11111111}, {"serial": 22222222}, {"serial": 33333333, "version": [5, 2, 7]}]) as rig:
        yield rig


@pytest.fixture
def rig(module_rig: YubiKeyRig) -> YubiKeyRig:
    module_rig.renew()
    return module_rig


@pytest.fixture
def site(rig: YubiKeyRig, tmp_path: Path) -> YubiKeySite:
    return YubiKeySite(rig, 11111111, tmp_path)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
