"""pool: ten YubiKeys that hold one key, against one of them, each slowed to a real device's ten signatures a second.

Both sides sign batches through the whole daemon; only the key differs, and with it how many devices may work.
"""

from __future__ import annotations

import sys
from pathlib import Path

from result import Result
from workers import Worker

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "yubikey"))

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from yubikey_pool import YubiKeyPool
from yubikeys import YubiKeyRig

DEVICES = 10
SIGN_SECONDS = 0.1
AIM = 9.0


def pool(directory: Path, rounds: int, seconds: float) -> Result:
    result = Result("pool", "signatures/s", "the same batches on one of the ten YubiKeys, 0.1 s a signature", AIM)
    serials = [10_000_000 + number for number in range(DEVICES)]
    with YubiKeyRig([{"serial": serial} for serial in serials]) as rig:
        site = YubiKeyPool(rig, directory, serials, sign_seconds=SIGN_SECONDS)
        worker: Worker | None = None
        try:
            site.deployment.start()
            worker = Worker("load_client.py", str(site.directory / "pki"), str(site.deployment.log_vkey))
            pem = site.public["pool"].public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
            task = {
                "address": site.deployment.address,
                "pem": pem,
                "algorithm": "ecdsa-p256-sha256",
                "digest_size": 32,
                "callers": 2,
            }
            for key in ("single", "pool"):  # each device is measured once before anything counts
                worker.ask("batch", **task, key=f"keys/{key}", size=DEVICES * 2, seconds=0.1)
            for _ in range(rounds):
                rates = {}
                for key, size in (("pool", 100), ("single", 10)):
                    got = worker.ask("batch", **task, key=f"keys/{key}", size=size, seconds=seconds)
                    rates[key] = got["count"] / got["seconds"]
                    result.checked += got["checked"]
                result.note(rates["pool"], rates["single"])
        finally:
            if worker is not None:
                worker.close()
            site.close()
    return result
