"""What the disk, an administrator of the database or a second daemon can do: the log is never bent."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from deployment import Deployment, DeploymentError
from fault_history import Auditor, Load
from fault_site import FaultSite, RefusedError

pytestmark = [pytest.mark.shim, pytest.mark.softhsm]


@contextmanager
def failing(site: FaultSite, tmp_path: Path, calls: str, how: str, *paths: Path) -> Iterator[None]:
    """These system calls of the daemon fail on these files while the block runs."""
    command = ["strace", "-f", "-o", str(tmp_path / "strace"), "-e", f"trace={calls}"]
    for path in paths:
        command += ["-P", str(path)]
    command += ["-e", f"inject={calls}:{how}", "-p", str(site.daemon_pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert tracer.stderr is not None
    assert b"attached" in tracer.stderr.readline()
    try:
        yield
    finally:
        tracer.terminate()
        tracer.wait(20)
        tracer.stderr.close()


@pytest.mark.parametrize("how", ["error=EIO", "error=EIO:when=1", "error=ENOSPC"])
def test_a_failed_sync_ends_the_daemon_and_releases_nothing_more(how: str, site: FaultSite, tmp_path: Path) -> None:
    """Also when only one sync fails: SQLite would report success from the next commit on."""
    load, auditor = Load(site, random.Random(3)), Auditor(site)
    site.deployment.start()
    before = 0

    async def scene() -> int:
        nonlocal before
        until = asyncio.Event()
        callers = asyncio.create_task(load.run(until))
        await asyncio.sleep(0.4)
        data = site.deployment.database
        with failing(site, tmp_path, "fsync,fdatasync", how, data, data.with_name(data.name + "-wal")):
            before = load.acknowledged
            code = await asyncio.to_thread(site.deployment.wait_exit, 30)
        until.set()
        await callers
        return code

    code = asyncio.run(scene())
    assert code not in {0, None}
    assert code > 0, f"it should end by itself with an exit code, not by signal {-code}"
    assert "log" in site.deployment.stderr
    site.deployment.start()
    with site.wire() as wire:
        load.ask_again(wire, 40)
        auditor.read(wire)
    auditor.check_all_closed()
    auditor.compare(load, site.soft)
    assert before > 0


def test_an_anchor_that_cannot_be_written_is_an_alarm_and_signing_goes_on(site: FaultSite, tmp_path: Path) -> None:
    site.deployment.start()
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
        anchor = site.directory / "anchor" / "released"
        with failing(site, tmp_path, "fsync,fdatasync,pwrite64", "error=EIO", anchor):
            for _ in range(3):
                wire.sign("scratch")
        wire.sign("scratch")
    assert "anchor_unreachable" in site.deployment.stderr
    assert site.metric(r"anchor.* [1-9]"), "no metric tells of it"
    assert site.deployment.stop() == 0
    site.deployment.start()
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")


def refused_start(site: FaultSite, *words: str) -> str:
    """Start the daemon, which must end by itself before it is ready, saying each of `words`; returns what it said."""
    site.deployment.start(wait=False)
    code = site.deployment.wait_exit(30)
    said = site.deployment.stderr
    assert code > 0, f"exit code {code}: {said}"
    assert "ready: listening" not in said
    for word in words:
        assert word in said, f"{word!r} is not in:\n{said}"
    assert "Traceback" not in said, said
    return said


def signed_some(site: FaultSite, count: int = 20) -> None:
    site.deployment.start()
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
        wire.batch("scratch", [os.urandom(32) for _ in range(count)])
    assert site.deployment.stop() == 0


def test_an_older_copy_of_the_database_is_refused_by_the_anchor(site: FaultSite, tmp_path: Path) -> None:
    signed_some(site)
    kept = tmp_path / "kept"
    shutil.copytree(site.directory / "data", kept)
    signed_some(site)
    newest = tmp_path / "newest"
    shutil.copytree(site.directory / "data", newest)
    shutil.rmtree(site.directory / "data")
    shutil.copytree(kept, site.directory / "data")
    refused_start(site, "anchor", str(site.directory / "anchor" / "released"), "older copy")
    shutil.rmtree(site.directory / "data")
    shutil.copytree(newest, site.directory / "data")
    signed_some(site)


def edit_database(site: FaultSite, *statements: str) -> int:
    """Edit the stopped daemon's database as its administrator might; returns how many rows changed."""
    with closing(sqlite3.connect(site.deployment.database)) as database:
        changed = 0
        for statement in statements:
            changed += database.execute(statement).rowcount
        database.commit()
    return changed


NEWEST = "WHERE size = (SELECT max(size) FROM commits)"


@pytest.mark.parametrize(
    "edit",
    [
        f"UPDATE commits SET size = size + 1 {NEWEST}",
        f"UPDATE commits SET root = randomblob(32) {NEWEST}",
        f"UPDATE commits SET mac = randomblob(32) {NEWEST}",
        f"UPDATE commits SET frontier = randomblob(length(frontier)) {NEWEST}",
        "DELETE FROM commits WHERE size > (SELECT max(size) FROM commits) - 20",
        "DELETE FROM commits WHERE size = (SELECT max(size) FROM commits)",
    ],
    ids=["size", "root", "mac", "frontier", "tail cut", "last entry cut"],
)
def test_an_edited_head_is_refused(edit: str, site: FaultSite) -> None:
    signed_some(site)
    assert edit_database(site, edit) >= 1
    refused_start(site, "log")


