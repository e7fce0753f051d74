"""The process behind a test's YubiKeys: a private pcscd, and cards that are TCP clients of its readers.

It runs in mount, network and process namespaces of its own (`unshare -mnp`), because pcscd's socket has one
path on a machine and vsmartcard's readers listen on every address. The directory that holds the
socket is bind-mounted over /run/pcscd, so that programs outside reach this pcscd through
PCSCLITE_CSOCK_NAME. Commands come as JSON lines over the AF_UNIX socket `control`, and end with it; when this
process ends, however it does, the kernel ends pcscd.

    unshare -mnp --fork --mount-proc python yubikey_rig.py DIR '[{"serial": 1, "version": [5, 7, 1]}, ...]'
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from smartcard import scard
from virtual_yubikey import ATR, Issuer, VirtualYubiKey

DRIVER = Path("/usr/lib/pcsc/drivers/serial/libifdvpcd.so")
FIRST_PORT = 0x8C7B
HAND_SECONDS = 1.2
NAME = "Yubico YubiKey OTP+FIDO+CCID"
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def private_machine(run: Path) -> None:
    """Bring the loopback of our namespace up and put `run` where pcscd keeps its socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", _IFF_UP))
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, target: str, kind: str | None, flags: int) -> None:
        if libc.mount(source.encode(), target.encode(), kind.encode() if kind else None, flags, None):
            raise OSError(ctypes.get_errno(), f"mount {target}")

    mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    # Over all of /run, where root of a container may lack pcscd's directory.
    held = os.open(run, os.O_PATH)
    mount("tmpfs", "/run", "tmpfs", 0)
    Path("/run/pcscd").mkdir()
    mount(f"/proc/self/fd/{held}", "/run/pcscd", None, _MS_BIND)
    os.close(held)


