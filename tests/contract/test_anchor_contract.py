"""What an anchor promises (`ports/anchor.py`): the last released head survives whatever happens."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from greatseald.adapters.anchor import FileAnchor
from greatseald.ports.anchor import Anchored, AnchorError


def root(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "released"


def advance(path: Path, *sizes: int) -> None:
    with closing(FileAnchor(str(path))) as anchor:
        for size in sizes:
            anchor.advance(Anchored(size, root(size)))


def read(path: Path) -> Anchored | None:
    with closing(FileAnchor(str(path))) as anchor:
        return anchor.read()


def test_a_new_anchor_remembers_nothing(path: Path) -> None:
    assert read(path) is None
    assert read(path) is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_last_head_is_remembered_across_restarts(path: Path) -> None:
    for size in range(1, 8):
        advance(path, size)
        assert read(path) == Anchored(size, root(size))
    advance(path, 2**62, 2**62 + 1)
    assert read(path) == Anchored(2**62 + 1, root(2**62 + 1))


def test_an_empty_file_is_a_new_anchor(path: Path) -> None:
    path.touch(0o600)
    advance(path, 5)
    assert read(path) == Anchored(5, root(5))


@pytest.mark.parametrize("torn_at", [0, 1, 20, 60, 150, 190, 4095])
def test_a_torn_write_leaves_the_head_before(torn_at: int, path: Path) -> None:
    """The slot that was being written holds the new bytes up to some place and old or no bytes after it."""
    advance(path, 1, 2, 3)
    before = path.read_bytes()
    advance(path, 4)
    after = path.read_bytes()
    changed = next(place for place, (one, other) in enumerate(zip(before, after, strict=True)) if one != other)
    slot = changed // 4096 * 4096
    for filler in (b"\0" * 4096, before[slot : slot + 4096], b"\xff" * 4096):
        torn = after[slot : slot + torn_at] + filler[torn_at:]
        path.write_bytes(after[:slot] + torn + after[slot + 4096 :])
        # Torn after the last byte that counts is not torn at all.
        expected = 4 if torn[:250] == after[slot : slot + 250] else 3
        assert read(path) == Anchored(expected, root(expected))
        # And the next advance does not overwrite the only good slot.
        with closing(FileAnchor(str(path))) as anchor:
            kept = path.read_bytes()
            anchor.advance(Anchored(9, root(9)))
            other = 4096 - slot
            if expected == 3:
                assert path.read_bytes()[other : other + 4096] == kept[other : other + 4096]
        assert read(path) == Anchored(9, root(9))


def test_a_first_advance_torn_is_a_beginning_still(path: Path) -> None:
    read(path)
    new = path.read_bytes()
    advance(path, 1)
    changed = next(place for place, (one, other) in enumerate(zip(new, path.read_bytes(), strict=True)) if one != other)
    data = bytearray(path.read_bytes())
    data[changed : changed + 30] = b"?" * 30
    path.write_bytes(bytes(data))
    assert read(path) is None


def test_damage_of_both_slots_is_never_taken_for_a_beginning(path: Path) -> None:
    advance(path, 1, 2)
    data = bytearray(path.read_bytes())
    for slot in (0, 4096):
        data[slot + 50] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(AnchorError, match="is damaged: neither of its slots is whole"):
        FileAnchor(str(path))
    assert path.read_bytes() == bytes(data)


def test_every_single_changed_byte_of_the_newest_slot_is_noticed(path: Path) -> None:
    advance(path, 1, 2)
    data = path.read_bytes()
    newest = 4096 if b"0000002\n" in data[4096:] else 0
    length = data[newest:].index(b"\ncheck ") + len("\ncheck ") + 65
    for place in range(newest, newest + length):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x01]) + data[place + 1 :])
        assert read(path) == Anchored(1, root(1)), place


@pytest.mark.parametrize("content", [b"x", b"precious notes\n" * 1000, b"\0" * 8192, b" " * 8192])
def test_a_file_that_is_not_an_anchor_is_refused_and_left_alone(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(AnchorError, match=f"{path} is neither empty nor an anchor"):
        FileAnchor(str(path))
    assert path.read_bytes() == content


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnchorError, match=f"directory {tmp_path}/absent does not exist"):
        FileAnchor(str(tmp_path / "absent" / "released"))


def test_a_directory_or_link_in_its_place_is_refused(tmp_path: Path, path: Path) -> None:
    with pytest.raises(AnchorError, match="must be a regular file"):
        FileAnchor(str(tmp_path))
    advance(tmp_path / "elsewhere", 3)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AnchorError, match="must be a regular file"):
        FileAnchor(str(path))


def test_two_daemons_do_not_share_an_anchor(path: Path) -> None:
    with closing(FileAnchor(str(path))), pytest.raises(AnchorError, match="held by another daemon"):
        FileAnchor(str(path))
    read(path)


def test_a_person_can_read_it(path: Path) -> None:
    advance(path, 1, 1234)
    lines = path.read_text().splitlines()
    assert any(line.startswith("size") and int(line.split()[1]) == 1234 for line in lines)
    assert f"root {root(1234).hex()}" in lines


def test_what_advance_returned_from_survives_kill_9(path: Path) -> None:
    program = (
        "import sys\nfrom greatseald.adapters.anchor import FileAnchor\nfrom greatseald.ports.anchor import Anchored\n"
        "anchor, size = FileAnchor(sys.argv[1]), int(sys.argv[2])\n"
        "while True:\n size += 1\n anchor.advance(Anchored(size, size.to_bytes(32, 'big')))\n print(size, flush=True)\n"
    )
    size = 0
    for cycle in range(5):
        command = [sys.executable, "-c", program, str(path), str(size)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(5 + 30 * cycle):
            process.stdout.readline()
        process.kill()
        said = process.communicate()[0].split()
        now = read(path)
        assert now is not None
        assert now.root == root(now.size)
        assert now.size >= max([size + 5, *map(int, said)])
        size = now.size


@pytest.mark.parametrize("inject", ["pwrite64:error=EIO:when=6", "pwrite64:error=ENOSPC:when=6"])
def test_a_failing_disk_is_reported_and_the_head_before_stays(inject: str, path: Path, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    read(path)
    program = (
        "import sys\nfrom greatseald.adapters.anchor import FileAnchor\n"
        "from greatseald.ports.anchor import Anchored, AnchorError\nanchor = FileAnchor(sys.argv[1])\n"
        "for size in range(1, 9):\n try:\n  anchor.advance(Anchored(size, size.to_bytes(32, 'big')))\n"
        " except AnchorError as error:\n  print(size, error)\n"
    )
    calls = inject.partition(":")[0]
    command = [
        "strace",
        "-f",
        "-o",
        str(tmp_path / "calls"),
        "-P",
        str(path),
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={inject}",
    ]
    done = subprocess.run(
        [*command, sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert (tmp_path / "calls").read_text().count("(INJECTED)") == 1
    (line,) = done.stdout.splitlines()
    assert f"the anchor {path} cannot be written" in line
    # The disk came back, and so did the anchor.
    assert read(path) == Anchored(8, root(8))


@pytest.mark.root
def test_a_full_volume_does_not_stop_an_anchor(tmp_path: Path) -> None:
    """It was given its room when it was made."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small volume")
    volume = tmp_path / "small"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(volume)], check=True)
    try:
        with closing(FileAnchor(str(volume / "released"))) as anchor:
            with (volume / "filler").open("wb") as filler:
                os.posix_fallocate(filler.fileno(), 0, os.statvfs(volume).f_bavail * os.statvfs(volume).f_frsize)
            for size in range(1, 20):
                anchor.advance(Anchored(size, root(size)))
        assert read(volume / "released") == Anchored(19, root(19))
        with pytest.raises(AnchorError, match="No space left"):
            FileAnchor(str(volume / "another"))
    finally:
        subprocess.run(["umount", "-l", str(volume)], check=True)
