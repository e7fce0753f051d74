"""YubiKeys for a test: virtual devices in a real pcscd, reached by whatever has `rig.environment`.

with YubiKeyRig(tmp_path, [{"serial": 11111111}, {"serial": 22222222, "version": [5, 2, 7]}]) as rig:
    rig.eject(11111111)
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

_HERE = Path(__file__).parent


def require_namespaces() -> None:
    """Fail, with what is missing, where this machine cannot run a pcscd of its own; never pass quietly."""
    tried = subprocess.run(
        ["unshare", *_user_namespace(), "-mn", "mount", "-t", "tmpfs", "none", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        pytest.fail(
            "the YubiKey tests need mount and network namespaces (root with CAP_SYS_ADMIN, or unprivileged user "
            f"namespaces), and this machine refuses them: {tried.stderr.strip()}"
        )


def _user_namespace() -> list[str]:
    return [] if os.geteuid() == 0 else ["-Ur"]


class YubiKeyRig:
    """A pcscd with these cards: each a `serial`, a firmware `version`, and whether it is `inserted`."""

    def __init__(self, cards: list[dict[str, Any]]) -> None:
        require_namespaces()
        self.directory = Path(tempfile.mkdtemp(prefix="yk-"))  # short: two socket paths lie in it
        self.directory.chmod(0o711)
        self.environment = {"PCSCLITE_CSOCK_NAME": str(self.directory / "run" / "pcscd.comm")}
        self.roots = self.directory / "root.pem"
        self._process = subprocess.Popen(
            ["unshare", *_user_namespace(), "-mnp", "--mount-proc", "--kill-child", "--fork", sys.executable, str(_HERE / "yubikey_rig.py"), str(self.directory), json.dumps(cards)],
            env={**os.environ, "PYTHONPATH": str(_HERE)},
            start_new_session=True,
        )  # fmt: skip
        try:
            self._control = self._connect()
        except BaseException:
            self._end()
            raise
        self._stream = self._control.makefile("rwb")

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + 20
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(self.directory / "control"))
            except OSError:
                sock.close()
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return sock

    def _do(self, what: str, **more: Any) -> dict[str, Any]:
        self._stream.write(json.dumps({"do": what, **more}).encode() + b"\n")
        self._stream.flush()
        answer = json.loads(self._stream.readline())
        assert "ok" in answer, answer
        result: dict[str, Any] = answer["ok"]
        return result

    def insert(self, serial: int) -> None:
        self._do("insert", serial=serial)

    def eject(self, serial: int) -> None:
        self._do("eject", serial=serial)

    def switch(self, serial: int, **switches: Any) -> None:
        self._do("switch", serial=serial, **switches)

    def set(self, serial: int, **state: Any) -> None:
        self._do("set", serial=serial, **state)

    def look(self, serial: int) -> dict[str, Any]:
        """How many `signatures` it made and PIN `verifications` it answered, the `tries` left, whether it is `waiting`."""
        return self._do("look", serial=serial)

    def generate(self, serial: int, slot: int, kind: str, pin_policy: str, touch_policy: str, **more: Any) -> bytes:
        """Have a key in the device already; returns its SubjectPublicKeyInfo."""
        policies = {"pin_policy": pin_policy, "touch_policy": touch_policy}
        return bytes.fromhex(self._do("generate", serial=serial, slot=slot, kind=kind, **policies, **more)["spki"])

    def share(self, serial: int, slot: int, serials: list[int]) -> None:
        """Have the key of one device in others too, as if it had been imported into all of them."""
        self._do("share", serial=serial, slot=slot, serials=serials)

    def renew(self) -> None:
        """Have every device as new, in its reader."""
        self._do("renew")

    def stop_pcscd(self) -> None:
        self._do("stop-pcscd")

    def start_pcscd(self) -> None:
        self._do("start-pcscd")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._control.close()
        self._end()

    def _end(self) -> None:
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