def test_an_edited_entry_is_named_by_the_verifier(site: FaultSite) -> None:
    """One byte of an old entry: the head still fits, so the daemon may serve, but nobody can miss it."""
    signed_some(site)
    with closing(sqlite3.connect(site.deployment.database)) as database:
        size, blob = database.execute("SELECT size, entries FROM commits ORDER BY size LIMIT 1 OFFSET 2").fetchone()
        at = blob.rindex(b"T")
        database.execute("UPDATE commits SET entries = ? WHERE size = ?", (blob[:at] + b"t" + blob[at + 1 :], size))
        database.commit()
    site.deployment.start(wait=False)
    try:
        site.deployment.wait_ready()
    except DeploymentError as error:
        assert "log" in str(error)  # noqa: PT017 -- refusing to start is as good
        return
    verified = site.deployment.client("audit", "verify")
    assert verified.returncode == 6, verified.stdout + verified.stderr
    assert str(size - 1) in verified.stdout + verified.stderr


def test_a_newer_schema_is_refused(site: FaultSite) -> None:
    signed_some(site)
    edit_database(site, "PRAGMA user_version = 4711")
    refused_start(site, "4711", "newer")


def test_a_corrupt_database_is_refused(site: FaultSite) -> None:
    signed_some(site, 300)
    with site.deployment.database.open("r+b") as file:
        file.seek(100)
        file.write(os.urandom(3 * 4096))
    refused_start(site, str(site.deployment.database))


def test_a_database_that_is_none_is_refused_and_left_alone(site: FaultSite) -> None:
    signed_some(site)
    for leftover in site.deployment.database.parent.glob("log.db-*"):
        leftover.unlink()
    site.deployment.database.write_bytes(b"this is no database\n" * 400)
    refused_start(site, str(site.deployment.database))
    assert site.deployment.database.read_bytes() == b"this is no database\n" * 400


def test_a_second_daemon_is_refused_and_the_first_goes_on(site: FaultSite) -> None:
    site.deployment.start()
    second = Deployment(site.directory)
    second.stderr_file = site.directory.with_name("second.stderr")
    address = (site.directory / "run" / "address").read_text()
    second.start(wait=False)
    try:
        assert second.wait_exit(30) > 0
    finally:
        second.close()
    assert "Traceback" not in second.stderr
    assert "another" in second.stderr
    assert (site.directory / "run" / "address").read_text() == address, "the first one's address file was touched"
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")


def test_an_unwritable_data_directory_is_refused_with_its_name(site: FaultSite) -> None:
    """A directory in which root itself can make no file: one that is not there."""
    site.deployment.edit(r"^url = .*$", f'url = "sqlite://{site.directory}/no-such-directory/log.db"')
    refused_start(site, "no-such-directory")


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A volume of 24 MiB of the test's own."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small volume needs root")
    path = tmp_path / "volume"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.root
def test_low_disk_refuses_new_work_and_recovers(new_site: Callable[..., FaultSite], small_volume: Path) -> None:
    site = new_site()
    site.deployment.edit(r"^url = .*$", f'url = "sqlite://{small_volume}/log.db"')
    site.deployment.start()
    with site.wire() as wire:
        wire.sign_until_it_works("scratch")
        acknowledged = wire.sign("scratch")
        filler = small_volume / "filler"
        free = os.statvfs(small_volume).f_bavail * os.statvfs(small_volume).f_frsize
        filler.write_bytes(b"x" * (free - 2 * 1024 * 1024))  # under the reserve of 4 MiB
        deadline = time.monotonic() + 20
        while True:
            try:
                wire.sign("scratch")
                assert time.monotonic() < deadline, "it went on signing below the reserve"
                time.sleep(0.1)
            except RefusedError as refused:
                told = refused
                break
        assert (told.code, told.reason) == ("UNAVAILABLE", "DISK_RESERVE_REACHED"), told
        assert wire.entries(0), "reading goes on"
        assert wire.checkpoint().size > acknowledged.receipt.outcome_index
        filler.unlink()
        wire.sign_until_it_works("scratch", 30)
    auditor = Auditor(site)
    with site.wire() as wire:
        auditor.read(wire)
    auditor.check_all_closed()
    assert site.deployment.stop() == 0


@pytest.mark.root
def test_a_full_disk_ends_the_daemon_or_refuses_and_loses_nothing(
    new_site: Callable[..., FaultSite], small_volume: Path
) -> None:
    """Something else fills the volume at once, reserve and all, while signatures are being made."""
    site = new_site()
    site.deployment.edit(r"^url = .*$", f'url = "sqlite://{small_volume}/log.db"')
    site.deployment.start()
    load, auditor = Load(site, random.Random(5), extra_expected=frozenset({"DISK_RESERVE_REACHED"})), Auditor(site)
    filler = small_volume / "filler"

    async def scene() -> None:
        until = asyncio.Event()
        callers = asyncio.create_task(load.run(until))
        await asyncio.sleep(0.4)
        try:
            with filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 65536)
        except OSError:
            pass
        await asyncio.sleep(1)
        until.set()
        await callers

    asyncio.run(scene())
    assert site.deployment.process is not None
    code = site.deployment.process.poll()
    assert code is None or code > 0
    filler.unlink()
    if code is None:
        with site.wire() as wire:
            wire.sign_until_it_works("scratch", 40)
        assert site.deployment.stop() == 0
    site.deployment.start()
    with site.wire() as wire:
        load.ask_again(wire, 30)
        auditor.read(wire)
    auditor.check_all_closed()
    auditor.compare(load, site.soft)


def test_an_unreachable_anchor_at_start_is_an_error_that_names_it(site: FaultSite) -> None:
    signed_some(site)
    anchor = site.directory / "anchor" / "released"
    anchor.unlink()
    anchor.mkdir()
    with pytest.raises(DeploymentError, match="anchor"):
        site.deployment.start()
