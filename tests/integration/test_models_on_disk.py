"""Models in real directories: what is listed, hashed, refused, and what verification notices."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import model_site as site
from greatseal.oms import chunks, hashing
from greatseal.oms.errors import BundleInvalid, ModelChanged, ModelDiffers, ModelRefused, ModelUnreadable
from greatseal.oms.hashing import hash_files, require_unchanged
from greatseal.oms.listing import IgnoredPaths, Listing, list_model, model_name, relative_to_model
from greatseal.oms.manifest import build_manifest
from greatseal.oms.verify import Trust, verify_model

NOTHING = IgnoredPaths.of([])
KEY = site.new_key()
TRUST = Trust.in_key(site.public_pem(KEY))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return site.make_model(tmp_path / "llama")


@pytest.fixture
def signature(model: Path) -> Path:
    return site.sign_locally(model, KEY)


class TestListing:
    def test_every_file_is_signed_with_its_own_digest(self, model: Path):
        manifest = build_manifest(model, NOTHING)
        assert dict(manifest.resources) == {
            name: hashlib.sha256(content).hexdigest() for name, content in site.FILES.items()
        }
        assert [each.name for each in manifest.resources] == sorted(site.FILES)
        assert manifest.size == sum(map(len, site.FILES.values()))

    def test_the_same_model_elsewhere_gives_the_same_bytes(self, model: Path, tmp_path: Path):
        copy = site.make_model(tmp_path / "elsewhere" / "llama", dict(reversed((site.FILES | site.IGNORED).items())))
        assert build_manifest(model, NOTHING).payload() == build_manifest(copy, NOTHING, workers=1).payload()

    def test_git_is_ignored_at_the_top_and_signed_below(self, model: Path):
        names = [file.name for file in list_model(model, NOTHING).files]
        assert not [name for name in names if name.startswith(".git")]
        assert {"weights/.gitignore", "sub/.git/config"} <= set(names)

    def test_an_ignored_directory_goes_with_all_below_it_and_names_are_no_prefixes(self, tmp_path: Path):
        model = site.make_model(tmp_path / "m", {"a/x": b"", "a/b/y": b"", "ab": b"", "c/a": b""})
        listing = list_model(model, IgnoredPaths.of(["a"]))
        assert [file.name for file in listing.files] == ["ab", "c/a"]
        assert listing.ignored == ("a",)

    def test_the_name_is_the_directorys_however_it_was_given(self, model: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(model)
        assert {model_name(path) for path in (model, Path(), Path("weights/.."), Path("../llama"))} == {"llama"}

    def test_a_locale_that_is_not_utf8_changes_nothing(self, model: Path):
        script = (
            "import sys; from pathlib import Path; from greatseal.oms.manifest import build_manifest;"
            "from greatseal.oms.listing import IgnoredPaths;"
            "assert sys.getfilesystemencoding() != 'utf-8';"
            "print(build_manifest(Path(sys.argv[1]), IgnoredPaths.of([])).root)"
        )
        odd = os.environ | {"PYTHONUTF8": "0", "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"}
        ran = subprocess.run(
            [sys.executable, "-c", script, str(model)], env=odd, capture_output=True, text=True, check=True, timeout=60
        )
        assert ran.stdout.strip() == build_manifest(model, NOTHING).root


def link_to_file(model: Path) -> str:
    (model / "weights/link.bin").symlink_to(model / "a/b")
    return "'weights/link.bin' is a symbolic link"


def link_to_directory(model: Path) -> str:
    (model / "more").symlink_to(model / "weights")
    return "'more' is a symbolic link"


def dangling_link(model: Path) -> str:
    (model / "gone").symlink_to("nowhere")
    return "'gone' is a symbolic link"


def pipe(model: Path) -> str:
    os.mkfifo(model / "weights/pipe")
    return "'weights/pipe' is a pipe"


def unix_socket(model: Path) -> str:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(model / "s"))
    return "'s' is a socket"


def name_not_utf8(model: Path) -> str:
    Path(os.fsdecode(os.fsencode(model / "weights") + b"/gr\xf6\xdfe")).write_bytes(b"")
    return r"the name b'gr\\xf6\\xdfe' in 'weights/' is not UTF-8"


def name_with_backslash(model: Path) -> str:
    (model / "a\\b").write_bytes(b"")
    return "backslash"


def name_with_escape(model: Path) -> str:
    (model / "a\x1b[2Jb").write_bytes(b"")
    return r"the name 'a\\x1b\[2Jb' has a backslash or a control character"


UNSIGNABLE = [
    link_to_file,
    link_to_directory,
    dangling_link,
    pipe,
    unix_socket,
    name_not_utf8,
    name_with_backslash,
    name_with_escape,
]


@pytest.mark.parametrize("spoil", UNSIGNABLE)
class TestUnsignable:
    def test_is_refused_by_name_when_signing(self, model: Path, spoil: Callable[[Path], str]):
        with pytest.raises(ModelRefused, match=spoil(model)):
            build_manifest(model, NOTHING)

    def test_is_refused_by_name_when_verifying(self, model: Path, signature: Path, spoil: Callable[[Path], str]):
        with pytest.raises(ModelUnreadable, match=spoil(model)):
            verify_model(model, signature, TRUST)


class TestRefusedModels:
    def test_a_model_without_files(self, tmp_path: Path):
        (tmp_path / "m" / "empty" / "dirs").mkdir(parents=True)
        with pytest.raises(ModelRefused, match="'m' has no files"):
            build_manifest(tmp_path / "m", NOTHING)

    def test_a_single_file(self, model: Path):
        with pytest.raises(ModelRefused, match="directory of its own"):
            build_manifest(model / "config.json", NOTHING)

    def test_a_link_to_a_model(self, model: Path, tmp_path: Path):
        (tmp_path / "latest").symlink_to(model)
        with pytest.raises(ModelRefused, match=r"latest' is a symbolic link; name the directory itself \(.*/llama\)"):
            build_manifest(tmp_path / "latest", NOTHING)

    def test_nothing_there(self, tmp_path: Path):
        with pytest.raises(ModelRefused, match="no model at"):
            build_manifest(tmp_path / "llama", NOTHING)

    def test_more_than_one_statement_holds(self, model: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("greatseal.oms.manifest.MAX_RESOURCES", len(site.FILES) - 1)
        with pytest.raises(ModelRefused, match="one statement holds"):
            build_manifest(model, NOTHING)
        monkeypatch.undo()
        monkeypatch.setattr("greatseal.oms.manifest.MAX_STATEMENT_BYTES", 500)
        with pytest.raises(ModelRefused, match="500 is the limit"):
            build_manifest(model, NOTHING)

    def test_a_link_below_an_ignored_path_is_no_obstacle(self, model: Path):
        link_to_file(model)
        names = [each.name for each in build_manifest(model, IgnoredPaths.of(["weights/link.bin"])).resources]
        assert names == sorted(site.FILES)


class Meddler:
    """Does something to the model when its `turn`-th chunk has been read, on the thread that reads it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], turn: int = 1) -> None:
        self._act, self._turn, self._lock = act, turn, threading.Lock()
        real = os.preadv

        def preadv(descriptor: int, buffers: list[bytearray], offset: int) -> int:
            count = real(descriptor, buffers, offset)
            with self._lock:
                self._turn -= 1
                if self._turn == 0:
                    self._act()
            return count

        monkeypatch.setattr(os, "preadv", preadv)


