"""The PIN attempt latch, and where the PIN may lie: a wrong PIN is tried once per operator action."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from greatseald.adapters.tokens.latch import LatchUnusable, PinAttemptForbidden, PinLatch, RetryCounter
from greatseald.adapters.tokens.pin import MAX_PIN_BYTES, PinUnavailable, read_pin
from greatseald.domain.tokens import TokenSettings

FULL, LOW = RetryCounter.FULL, RetryCounter.LOW


@pytest.fixture
def latch(tmp_path: Path) -> PinLatch:
    return PinLatch(tmp_path, "soft", "/etc/pin")


def test_the_attempt_is_on_the_disk_before_the_login(latch: PinLatch):
    latch.before_attempt(FULL, never_locks=False)
    assert latch.path.exists()
    assert latch.path.stat().st_mode & 0o777 == 0o600
    latch.succeeded()
    assert not latch.path.exists()


def test_a_refused_pin_is_never_tried_again_until_the_latch_is_removed(latch: PinLatch):
    latch.before_attempt(FULL, never_locks=True)
    message = str(latch.refused("CKR_PIN_INCORRECT"))
    assert "CKR_PIN_INCORRECT" in message
    assert str(latch.path) in message
    assert "/etc/pin" in message
    for counter in RetryCounter:
        with pytest.raises(PinAttemptForbidden):
            latch.before_attempt(counter, never_locks=True)
    with pytest.raises(PinAttemptForbidden):
        latch.refuse_if_closed()
    latch.path.unlink()
    latch.refuse_if_closed()
    latch.before_attempt(LOW, never_locks=False)


def test_a_login_that_was_cut_off_is_tried_once_more_if_the_counter_is_full(latch: PinLatch):
    latch.before_attempt(FULL, never_locks=False)
    latch.before_attempt(FULL, never_locks=False)
    with pytest.raises(PinAttemptForbidden, match="without an answer"):
        latch.before_attempt(FULL, never_locks=False)


def test_a_login_that_was_cut_off_is_not_tried_again_if_a_try_is_gone(latch: PinLatch):
    latch.before_attempt(FULL, never_locks=False)
    with pytest.raises(PinAttemptForbidden, match="remove"):
        latch.before_attempt(LOW, never_locks=False)


def test_a_device_that_never_locks_may_be_tried_again_after_every_cut(latch: PinLatch):
    for _ in range(5):
        latch.before_attempt(LOW, never_locks=True)


@pytest.mark.parametrize("counter", [RetryCounter.FINAL_TRY, RetryCounter.LOCKED])
@pytest.mark.parametrize("never_locks", [True, False])
def test_the_last_try_is_never_taken(latch: PinLatch, counter: RetryCounter, never_locks: bool):
    with pytest.raises(PinAttemptForbidden):
        latch.before_attempt(counter, never_locks=never_locks)
    assert not latch.path.exists()


def test_half_a_latch_counts_as_an_attempt_of_which_nothing_is_known(latch: PinLatch):
    latch.path.write_bytes(b'{"attempted_at": "2026')
    with pytest.raises(PinAttemptForbidden):
        latch.before_attempt(FULL, never_locks=False)


def test_without_a_durable_latch_no_login_is_tried(latch: PinLatch):
    (latch.path.parent / f".{latch.path.name}.new").mkdir()
    with pytest.raises(LatchUnusable, match="no login is tried"):
        latch.before_attempt(FULL, never_locks=True)


# -- the PIN itself -------------------------------------------------------------------------------


def settings(**changes: object) -> TokenSettings:
    base: dict[str, object] = {"name": "soft", "uri": "pkcs11:", "module": Path("/m"), "state_dir": Path("/s")}
    return TokenSettings(**(base | changes))  # type: ignore[arg-type]


def pin_file(tmp_path: Path, content: bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "pin"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("content", "pin"),
    [(b"1234", b"1234"), (b"1234\n", b"1234"), (b"12 34\r\n", b"12 34"), ("ü€".encode(), "ü€".encode())],
)
def test_a_trailing_newline_is_not_part_of_the_pin(tmp_path: Path, content: bytes, pin: bytes):
    assert read_pin(settings(pin_file=pin_file(tmp_path, content))) == pin


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_pin_that_others_can_read_is_refused(tmp_path: Path, mode: int):
    with pytest.raises(PinUnavailable, match="chmod 600"):
        read_pin(settings(pin_file=pin_file(tmp_path, b"1234", mode)))


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * (MAX_PIN_BYTES + 1), b"12\n34\n", b"12\x0034"])
def test_what_is_no_pin_is_refused_without_being_repeated(tmp_path: Path, content: bytes):
    with pytest.raises(PinUnavailable) as caught:
        read_pin(settings(pin_file=pin_file(tmp_path, content)))
    assert "34" not in str(caught.value).replace(str(tmp_path), "")


def test_a_missing_file_a_directory_and_a_pipe_are_refused_and_never_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "pipe"):
        with pytest.raises(PinUnavailable, match=str(path)):
            read_pin(settings(pin_file=path))


@pytest.mark.root
def test_another_users_pin_file_is_refused(tmp_path: Path):
    path = pin_file(tmp_path, b"1234")
    if os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    os.chown(path, 12345, -1)
    with pytest.raises(PinUnavailable, match="another user"):
        read_pin(settings(pin_file=path))


def test_a_credential_is_read_from_the_service_managers_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "soft-pin").write_bytes(b"4321\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_pin(settings(pin_credential="soft-pin")) == b"4321"
    for name in ("../soft-pin", "a/b", ".", ".."):
        with pytest.raises(PinUnavailable, match="plain name"):
            read_pin(settings(pin_credential=name))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(PinUnavailable, match="LoadCredential"):
        read_pin(settings(pin_credential="soft-pin"))


def test_two_sources_are_refused_and_none_means_no_pin(tmp_path: Path):
    assert read_pin(settings()) is None
    with pytest.raises(PinUnavailable, match="choose one"):
        read_pin(settings(pin_file=tmp_path / "pin", pin_credential="x"))
