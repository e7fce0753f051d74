"""The digest cache: what is read again and what is not, and who may not have written it."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import model_site as site
from greatseal.errors import UsageError
from greatseal.oms import hashing
from greatseal.oms.digest_cache import DigestCache
from greatseal.oms.errors import ModelChanged, ModelRefused
from greatseal.oms.listing import IgnoredPaths
from greatseal.oms.manifest import ModelManifest, build_manifest

NOTHING = IgnoredPaths.of([])
BIG = "weights/00001.bin"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return site.make_model(tmp_path / "llama")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "digests"


def manifest(model: Path, path: Path, ignored: IgnoredPaths = NOTHING) -> ModelManifest:
    """The model's manifest with the cache, as a run of its own would find it."""
    with DigestCache(path) as cache:
        made = build_manifest(model, ignored, cache=cache)
        assert not cache.trouble
    assert made.resources == build_manifest(model, ignored).resources, "the cache changed what is signed"
    return made


def refused(path: Path, why: str) -> None:
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(UsageError, match=why):
        DigestCache(path)
    assert before == (path.read_bytes() if path.is_file() else None)


class TestUnchanged:
    def test_files_are_read_once(self, model: Path, path: Path, monkeypatch: pytest.MonkeyPatch):
        first = manifest(model, path)
        monkeypatch.setattr(os, "preadv", None)  # whoever reads, fails
        with DigestCache(path) as cache:
            second = build_manifest(model, NOTHING, cache=cache)
        assert (first.known, second.known) == (0, len(site.FILES))
        assert second.payload() == first.payload()

    def test_it_is_the_same_model_however_it_is_named(self, model: Path, path: Path, monkeypatch: pytest.MonkeyPatch):
        manifest(model, path)
        monkeypatch.chdir(model / "weights")
        assert manifest(Path(".."), path).known == len(site.FILES)

    def test_models_beside_and_inside_each_other_do_not_mix(self, tmp_path: Path, path: Path):
        outer = site.make_model(tmp_path / "m", {"a": b"1", "in/a": b"2"})
        beside = site.make_model(tmp_path / "m-2", {"a": b"3"})
        below = site.make_model(tmp_path / "m0", {"a": b"4"})
        models = [outer, outer / "in", beside, below]
        for each in models:
            manifest(each, path)
        assert [manifest(each, path).known for each in models] == [2, 1, 1, 1]

    def test_progress_counts_what_is_read(self, model: Path, path: Path):
        manifest(model, path)
        (model / "a-b").write_bytes(b"four")
        steps: list[tuple[int, int]] = []
        with DigestCache(path) as cache:
            build_manifest(model, NOTHING, cache=cache, progress=lambda done, total: steps.append((done, total)))
        assert steps[-1] == (4, 4)

    def test_a_directory_whose_name_is_not_utf8(self, tmp_path: Path, path: Path):
        model = site.make_model(Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xf6\xdfe")) / "m", {"a": b"1"})
        manifest(model, path)
        assert manifest(model, path).known == 1


class TestChanged:
    @pytest.mark.parametrize("how", ["in place", "times put back", "replaced"])
    def test_a_file_that_could_be_another_is_read(self, model: Path, path: Path, how: str):
        target = model / BIG
        manifest(model, path)
        before = target.stat()
        if how == "in place":
            with target.open("r+b") as file:
                file.write(b"EVIL")
        elif how == "times put back":  # size and mtime as they were; ctime is the kernel's
            with target.open("r+b") as file:
                file.write(b"EVIL")
            os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
        else:
            other = model.parent / "other"
            other.write_bytes(b"x" * before.st_size)
            os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
            other.replace(target)
        assert manifest(model, path).known == len(site.FILES) - 1

    def test_what_is_gone_is_forgotten(self, model: Path, path: Path):
        manifest(model, path)
        (model / "a/b").unlink()
        manifest(model, path)
        with sqlite3.connect(path) as database:
            assert database.execute("SELECT count(*) FROM digest").fetchone() == (len(site.FILES) - 1,)
        database.close()

    def test_nothing_is_kept_of_a_model_that_did_not_hold_still(
        self, model: Path, path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        real = hashing.require_unchanged

        def meddle(*arguments: object) -> None:
            (model / "a-b").write_bytes(b"meanwhile")
            real(*arguments)

        monkeypatch.setattr("greatseal.oms.manifest.require_unchanged", meddle)
        with DigestCache(path) as cache, pytest.raises(ModelChanged):
            build_manifest(model, NOTHING, cache=cache)
        monkeypatch.undo()
        assert manifest(model, path).known == 0

    def test_a_known_file_that_changes_while_others_are_read_is_refused(self, model: Path, path: Path):
        manifest(model, path)
        (model / "a/b").write_bytes(b"this one is read")
        real = os.preadv

        with DigestCache(path) as cache, pytest.MonkeyPatch.context() as patch:

            def preadv(descriptor: int, buffers: list[bytearray], offset: int) -> int:
                (model / "config.json").write_bytes(b"{}")  # known, so not opened
                return real(descriptor, buffers, offset)

            patch.setattr(os, "preadv", preadv)
            with pytest.raises(ModelChanged, match=r"config\.json"):
                build_manifest(model, NOTHING, cache=cache)

    def test_a_file_whose_times_lie_ahead_is_not_kept(self, model: Path, path: Path, monkeypatch: pytest.MonkeyPatch):
        """As on a server whose clock is ahead: the next write could carry the same time."""
        real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real() - 3_600_000_000_000)
        manifest(model, path)
        monkeypatch.undo()
        assert manifest(model, path).known == 0
        assert manifest(model, path).known == len(site.FILES)


class TestTrust:
    def test_it_is_readable_by_its_owner_alone(self, model: Path, path: Path):
        manifest(model, path)
        assert path.stat().st_mode & 0o777 == 0o600

    def test_a_file_that_others_can_write_is_refused(self, path: Path):
        DigestCache(path).close()
        path.chmod(0o602)
        refused(path, "can be written by others")

    def test_a_directory_that_others_can_write_is_refused(self, path: Path):
        """A journal laid beside the file would be taken for the file's own."""
        DigestCache(path).close()
        path.parent.chmod(0o1777)
        refused(path, "directory of your own")
        path.parent.chmod(0o700)

    @pytest.mark.root
    @pytest.mark.skipif(os.geteuid() != 0, reason="changes a file's owner")
    def test_somebody_elses_file_is_refused(self, path: Path):
        DigestCache(path).close()
        os.chown(path, 65534, 65534)
        refused(path, "can be written by others")

    def test_a_link_is_refused(self, path: Path, tmp_path: Path):
        DigestCache(tmp_path / "real").close()
        path.symlink_to("real")
        refused(path, "cannot be opened")

    @pytest.mark.parametrize("content", [b"{}\n", os.urandom(5000), b"SQLite format 3\0" + bytes(100)])
    def test_a_file_of_another_kind_is_left_alone(self, path: Path, content: bytes):
        path.write_bytes(content)
        refused(path, "no digest cache")

    def test_another_programs_database_is_left_alone(self, path: Path):
        database = sqlite3.connect(path)
        database.execute("CREATE TABLE digest (path, stamp, sha256)")
        database.commit()
        database.close()
        refused(path, "no digest cache")

    @pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "pipe"])
    def test_what_is_no_file_is_refused(self, path: Path, make: Callable[[Path], object]):
        make(path)
        refused(path, "digest cache")

    def test_a_missing_directory_is_named(self, tmp_path: Path):
        refused(tmp_path / "nowhere" / "digests", "No such file")

    def test_a_cache_inside_the_model_is_refused(self, model: Path):
        with DigestCache(model / "weights" / "digests") as cache, pytest.raises(ModelRefused, match="inside the model"):
            build_manifest(model, NOTHING, cache=cache)

    @pytest.mark.parametrize("row", [("sha256", b"short"), ("sha256", 7), ("stamp", b""), ("stamp", "text")])
    def test_a_damaged_row_is_a_miss(self, model: Path, path: Path, row: tuple[str, object]):
        manifest(model, path)
        database = sqlite3.connect(path)
        database.execute(f"UPDATE digest SET {row[0]} = ? WHERE CAST(path AS TEXT) LIKE '%config.json'", (row[1],))
        database.commit()
        database.close()
        assert manifest(model, path).known < len(site.FILES)
        assert manifest(model, path).known == len(site.FILES)


