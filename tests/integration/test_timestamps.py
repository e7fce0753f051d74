"""Timestamps over checkpoints: from a real authority (`openssl ts`), verified before they are kept, and offline after."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from deployment import Deployment, greatseal
from front_site import logged, wait_for
from greatseal.checkpoint import parse_text
from greatseal.note import VerifierKey
from greatseal.timestamps import Stamped, parse_line, read_roots, read_timestamps, verify, verify_response
from greatseal.verification import NoteInvalid, TimestampInvalid
from greatseald.adapters.stamps import FileStamps
from greatseald.adapters.timestamps import HttpAuthority
from greatseald.ports.sightings import OutsideUnreachable
from outside_site import Answering, BlackHole, table
from sample_log import SampleLog
from timestamp_authority import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Iterator[Authority]:
    authority = Authority(tmp_path_factory.mktemp("tsa") / "one")
    yield authority
    authority.close()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Iterator[Authority]:
    authority = Authority(tmp_path_factory.mktemp("tsa") / "other", "Other TSA")
    yield authority
    authority.close()


@pytest.fixture(scope="module")
def log() -> SampleLog:
    log = SampleLog()
    log.grow(9)
    return log


def ask(authority: Authority, roots: Authority | None = None, url: str = "") -> HttpAuthority:
    return HttpAuthority("tsa", url or authority.url, None, 10, read_roots([(roots or authority).root]))


def test_a_token_of_a_trusted_authority_says_when_the_checkpoint_existed(authority, log, tmp_path):
    note = log.note(5)
    stamped = Stamped("tsa", note, ask(authority).stamp(note.encode()))
    proven = verify(parse_line(stamped.line().encode()), log.vkey, read_roots([authority.root]))
    assert proven.checkpoint.size == 5
    assert proven.time.tzinfo is not None
    # And openssl says the same of what was kept.
    (tmp_path / "token").write_bytes(stamped.response)
    (tmp_path / "note").write_bytes(note.encode())
    command = ["openssl", "ts", "-verify", "-data", "note", "-in", "token", "-CAfile", authority.root]
    assert (
        "Verification: OK" in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    )


def test_a_token_of_another_digest_is_refused(authority, log):
    response = ask(authority).stamp(log.note(4).encode())
    with pytest.raises(TimestampInvalid, match="not of this checkpoint"):
        verify(Stamped("tsa", log.note(5), response), log.vkey, read_roots([authority.root]))


def test_a_token_of_an_untrusted_authority_is_refused(authority, foreign, log):
    note = log.note(5)
    response = ask(foreign).stamp(note.encode())
    with pytest.raises(TimestampInvalid):
        verify(Stamped("tsa", note, response), log.vkey, read_roots([authority.root]))
    with pytest.raises(OutsideUnreachable, match="answered with a wrong timestamp"):
        ask(foreign, authority).stamp(note.encode())


def test_a_timestamp_of_another_log_is_refused(authority, log):
    other = SampleLog("other.example/log")
    other.grow(3)
    response = ask(authority).stamp(other.note().encode())
    with pytest.raises(NoteInvalid):
        verify(Stamped("tsa", other.note(), response), log.vkey, read_roots([authority.root]))


def test_every_changed_byte_of_a_token_is_noticed_or_means_the_same(authority, log):
    note = log.note(5).encode()
    response = ask(authority).stamp(note)
    roots = read_roots([authority.root])
    good = verify_response(response, note, roots)
    for place in range(0, len(response), 7):
        changed = response[:place] + bytes([response[place] ^ 0x20]) + response[place + 1 :]
        try:
            assert verify_response(changed, note, roots) == good
        except TimestampInvalid:
            continue
    for cut in range(0, len(response), 50):
        with pytest.raises(TimestampInvalid):
            verify_response(response[:cut], note, roots)


def test_an_old_answer_to_a_new_question_is_not_taken(authority, log):
    """A replay is over the same bytes, and answers another request: its nonce is another."""
    note = log.note(5).encode()
    old = ask(authority).stamp(note)
    replay = Answering(lambda *_: (200, "application/timestamp-reply", old))
    with pytest.raises(OutsideUnreachable, match="Nonce"):
        ask(authority, url=replay.url).stamp(note)
    replay.close()


@pytest.mark.parametrize(
    "answer",
    [
        (200, "text/html", b"<html>"),
        (500, "application/timestamp-reply", b""),
        (200, "application/timestamp-reply", b""),
        (200, "application/timestamp-reply", b"\x30\x82\xff\xff"),
        (200, "application/timestamp-reply", b"x" * 70_000),
        (302, "text/plain", b"elsewhere"),
    ],
)
def test_answers_that_are_none_are_an_alarm_and_no_more(answer, authority, log):
    server = Answering(lambda *_: answer)
    with pytest.raises(OutsideUnreachable):
        ask(authority, url=server.url).stamp(log.note().encode())
    server.close()


def test_an_authority_that_never_answers_is_given_up_in_time(authority, log):
    hole = BlackHole()
    with pytest.raises(OutsideUnreachable, match=r"no answer within 0\.2 s"):
        HttpAuthority("tsa", f"http://{hole.address}", None, 0.2, read_roots([authority.root])).stamp(b"x")
    hole.close()


def test_what_is_kept_is_read_back_in_pages_and_a_torn_line_is_cut_off(log, tmp_path):
    path = tmp_path / "released.timestamps"
    stamps = FileStamps(path)
    assert stamps.page(0, 10) == ([], 0)
    kept = [Stamped("one" if number % 2 else "two", log.note(number), bytes([number])) for number in range(1, 6)]
    for each in kept:
        stamps.append(each)
    assert stamps.newest() == {"one": 5, "two": 4}
    first, place = stamps.page(0, 3)
    rest, end = stamps.page(place, 3)
    assert (first + rest, end) == (kept, 0)
    for wrong in (1, place + 1, 1 << 40):
        with pytest.raises(ValueError, match="no timestamp at place"):
            stamps.page(wrong, 3)
    with path.open("ab") as file:
        file.write(b'{"authority":"one","chec')
    assert FileStamps(path).page(0, 10) == (kept, 0)
    assert list(read_timestamps(path)) == kept


@pytest.mark.softhsm
def test_a_daemon_has_its_checkpoints_stamped_and_hands_the_tokens_out(authority, foreign, tmp_path):
    daemon = Deployment.create(tmp_path)
    daemon.append(table("timestamps", name="good", url=authority.url, roots=authority.root, interval=1.0))
    daemon.append(table("timestamps", name="false", url=foreign.url, roots=authority.root, interval=1.0))
    stamps, exported = tmp_path / "stamps.jsonl", tmp_path / "exported"
    with daemon.running():
        wait_for((daemon.directory / "anchor" / "released.timestamps").exists)
        assert daemon.client("sign", "digest", "--sha256", "ab" * 32, "--key", "scratch").returncode == 0
        wait_for(lambda: len(list(read_timestamps(daemon.directory / "anchor" / "released.timestamps"))) > 1)
        assert daemon.client("audit", "timestamps", "--output", stamps).returncode == 0
        roots = ("--tsa-root", authority.root)
        checked = daemon.client("audit", "verify", "--timestamps", stamps, *roots)
        assert checked.returncode == 0, checked.stderr
        assert daemon.client("audit", "export", exported).returncode == 0
        (alarm,) = logged(daemon, "anchor_unreachable")[:1]
        assert (alarm["kind"], alarm["anchor"]) == ("timestamp", "false")
    found = list(read_timestamps(stamps))
    assert {each.authority for each in found} == {"good"}
    assert list(read_timestamps(exported / "timestamps.jsonl"))[: len(found)] == found
    sizes = [parse_text(each.checkpoint.partition("\n\n")[0] + "\n").size for each in found]
    assert sizes == sorted(set(sizes))
    assert VerifierKey.parse(daemon.log_vkey.read_text())
    offline = ("verify", "timestamps", stamps, "--log-key", daemon.log_vkey)
    shown = greatseal(*offline, *roots, "--json")
    assert [each["size"] for each in json.loads(shown.stdout)["timestamps"]] == sizes
    assert greatseal(*offline, "--tsa-root", foreign.root).returncode == 6
    assert greatseal(*offline).returncode == 2
    again = ("audit", "verify", "--directory", exported, "--log-key", daemon.log_vkey)
    assert greatseal(*again, "--timestamps", exported / "timestamps.jsonl", *roots).returncode == 0
