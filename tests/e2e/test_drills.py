"""The drills of docs/user-guide/operating.md, carried out as they are written there."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Self

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from deployment import Deployment
from front_site import connected, pipeline, sign, wait_for

pytestmark = [pytest.mark.softhsm, pytest.mark.slow]
DIGEST = "cd" * 32


def receipt_of(deployment: Deployment, path: Path) -> Path:
    done = deployment.client(
        "sign",
        "digest",
        "--sha256",
        DIGEST,
        "--key",
        "scratch",
        "--receipt",
        path,
        "--output",
        path.with_suffix(".sig"),
    )
    assert done.returncode == 0, done.stderr
    return path


def moved(deployment: Deployment, directory: Path) -> Deployment:
    """The installation on another machine: everything but the log's store."""
    shutil.copytree(deployment.directory, directory, ignore=shutil.ignore_patterns("data", "address", "*_address"))
    (directory / "data").mkdir(mode=0o700)
    for file in (directory / "greatseald.toml", directory / "tokens/soft/softhsm2.conf"):
        file.write_text(file.read_text().replace(str(deployment.directory), str(directory)))
    return Deployment(directory)


def entry_count(deployment: Deployment, copy: Path) -> int:
    done = deployment.daemon("backup", copy, "--json")
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["log_size"])


class Load:
    """Four callers that sign without a pause until they are told to stop."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.signed = 0
        self.failed: list[str] = []
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self.work) for _ in range(4)]

    def work(self) -> None:
        with connected(self.deployment, pipeline(self.deployment)) as channel:
            while not self.stopped.is_set():
                try:
                    sign(channel)
                except grpc.RpcError as error:
                    self.failed.append(str(error.details()))
                self.signed += 1

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()


def test_backup_under_load_restore_elsewhere_and_the_older_copy_is_refused(tmp_path: Path):
    first = Deployment.create(tmp_path)
    old, newest = tmp_path / "old.db", tmp_path / "newest.db"
    with first.running():
        early = receipt_of(first, tmp_path / "early.receipt")
        with Load(first) as load:
            wait_for(lambda: load.signed > 50)
            size = entry_count(first, old)
            there = load.signed
            wait_for(lambda: load.signed > there + 50)
        assert load.failed == []
        assert size > 100
        late = receipt_of(first, tmp_path / "late.receipt")
        assert first.stop() == 0
    assert entry_count(first, newest) > size

    second = moved(first, tmp_path / "elsewhere")
    assert second.daemon("restore", old).returncode == 0
    second.start(wait=False)
    assert second.wait_exit() == 6
    said = second.stderr.splitlines()[0]
    assert "Restore the newest copy" in said
    assert str(second.directory / "anchor") in said

    done = second.daemon("restore", newest, "--replace")
    assert done.returncode == 0, done.stderr
    with second.running():
        done = second.client("audit", "verify", "--receipt", early, "--receipt", late)
        assert done.returncode == 0, done.stderr
        again = receipt_of(second, tmp_path / "again.receipt")
    for receipt in (early, late, again):
        done = second.client("receipt", "verify", receipt, "--digest", DIGEST)
        assert done.returncode == 0, done.stderr


def test_the_key_of_the_log_and_that_of_its_head_are_not_exchanged_under_a_log(tmp_path: Path):
    site = Deployment.create(tmp_path)
    with site.running():
        receipt_of(site, tmp_path / "one.receipt")
    mac = site.directory / "log/head-mac.key"
    kept = mac.read_bytes()
    mac.write_text("ab" * 32 + "\n")
    site.start(wait=False)
    assert site.wait_exit() == 6
    assert "head_mac_key_file" in site.stderr.splitlines()[0]
    mac.write_bytes(kept)

    key = site.directory / "log/log.key"
    kept = key.read_bytes()
    other = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key.write_bytes(other)
    with site.running():
        done = site.client("audit", "verify")
        assert done.returncode == 6, "whoever holds the old verifier key notices"
    key.write_bytes(kept)
    with site.running():
        done = site.client("audit", "verify", "--receipt", tmp_path / "one.receipt")
        assert done.returncode == 0, done.stderr


def test_a_client_that_is_added_signs_after_the_reload_and_no_other_call_fails(tmp_path: Path):
    site = Deployment.create(tmp_path)
    with site.running():
        profile = site.add_client("next", "--actions", "signBlind", "--keys", "scratch")
        with Load(site) as load:
            assert site.daemon("reload").returncode == 0
            until = time.monotonic() + 2
            while time.monotonic() < until:
                done = site.client("sign", "digest", "--sha256", DIGEST, "--key", "scratch", profile=profile)
                assert done.returncode == 0, done.stderr
        assert load.failed == []
