"""The bare token: python-pkcs11 in a process of its own, OS locking on, no daemon, no log, no network.

    bare_token.py MODULE TOKEN_LABEL PIN_FILE

Commands: sign{key, algorithm, digest_size, threads, seconds, verify} → {count, seconds}
          time{key, algorithm, digest_size, count, pause} → {sign_ms: p50, verify_ms: p50} one pair after the other,
          `pause` seconds apart: a core that has slept meanwhile signs at half its speed
Signatures are checked after the window (or within it, where `verify` asks for it).
"""

from __future__ import annotations

import ctypes
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pkcs11
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import _pkcs11
from pkcs11.util.ec import encode_ec_public_key
from workers import serve

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from log_oracle import verify_signature

SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")


class _InitializeArgs(ctypes.Structure):
    _fields_ = (("mutexes", ctypes.c_void_p * 4), ("flags", ctypes.c_ulong), ("reserved", ctypes.c_void_p))


class LockingLibrary(_pkcs11.lib):  # type: ignore[misc]
    """C_Initialize with CKF_OS_LOCKING_OK: without it two threads corrupt the module."""

    def initialize(self) -> None:
        function = ctypes.CDLL(self.so).C_Initialize
        function.restype = ctypes.c_ulong
        if result := function(ctypes.byref(_InitializeArgs(flags=2))):
            raise RuntimeError(f"C_Initialize: {result:#x}")


class Bare:
    """One logged-in session, and one more for each thread beyond the first."""

    def __init__(self, module: str, label: str, pin_file: str) -> None:
        self._token = LockingLibrary(module).get_token(token_label=label)
        self._sessions = [self._token.open(user_pin=Path(pin_file).read_text().strip())]

    def _keys(self, label: str, threads: int) -> list[Any]:
        while len(self._sessions) < threads:
            self._sessions.append(self._token.open())
        return [session.get_key(pkcs11.ObjectClass.PRIVATE_KEY, label=label) for session in self._sessions[:threads]]

    def _public(self, label: str) -> Any:
        key = self._sessions[0].get_key(pkcs11.ObjectClass.PUBLIC_KEY, label=label)
        if key.key_type == pkcs11.KeyType.EC:
            return load_der_public_key(encode_ec_public_key(key))
        modulus = int.from_bytes(key[pkcs11.Attribute.MODULUS], "big")
        return RSAPublicNumbers(int.from_bytes(key[pkcs11.Attribute.PUBLIC_EXPONENT], "big"), modulus).public_key()

    def sign(
        self, key: str, algorithm: str, digest_size: int, threads: int, seconds: float, verify: bool
    ) -> dict[str, float]:
        public, made = self._public(key), [[] for _ in range(threads)]  # type: list[list[tuple[bytes, bytes]]]
        gate, stop = threading.Barrier(threads + 1), threading.Event()
        failed: list[BaseException] = []

        def work(handle: Any, results: list[tuple[bytes, bytes]]) -> None:
            try:
                gate.wait()
                while not stop.is_set():
                    block = os.urandom(digest_size * 16)
                    for start in range(0, len(block), digest_size):
                        digest = block[start : start + digest_size]
                        signature = self._one(handle, algorithm, digest)
                        if verify:
                            self._verify(public, algorithm, digest, signature)
                        results.append((digest, signature))
                        if stop.is_set():
                            break
            except BaseException as error:  # noqa: BLE001 -- handed to the main thread
                failed.append(error)

        workers = [
            threading.Thread(target=work, args=arguments)
            for arguments in zip(self._keys(key, threads), made, strict=True)
        ]
        for worker in workers:
            worker.start()
        gate.wait()
        cpu, begun = time.process_time(), time.perf_counter()
        time.sleep(seconds)
        stop.set()
        for worker in workers:
            worker.join()
        elapsed, cpu = time.perf_counter() - begun, time.process_time() - cpu
        if failed:
            raise failed[0]
        if not verify:
            for results in made:
                for digest, signature in results[:: max(1, len(results) // 200)]:
                    self._verify(public, algorithm, digest, signature)
        return {"count": sum(map(len, made)), "seconds": elapsed, "cpu": cpu}

    def time(self, key: str, algorithm: str, digest_size: int, count: int, pause: float) -> dict[str, float]:
        public, (handle,) = self._public(key), self._keys(key, 1)
        signing, verifying = [], []
        for _ in range(count):
            digest = os.urandom(digest_size)
            begun = time.perf_counter()
            signature = self._one(handle, algorithm, digest)
            signed = time.perf_counter()
            self._verify(public, algorithm, digest, signature)
            signing.append(signed - begun)
            verifying.append(time.perf_counter() - signed)
            if pause:
                time.sleep(pause)
        return {"sign_ms": 1e3 * statistics.median(signing), "verify_ms": 1e3 * statistics.median(verifying)}

    @staticmethod
    def _one(handle: Any, algorithm: str, digest: bytes) -> bytes:
        if algorithm.startswith("ecdsa"):
            return bytes(handle.sign(digest, mechanism=pkcs11.Mechanism.ECDSA))
        if algorithm == "rsa-pkcs1-sha256":
            return bytes(handle.sign(SHA256_INFO + digest, mechanism=pkcs11.Mechanism.RSA_PKCS))
        raise ValueError(algorithm)

    @staticmethod
    def _verify(public: Any, algorithm: str, digest: bytes, signature: bytes) -> None:
        if algorithm.startswith("ecdsa"):  # a token gives r and s; DER is not what the bare side is timed for
            half = len(signature) // 2
            r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
            signature = encode_dss_signature(r, s)
        verify_signature(public, algorithm, digest, signature)


def main() -> None:
    bare = Bare(*sys.argv[1:4])
    serve(lambda command, arguments: getattr(bare, {"sign": "sign", "time": "time"}[command])(**arguments))


if __name__ == "__main__":
    main()