class TestChanging:
    BIG = "weights/00001.bin"

    @pytest.mark.parametrize("change", ["append", "truncate", "overwrite", "replace", "remove", "link"])
    @pytest.mark.parametrize("way", ["_inline", "_ahead"])
    def test_a_file_that_changes_while_it_is_read_is_refused_by_name(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, change: str, way: str
    ):
        monkeypatch.setattr(chunks, "_inline", getattr(chunks, way))
        target = model / self.BIG

        def overwrite() -> None:
            before = target.stat()
            with target.open("r+b") as file:
                file.write(b"EVIL")
            os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))  # as who hides it would

        def replace() -> None:
            (model / "new").write_bytes(target.read_bytes())
            (model / "new").replace(target)

        def link() -> None:
            target.rename(model.parent / "moved")
            target.symlink_to(model.parent / "moved")

        acts: dict[str, Callable[[], object]] = {
            "append": lambda: os.truncate(target, target.stat().st_size + 1),
            "truncate": lambda: os.truncate(target, 1 << 20),
            "overwrite": overwrite,
            "replace": replace,
            "remove": target.unlink,
            "link": link,
        }
        Meddler(monkeypatch, acts[change])
        with pytest.raises(ModelRefused, match=self.BIG):
            build_manifest(model, NOTHING, workers=1)

    def test_a_file_that_appears_while_the_model_is_read_is_refused_by_name(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ):
        Meddler(monkeypatch, lambda: (model / "weights/late.bin").write_bytes(b"x"))
        with pytest.raises(ModelChanged, match=r"'weights/late.bin' appeared"):
            build_manifest(model, NOTHING)

    def test_a_file_that_changes_during_verification_is_refused_by_name(
        self, model: Path, signature: Path, monkeypatch: pytest.MonkeyPatch
    ):
        Meddler(monkeypatch, lambda: (model / "a/b").write_bytes(b"other"))
        with pytest.raises(ModelUnreadable, match="'a/b' changed"):
            verify_model(model, signature, TRUST)

    def test_a_model_is_listed_only_when_a_new_write_could_be_told_from_the_last(self, tmp_path: Path):
        """Two writes within one tick of the kernel's clock can carry one time."""
        model = site.make_model(tmp_path / "m", {"f": b"1", "old": b"1"})
        os.utime(model / "old", ns=(0, 0))
        listing = hashing.settled(model, NOTHING)
        newest = max(file.stamp.ctime_ns for file in listing.files)
        assert time.time_ns() - newest >= 40_000_000
        (model / "f").write_bytes(b"2")
        with pytest.raises(ModelChanged, match="'f' changed"):
            require_unchanged(model, NOTHING, listing)

    def test_a_file_that_cannot_be_read_is_named(self, model: Path, monkeypatch: pytest.MonkeyPatch):
        listing = list_model(model, NOTHING)
        real = os.open

        def broken(path: bytes, flags: int) -> int:
            if path.endswith(b"config.json"):
                raise OSError(5, "Input/output error")
            return real(path, flags)

        monkeypatch.setattr(hashing.os, "open", broken)
        with pytest.raises(ModelRefused, match=r"'config.json' cannot be read: Input/output error"):
            hash_files(listing.files)

    def test_progress_ends_at_the_size_of_the_model(self, model: Path):
        steps: list[tuple[int, int]] = []
        manifest = build_manifest(model, NOTHING, progress=lambda done, total: steps.append((done, total)))
        assert steps[-1] == (manifest.size, manifest.size)
        assert steps == sorted(steps)