class TestTrouble:
    def test_a_file_damaged_under_way_costs_nothing_but_the_reading(self, model: Path, path: Path):
        manifest(model, path)
        with DigestCache(path) as cache:
            size = path.stat().st_size
            with path.open("r+b") as file:
                file.seek(4096)
                file.write(os.urandom(size - 4096))
            made = build_manifest(model, NOTHING, cache=cache)
            assert "digest cache" in cache.trouble
        assert made.payload() == build_manifest(model, NOTHING).payload()

    def test_a_cache_that_is_held_by_another_for_long_is_done_without(
        self, model: Path, path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("greatseal.oms.digest_cache._WAIT_SECONDS", 0.05)
        with DigestCache(path) as cache:
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            made = build_manifest(model, NOTHING, cache=cache)
            other.close()
            assert "locked" in cache.trouble
        assert made.payload() == build_manifest(model, NOTHING).payload()

    def test_many_runs_share_one(self, tmp_path: Path, path: Path):
        models = [site.make_model(tmp_path / f"m{number}", {"a": b"%d" % number, "b/c": b""}) for number in range(8)]
        failures: list[BaseException] = []

        def sign(model: Path) -> None:
            try:
                for _ in range(3):
                    manifest(model, path)
            except BaseException as error:  # noqa: BLE001 -- told below
                failures.append(error)

        threads = [threading.Thread(target=sign, args=(model,)) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert [manifest(model, path).known for model in models] == [2] * 8
