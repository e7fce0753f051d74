"""A bare PKCS#11 client in a process of its own: what the shim does to it, the tests look at.

python shim_probe.py MODULE LABEL PIN KEY DIGEST...     one JSON line: {"signatures": [hex...]} or {"error": name}
"""

from __future__ import annotations

import ctypes
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pkcs11
from pkcs11 import _pkcs11


class _InitializeArgs(ctypes.Structure):
    _fields_ = (
        ("mutexes", ctypes.c_void_p * 4),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    )


class LockingLibrary(_pkcs11.lib):  # type: ignore[misc]
    """python-pkcs11's library, initialised with CKF_OS_LOCKING_OK, without which threads corrupt the module."""

    def initialize(self) -> None:
        function = ctypes.CDLL(self.so).C_Initialize
        function.restype = ctypes.c_ulong
        arguments = _InitializeArgs(flags=2)
        result = function(ctypes.byref(arguments))
        if result:
            raise RuntimeError(f"C_Initialize: {result:#x}")


def main(module: str, label: str, pin: str, key_label: str, digests: list[str], threads: int = 1) -> dict[str, object]:
    try:
        token = LockingLibrary(module).get_token(token_label=label)
        first = token.open(user_pin=pin)
        sessions = [first, *(token.open() for _ in range(threads - 1))]

        def sign(arguments: tuple[pkcs11.Session, list[str]]) -> list[str]:
            session, mine = arguments
            key = session.get_key(pkcs11.ObjectClass.PRIVATE_KEY, label=key_label)
            return [key.sign(bytes.fromhex(digest), mechanism=pkcs11.Mechanism.ECDSA).hex() for digest in mine]

        with ThreadPoolExecutor(threads) as pool:
            shares = [(session, digests[number::threads]) for number, session in enumerate(sessions)]
            return {"signatures": [signature for share in pool.map(sign, shares) for signature in share]}
    except (pkcs11.PKCS11Error, RuntimeError) as error:
        return {"error": type(error).__name__, "text": str(error)}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:5], sys.argv[6:], int(sys.argv[5]))))
