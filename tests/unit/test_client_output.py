"""What the command prints, and how files are written."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from greatseal import errors
from greatseal.cli.failures import report
from greatseal.cli.session import Session, say
from greatseal.cli.sign import hexadecimal, require_writable
from greatseal.files import write_whole

HOSTILE = "\x1b[2J\x9b31m\u202emodel\r\nforged: line"


def test_foreign_text_cannot_drive_the_terminal_or_forge_lines(capsys: pytest.CaptureFixture[str]):
    Session().fields([("subject", HOSTILE)])
    Session().table(["NAME"], [[HOSTILE]])
    Session().emit({"subject": HOSTILE})
    say(HOSTILE)
    report(errors.VerificationFailed(HOSTILE), as_json=False)
    out, err = capsys.readouterr()
    assert out.count("\n") == 4
    assert not set("\x1b\x9b\u202e\r") & set(out + err)


def test_an_error_says_reason_details_and_request(capsys: pytest.CaptureFixture[str]):
    error = errors.Denied("not allowed", reason="ACCESS_DENIED", metadata={"action": "sign"}, request_id="the-id")
    error.add_note("ask the operator")
    assert report(error, as_json=False) == 3
    assert capsys.readouterr().err.splitlines() == [
        "error: not allowed",
        "  ask the operator",
        "  reason: ACCESS_DENIED",
        "  action: sign",
        "  request id: the-id",
    ]
    assert report(error, as_json=True) == 3
    described = json.loads(capsys.readouterr().err)["error"]
    assert (described["kind"], described["reason"], described["exit_code"]) == ("Denied", "ACCESS_DENIED", 3)


def test_an_unforeseen_error_is_called_a_fault(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GREATSEAL_DEBUG", raising=False)
    assert report(KeyError("x"), as_json=False) == 1
    assert "fault of greatseal" in capsys.readouterr().err
    assert report(KeyboardInterrupt(), as_json=False) == 130


@pytest.mark.parametrize("text", ["", "ab" * 31, "ab" * 33, "zz" * 32, "ab " * 32, " " + "ab" * 32, "ab" * 31 + "a\n"])
def test_only_exact_hexadecimal_is_a_digest(text: str):
    with pytest.raises(errors.UsageError):
        hexadecimal(text, "--sha256", (32,))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "out"
    old, new = b"a" * 100_000, b"b" * 200_000
    write_whole(path, old)
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(50):
            write_whole(path, new if number % 2 else old)
    finally:
        done.set()
        reader.join()
    assert seen <= {old, new}
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "out"
    write_whole(path, b"old")

    def fail(_descriptor: int) -> None:
        raise OSError(5, "injected")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="injected"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_gets_the_users_permissions_and_a_link_is_followed(tmp_path: Path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "target")
    old = os.umask(0o027)
    try:
        write_whole(link, b"data")
    finally:
        os.umask(old)
    assert link.is_symlink()
    assert (tmp_path / "real" / "target").stat().st_mode & 0o777 == 0o640


def test_a_device_is_written_to_and_not_replaced():
    write_whole(Path("/dev/null"), b"gone")
    assert not Path("/dev/null").is_file()


def test_outputs_that_cannot_be_written_are_refused_beforehand(tmp_path: Path):
    require_writable(tmp_path / "a", tmp_path / "b", None)
    for paths in (
        (tmp_path / "missing" / "a",),
        (tmp_path,),
        (tmp_path / "a", tmp_path / "x" / ".." / "a"),
    ):
        with pytest.raises(errors.UsageError):
            require_writable(*paths)
