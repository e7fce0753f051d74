"""The disk reserve on a real small volume: refuse early, keep room for what is under way, recover."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from greatseald.adapters.disk import DiskReserve

MIB = 1 << 20


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small volume")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def fill(volume: Path, leave: int) -> None:
    """Let others use the volume until `leave` bytes are free."""
    filler = volume / "filler"
    filler.unlink(missing_ok=True)
    with filler.open("wb") as file:
        free = os.statvfs(volume).f_bavail * os.statvfs(volume).f_frsize
        os.posix_fallocate(file.fileno(), 0, max(free - leave, 1))


@pytest.mark.root
def test_the_life_of_a_reserve(volume: Path) -> None:
    clock = Clock()
    reserve = DiskReserve(str(volume / "log.db"), 2 * MIB, clock)
    held = volume / "log.db.reserve"

    def shortage() -> str | None:
        clock.seconds += 1
        return reserve.shortage()

    assert shortage() is None
    assert held.stat().st_blocks * 512 == 2 * MIB
    assert stat.S_IMODE(held.stat().st_mode) == 0o600

    # A little above the reserve there is room; below it nothing new begins, and the room is still kept.
    fill(volume, leave=2 * MIB + 65536)
    assert shortage() is None
    fill(volume, leave=2 * MIB - 65536)
    said = shortage()
    assert said is not None
    assert str(volume) in said
    assert "1.9 MiB free" in said
    assert "keeps 2.0 MiB" in said
    assert held.exists()

    # Others go on filling: the reserve is given up for what is under way, and there still is a shortage.
    fill(volume, leave=0)
    assert shortage() is not None
    assert not held.exists()
    (volume / "outcome").write_bytes(b"o" * MIB)
    assert shortage() is not None

    # Just enough for one of the two is not enough; then the reserve is back, and with it the service.
    (volume / "outcome").unlink()
    fill(volume, leave=3 * MIB)
    assert shortage() is not None
    assert not held.exists()
    (volume / "filler").unlink()
    assert shortage() is None
    assert held.stat().st_blocks * 512 == 2 * MIB


@pytest.mark.root
def test_a_start_on_a_full_volume_finds_the_room_for_its_recovery(volume: Path) -> None:
    DiskReserve(str(volume / "log.db"), 2 * MIB).shortage()
    fill(volume, leave=0)
    with pytest.raises(OSError, match="No space"):
        (volume / "recovered").write_bytes(b"o" * MIB)
    assert DiskReserve(str(volume / "log.db"), 2 * MIB).shortage() is not None
    (volume / "recovered").write_bytes(b"o" * MIB)


@pytest.mark.root
def test_the_volume_is_not_asked_for_every_request(volume: Path) -> None:
    clock = Clock()
    reserve = DiskReserve(str(volume / "log.db"), 2 * MIB, clock)
    assert reserve.shortage() is None
    fill(volume, leave=0)
    clock.seconds += 0.9
    assert reserve.shortage() is None
    clock.seconds += 0.2
    assert reserve.shortage() is not None


def test_no_reserve_watches_nothing(tmp_path: Path) -> None:
    assert DiskReserve(str(tmp_path / "log.db"), 0).shortage() is None
    assert list(tmp_path.iterdir()) == []


def test_a_volume_that_cannot_be_asked_counts_as_full(tmp_path: Path) -> None:
    said = DiskReserve(str(tmp_path / "absent" / "log.db"), MIB).shortage()
    assert said is not None
    assert f"{tmp_path}/absent cannot be determined: No such file" in said
