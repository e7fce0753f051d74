"""What is told to the service manager, and that nothing happens without one."""

from __future__ import annotations

import socket

import pytest

from greatseald.adapters import service_manager


def test_assignments_arrive_in_one_datagram_and_cannot_bring_others(tmp_path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert service_manager.notify("READY=1", "STATUS=token soft: bad\nMAINPID=1")
        assert manager.recv(4096) == b"READY=1\nSTATUS=token soft: bad MAINPID=1"
        service_manager.reloading()
        first, second = manager.recv(4096).decode().split("\n")
        assert first == "RELOADING=1"
        assert second.removeprefix("MONOTONIC_USEC=").isdecimal()


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/notify"])
def test_without_a_service_manager_nothing_happens(address, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not service_manager.notify("READY=1")
