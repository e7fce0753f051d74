"""Stores and processes: several writers, kill -9, failing disks. Each front is `tests/store_driver.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from greatseald.ports.store import Store, StoreUnusable
from store_driver import BROKEN, UNUSABLE
from store_writing import StoreWriter, check_log

DRIVER = Path(__file__).parents[1] / "store_driver.py"


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(DRIVER), *map(str, arguments)]


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts drivers and ends those that still run after the test."""
    running: list[subprocess.Popen[str]] = []

    def starting(*line: object) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        running.append(subprocess.Popen([str(word) for word in line], stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return running[-1]

    yield starting
    for process in running:
        process.kill()
        process.communicate()


def begin(*processes: subprocess.Popen[str]) -> None:
    """Let them all begin once all have opened their store."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def finished(process: subprocess.Popen[str], code: int = 0) -> tuple[list[str], str]:
    """Wait for its end and return what it said and what it complained of."""
    output, complaint = process.communicate("go\n", timeout=120)
    assert process.returncode == code, complaint
    return [line for line in output.splitlines() if line != "ready"], complaint


def acked(lines: list[str]) -> int:
    """The log's size at the last commit that was reported as durable."""
    sizes = [int(line.split()[1]) for line in lines if line.startswith("acked ")]
    return max(sizes, default=0)


# ------------------------------------------------------------------------------ several writers


@pytest.mark.postgres
def test_two_writers_in_two_processes_make_one_log(
    postgres_url: str, start: Callable[..., subprocess.Popen[str]], opened: Callable[..., Store]
) -> None:
    writers = [start(*command("write", postgres_url, name, 80, count, 50)) for name, count in (("a", 3), ("b", 11))]
    begin(*writers)
    for writer in writers:
        assert len(finished(writer)[0]) == 80
    entries = check_log(opened(postgres_url))
    expected = {
        f"{name} {commit} {number} ".encode().ljust(50, b".")
        for name, count in (("a", 3), ("b", 11))
        for commit in range(80)
        for number in range(count)
    }
    assert len(entries) == len(expected)
    assert set(entries) == expected
    # They really took turns: neither wrote its whole part before the other began.
    names = [entry[:1] for entry in entries]
    assert sum(one != other for one, other in pairwise(names)) > 2


@pytest.mark.postgres
def test_two_recovering_writers_close_each_fence_exactly_once(
    postgres_url: str, start: Callable[..., subprocess.Popen[str]], opened: Callable[..., Store]
) -> None:
    dead = opened(postgres_url, b"d" * 16)
    StoreWriter(dead, b"d" * 16).write([b"intent %d" % number for number in range(150)], opens=True)
    dead.close()
    fronts = [start(*command("recover", postgres_url, name, 2_000)) for name in "ab"]
    begin(*fronts)
    closed = [int(line.split()[1]) for front in fronts for line in finished(front)[0]]
    assert sorted(closed) == list(range(150))
    store = opened(postgres_url)
    entries = check_log(store)
    assert len(entries) == 300
    assert len({entry.split()[1] for entry in entries[150:]}) == 150
    assert store.open_intents() == []


@pytest.mark.postgres
def test_intents_of_a_living_front_are_not_for_others(
    postgres_url: str, start: Callable[..., subprocess.Popen[str]], opened: Callable[..., Store]
) -> None:
    front = start(*command("hold", postgres_url, "a", 1, 3, 20))
    begin(front)
    assert front.stdout is not None
    assert front.stdout.readline() == "acked 3\n"
    other = opened(postgres_url)
    assert other.open_intents() == []
    front.kill()
    front.wait()
    # The server notices the end of the session in its own time.
    deadline = time.monotonic() + 30
    while not (dead := other.open_intents()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [intent.intent for intent in dead] == [0, 1, 2]


def test_a_second_daemon_is_refused_and_told_who_is_there(
    sqlite_url: str, start: Callable[..., subprocess.Popen[str]], opened: Callable[..., Store]
) -> None:
    first = start(*command("hold", sqlite_url, "a", 1, 1, 10))
    begin(first)
    with pytest.raises(StoreUnusable, match=rf"in use by another process, pid {first.pid} .*log\.db\.lock"):
        opened(sqlite_url)
    second = start(*command("write", sqlite_url, "b", 1, 1, 10))
    assert str(first.pid) in finished(second, UNUSABLE)[1]
    first.kill()
    first.wait()
    # The lock goes with its process, whatever the file says.
    check_log(opened(sqlite_url))


# ------------------------------------------------------------------------------------- kill -9


def test_kill_9_loses_nothing_acknowledged_and_leaves_no_half_commit(
    url: str, start: Callable[..., subprocess.Popen[str]], opened: Callable[..., Store]
) -> None:
    known = 0
    for cycle in range(8):
        front = start(*command("write", url, f"cycle{cycle}", 100_000, 5, 900))
        begin(front)
        assert front.stdout is not None
        lines = [front.stdout.readline() for _ in range(3 + 7 * cycle)]
        front.kill()
        rest, _ = front.communicate()
        last = acked(lines + rest.splitlines())
        assert last > known
        store = opened(url)
        entries = check_log(store)
        assert len(entries) >= last
        assert len(entries) % 5 == 0
        store.close()
        known = len(entries)


def test_recovery_after_kill_9_finds_every_open_intent(
    sqlite_url: str, start: Callable[..., subprocess.Popen[str]], opened: Callable[..., Store]
) -> None:
    front = start(*command("write", sqlite_url, "a", 100_000, 4, 100))
    begin(front)
    assert front.stdout is not None
    for _ in range(25):
        front.stdout.readline()
    front.kill()
    front.wait()
    store = opened(sqlite_url)
    head = store.head()
    assert head is not None
    left = [intent.intent for intent in store.open_intents()]
    # Commits alternate between four intents and their four outcomes.
    assert left == (list(range(head.size - 4, head.size)) if head.size // 4 % 2 else [])


# ------------------------------------------------------------------------------- failing disks


def test_no_commit_is_acknowledged_before_it_is_synced(
    tmp_path: Path, sqlite_url: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    opened_by = command("write", sqlite_url, "a", 40, 3, 200)
    trace = ["strace", "-f", "-o", str(tmp_path / "calls"), "-e", "trace=fsync,fdatasync,write", "-y"]
    finished(start(*trace, *opened_by))
    synced, acknowledged = False, 0
    for call in (tmp_path / "calls").read_text().splitlines():
        if "sync(" in call and "log.db-wal" in call:
            synced = call.endswith("= 0")
        elif "acked" in call:
            assert synced, call
            synced = False
            acknowledged += 1
    assert acknowledged == 40


def under_strace(tmp_path: Path, inject: str, only: Path | None, line: list[str]) -> list[str]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    calls = inject.partition(":")[0]
    filters = ["-P", str(only)] if only else []
    return [
        "strace",
        "-f",
        "-o",
        str(tmp_path / "calls"),
        *filters,
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={inject}",
        *line,
    ]


def injected(tmp_path: Path) -> int:
    return (tmp_path / "calls").read_text().count("(INJECTED)")


@pytest.mark.parametrize(
    ("inject", "file", "names"),
    [
        pytest.param("fdatasync,fsync:error=EIO:when=1", "log.db-wal", "SQLITE_IOERR_FSYNC", id="first-sync"),
        pytest.param("fdatasync,fsync:error=EIO:when=30", "log.db-wal", "SQLITE_IOERR_FSYNC", id="a-later-sync"),
        pytest.param(
            "fdatasync,fsync:error=EIO:when=30+", "log.db-wal", "SQLITE_IOERR_FSYNC", id="every-sync-from-then"
        ),
        pytest.param("pwrite64:error=EIO:when=55", "log.db-wal", "SQLITE_IOERR_WRITE", id="write"),
        pytest.param("pwrite64:error=ENOSPC:when=55", "log.db-wal", "SQLITE_FULL", id="no-space"),
        pytest.param("fdatasync:error=EIO:when=1", "log.db", "SQLITE_IOERR_FSYNC", id="sync-of-a-checkpoint"),
        pytest.param("pwrite64:error=EIO:when=40", "log.db", "SQLITE_IOERR_WRITE", id="write-of-a-checkpoint"),
    ],
)
def test_a_failing_disk_ends_the_front(
    inject: str,
    file: str,
    names: str,
    tmp_path: Path,
    sqlite_url: str,
    start: Callable[..., subprocess.Popen[str]],
    opened: Callable[..., Store],
) -> None:
    """And nothing it acknowledged is lost, and the store works again when the disk does."""
    opened(sqlite_url).close()
    # 16 KiB an entry, so that 60 commits reach a checkpoint.
    line = command("write", sqlite_url, "a", 60, 25, 16_000)
    lines, complaint = finished(start(*under_strace(tmp_path, inject, tmp_path / file, line)), BROKEN)
    assert injected(tmp_path) >= 1
    assert names in complaint
    assert str(tmp_path / "log.db") in complaint
    assert len(lines) < 60
    store = opened(sqlite_url)
    assert len(check_log(store)) >= acked(lines)
    StoreWriter(store, b"n" * 16).write([b"goes on"])


def test_a_disk_that_fails_while_the_store_closes_is_reported(
    tmp_path: Path, sqlite_url: str, start: Callable[..., subprocess.Popen[str]], opened: Callable[..., Store]
) -> None:
    opened(sqlite_url).close()
    line = command("write", sqlite_url, "a", 4, 2, 500)
    traced = under_strace(tmp_path, "fdatasync:error=EIO", tmp_path / "log.db", line)
    lines, complaint = finished(start(*traced), BROKEN)
    assert "SQLITE_IOERR_FSYNC" in complaint
    assert len(check_log(opened(sqlite_url))) == acked(lines) == 8


def test_the_same_run_on_a_sound_disk_ends_well(
    tmp_path: Path, sqlite_url: str, start: Callable[..., subprocess.Popen[str]], opened: Callable[..., Store]
) -> None:
    """So that the failures above come from the disk; and a checkpoint really was among it."""
    opened(sqlite_url).close()
    line = command("write", sqlite_url, "a", 60, 25, 16_000)
    lines, _ = finished(
        start(*under_strace(tmp_path, "fdatasync,fsync:error=EIO:when=60000", tmp_path / "log.db", line))
    )
    assert acked(lines) == 60 * 25
    assert injected(tmp_path) == 0
    assert (tmp_path / "calls").read_text().count("sync(") >= 2


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small volume")
    volume = tmp_path / "small"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m,mode=0700", "tmpfs", str(volume)], check=True)
    yield volume
    subprocess.run(["umount", "-l", str(volume)], check=True)


@pytest.mark.root
def test_a_full_disk_ends_the_front_and_room_brings_it_back(
    small_volume: Path, start: Callable[..., subprocess.Popen[str]], opened: Callable[..., Store]
) -> None:
    url = f"sqlite://{small_volume}/log.db"
    lines, complaint = finished(start(*command("write", url, "a", 1_000, 20, 4_000)), BROKEN)
    assert "SQLITE_FULL" in complaint or "SQLITE_IOERR" in complaint
    assert acked(lines) > 0
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_volume)], check=True)
    store = opened(url)
    assert len(check_log(store)) >= acked(lines)
    StoreWriter(store, b"n" * 16).write([b"goes on"])
    store.close()