class Reader(threading.Thread):
    """A card in its reader, while it is in it."""

    def __init__(self, card: VirtualYubiKey, port: int) -> None:
        super().__init__(daemon=True)
        self.card, self.port = card, port
        self._inserted = threading.Event()
        self._left_at = 0.0
        self._socket: socket.socket | None = None

    @property
    def in_pcscd(self) -> str:
        """What pcscd calls its reader: two slots for each entry of its configuration."""
        entry, slot = divmod(self.port - FIRST_PORT, 2)
        return f"{NAME} {entry} 00 {slot:02d}"

    @property
    def is_inserted(self) -> bool:
        return self._inserted.is_set()

    def insert(self) -> None:
        # pcscd asks every 0.4 s whether a card is there. One that comes back sooner, as no hand could bring it,
        # is taken for the one that left, and never gets power.
        time.sleep(max(0.0, self._left_at + HAND_SECONDS - time.monotonic()))
        self.card.power()
        self._inserted.set()

    def eject(self) -> None:
        self._leave()
        self.card.pull()
        sock = self._socket
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _leave(self) -> None:
        self._left_at = time.monotonic()
        self._inserted.clear()

    def run(self) -> None:
        while True:
            self._inserted.wait()
            try:
                with socket.create_connection(("127.0.0.1", self.port)) as self._socket:
                    self._serve(self._socket)
            except OSError:
                time.sleep(0.02)

    def _serve(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = sock.makefile("rb")
        while self._inserted.is_set():
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            head = stream.read(2)
            if len(head) < 2:
                return
            body = stream.read(struct.unpack(">H", head)[0])
            if len(body) == 1:
                if body[0] in (0, 1, 2):
                    self.card.power()
                elif body[0] == 4:
                    sock.sendall(struct.pack(">H", len(ATR)) + ATR)
                continue
            response = self.card.answer(body)
            if response is None:
                self._leave()
                return
            sock.sendall(struct.pack(">H", len(response)) + response)


class Rig:
    def __init__(self, directory: Path, cards: list[dict[str, object]]) -> None:
        self.directory = directory
        self.issuer = Issuer.make()
        (directory / "root.pem").write_bytes(self.issuer.certificate.public_bytes(Encoding.PEM))
        self.readers: dict[str, Reader] = {}
        self.pcscd: subprocess.Popen[bytes] | None = None
        readers = directory / "readers"
        readers.mkdir()
        for number in range(0, len(cards), 2):
            # The driver keeps its sockets in globals: each entry loads a copy of its own.
            library = directory / f"libifdvpcd-{number}.so"
            shutil.copy(DRIVER, library)
            port = FIRST_PORT + number
            (readers / f"reader-{number}").write_text(
                f'FRIENDLYNAME "{NAME} {number // 2}"\nDEVICENAME /dev/null:0x{port:X}\n'
                f"LIBPATH {library}\nCHANNELID 0x{port:X}\n"
            )
        for number, each in enumerate(cards):
            card = VirtualYubiKey(int(each["serial"]), self.issuer, tuple(each.get("version", (5, 7, 1))))  # type: ignore[call-overload, arg-type]
            reader = self.readers[str(card.serial)] = Reader(card, FIRST_PORT + number)
            reader.start()
            if each.get("inserted", True):
                reader.insert()

    def start(self) -> None:
        self.pcscd = subprocess.Popen(
            ["/usr/sbin/pcscd", "-f", "-e", "-c", str(self.directory / "readers")],
            stdout=(self.directory / "pcscd.log").open("ab"),
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 10
        while not (self.directory / "run" / "pcscd.comm").exists():
            if time.monotonic() > deadline or self.pcscd.poll() is not None:
                raise RuntimeError("pcscd did not start: " + (self.directory / "pcscd.log").read_text())
            time.sleep(0.01)
        self._await_cards()

    def _await_cards(self) -> None:
        """Return once pcscd has seen every card that is in its reader."""
        names = [reader.in_pcscd for reader in self.readers.values() if reader.is_inserted]
        if not names:
            return
        deadline = time.monotonic() + 10
        _, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_USER)
        while True:
            _, known = scard.SCardListReaders(context, [])
            states = []
            if set(names) <= set(known):
                _, states = scard.SCardGetStatusChange(
                    context, 0, [(name, scard.SCARD_STATE_UNAWARE) for name in names]
                )
            if states and all(state & scard.SCARD_STATE_PRESENT for _, state, _ in states):
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"pcscd sees {states}: " + (self.directory / "pcscd.log").read_text())
            time.sleep(0.02)
        scard.SCardReleaseContext(context)

    def stop(self) -> None:
        if self.pcscd is not None:
            self.pcscd.send_signal(signal.SIGTERM)
            try:
                self.pcscd.wait(5)
            except subprocess.TimeoutExpired:
                self.pcscd.kill()
                self.pcscd.wait()
        for path in (self.directory / "run").iterdir():
            path.unlink()

    def renew(self) -> None:
        """Every device as it came from the factory, in its reader, and pcscd running."""
        for reader in self.readers.values():
            reader.card.renew()
            if not reader.is_inserted:
                reader.insert()
        if self.pcscd is None or self.pcscd.poll() is not None:
            self.start()
        self._await_cards()

    def do(self, command: dict[str, object]) -> dict[str, object]:
        what = command.pop("do")
        if what == "stop-pcscd":
            self.stop()
        elif what == "start-pcscd":
            self.start()
        elif what == "renew":
            self.renew()
        else:
            reader = self.readers[str(command.pop("serial"))]
            card = reader.card
            if what == "insert":
                reader.insert()
            elif what == "eject":
                reader.eject()
            elif what == "generate":
                return {"spki": card.generate(**command).hex()}  # type: ignore[arg-type]
            elif what == "share":  # a key that was made elsewhere and imported into several devices
                for serial in command["serials"]:  # type: ignore[attr-defined]
                    self.readers[str(serial)].card.keys[command["slot"]] = replace(card.keys[command["slot"]])  # type: ignore[index]
            elif what == "switch":
                card.switches.set(command)
            elif what == "set":  # the state of a device that somebody has used
                for name, value in command.items():
                    setattr(card, name, bytes.fromhex(value) if isinstance(value, str) else value)
            return {
                "signatures": card.signatures,
                "verifications": card.verifications,
                "waiting": card.waiting,
                "tries": card.tries,
            }
        return {}


def main() -> None:
    directory = Path(sys.argv[1])
    (directory / "run").mkdir()
    private_machine(directory / "run")
    rig = Rig(directory, json.loads(sys.argv[2]))
    rig.start()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "control"))
        listener.listen(1)
        sock, _ = listener.accept()
    with sock, sock.makefile("rwb") as stream:
        for line in stream:
            try:
                answer: dict[str, object] = {"ok": rig.do(json.loads(line))}
            except Exception as error:  # noqa: BLE001 - the test hears of it
                answer = {"error": repr(error)}
            stream.write(json.dumps(answer).encode() + b"\n")
            stream.flush()
    if rig.pcscd is not None:  # it takes a second to stop by itself, and nobody is left to notice
        rig.pcscd.kill()


if __name__ == "__main__":
    main()