class TestVerification:
    def test_a_model_that_was_signed_verifies(self, model: Path, signature: Path):
        verified = verify_model(model, signature, TRUST)
        assert (verified.name, verified.files) == ("llama", len(site.FILES))
        assert verified.root == build_manifest(model, IgnoredPaths.of(["model.sig"])).root
        assert verified.ignored == (".git", ".gitattributes", ".github", ".gitignore", "model.sig")

    def test_a_model_verifies_under_another_name_and_at_another_place(
        self, model: Path, signature: Path, tmp_path: Path
    ):
        moved = model.rename(tmp_path / "renamed")
        assert verify_model(moved, moved / signature.name, TRUST).name == "llama"

    def test_everything_that_differs_is_named(self, model: Path, signature: Path):
        (model / "a-b").write_bytes(b"changed")
        (model / "empty").write_bytes(b"not empty")
        (model / "a/b").unlink()
        (model / "extra.py").write_bytes(b"import os")
        (model / "sub/.git/hooks").write_bytes(b"")
        with pytest.raises(ModelDiffers) as caught:
            verify_model(model, signature, TRUST)
        error = caught.value
        assert error.changed == ("a-b", "empty")
        assert error.missing == ("a/b",)
        assert error.extra == ("extra.py", "sub/.git/hooks")
        assert "2 changed (a-b, empty), 1 missing (a/b), 2 extra (extra.py, sub/.git/hooks)" in error.message

    def test_a_file_and_a_directory_are_no_substitutes_for_each_other(self, model: Path, signature: Path):
        (model / "a-b").unlink()
        (model / "a-b").mkdir()
        (model / "a-b/x").write_bytes(b"")
        with pytest.raises(ModelDiffers) as caught:
            verify_model(model, signature, TRUST)
        assert (caught.value.missing, caught.value.extra) == (("a-b",), ("a-b/x",))

    def test_two_files_that_were_swapped_are_both_named(self, model: Path, signature: Path):
        first, second = (model / "a-b").read_bytes(), (model / "a.b").read_bytes()
        (model / "a-b").write_bytes(second)
        (model / "a.b").write_bytes(first)
        with pytest.raises(ModelDiffers) as caught:
            verify_model(model, signature, TRUST)
        assert caught.value.changed == ("a-b", "a.b")

    def test_an_emptied_model_is_missing_everything(self, model: Path, signature: Path, tmp_path: Path):
        (tmp_path / "hollow").mkdir()
        with pytest.raises(ModelDiffers) as caught:
            verify_model(tmp_path / "hollow", signature, TRUST)
        assert caught.value.missing == tuple(sorted(site.FILES))

    def test_the_signature_file_may_move_out_of_the_model_or_be_renamed_in_it(
        self, model: Path, signature: Path, tmp_path: Path
    ):
        renamed = signature.rename(model / "weights/release.sig")
        assert verify_model(model, renamed, TRUST)
        outside = renamed.rename(tmp_path / "outside.sig")
        assert verify_model(model, outside, TRUST)

    def test_a_copy_of_the_signature_file_under_another_name_is_extra(self, model: Path, signature: Path):
        (model / "copy.sig").write_bytes(signature.read_bytes())
        with pytest.raises(ModelDiffers) as caught:
            verify_model(model, signature, TRUST)
        assert caught.value.extra == ("copy.sig",)

    def test_paths_that_the_signer_left_out_may_change_and_are_reported(self, model: Path):
        (model / "logs").mkdir()
        (model / "logs/run.txt").write_bytes(b"1")
        signature = site.sign_locally(model, KEY, ignore=["logs", "cache"])
        (model / "logs/run.txt").write_bytes(b"2")
        assert "logs" in verify_model(model, signature, TRUST).ignored

    def test_a_verifier_may_leave_out_more_but_not_what_was_signed(self, model: Path, signature: Path):
        (model / "notes.txt").write_bytes(b"mine")
        assert verify_model(model, signature, TRUST, ignore=["notes.txt"])
        with pytest.raises(ModelDiffers) as caught:
            verify_model(model, signature, TRUST, ignore=["notes.txt", "weights"])
        assert caught.value.missing == ("weights/.gitignore", "weights/00001.bin")

    @pytest.mark.parametrize("ignored", [["../llama"], ["/"], ["."], [""]])
    def test_a_signed_list_of_ignored_paths_cannot_empty_the_comparison(self, model: Path, ignored: list[str]):
        payload = json.loads(build_manifest(model, NOTHING).payload())
        payload["predicate"]["serialization"]["ignore_paths"] = ignored
        signature = model.parent / "model.sig"
        signature.write_bytes(site.bundle_of(json.dumps(payload).encode(), KEY))
        with pytest.raises(BundleInvalid, match="ignore_paths"):
            verify_model(model, signature, TRUST)

    def test_a_signature_file_that_is_not_there_is_named(self, model: Path):
        with pytest.raises(BundleInvalid, match=r"nothing.sig cannot be read"):
            verify_model(model, model / "nothing.sig", TRUST)


@pytest.mark.parametrize(
    ("path", "name"),
    [("llama/model.sig", "model.sig"), ("llama/weights/../m.sig", "m.sig"), ("m.sig", None), ("llama2/m.sig", None)],
)
def test_a_path_is_inside_the_model_or_not(model: Path, tmp_path: Path, path: str, name: str | None):
    assert relative_to_model(model, tmp_path / path) == name


def test_a_listing_knows_its_size(model: Path):
    listing: Listing = list_model(model, NOTHING)
    assert listing.size == sum(map(len, site.FILES.values()))
