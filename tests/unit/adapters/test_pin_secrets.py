"""PINs in memory, and the table of what a latch lets an operator do."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from greatseald.adapters.tokens.ckr import CKR, is_new_pin_refused
from greatseald.adapters.tokens.device import PinRules, Tries
from greatseald.adapters.tokens.latch import PinAttemptForbidden, PinLatch, RetryCounter
from greatseald.adapters.tokens.secret import MAX_PIN_BYTES, RefusedPins, Secret, one_line


def secret(text: str) -> Secret:
    return Secret(bytearray(text.encode()))


def test_a_secret_shows_itself_nowhere_and_is_gone_once_wiped():
    data = bytearray(b"123456")
    pin = Secret(data)
    assert "123456" not in f"{pin!r} {pin}"
    with pytest.raises(TypeError):
        pickle.dumps(pin)
    pointer, copy = pin.pointer(), pin.copy()
    assert bytes(pointer) == b"123456"
    pin.wipe()
    assert data == bytearray(6)
    assert bytes(pointer) == bytes(6), "the C side sees the same bytes, not a copy"
    assert copy == secret("123456") != pin


@pytest.mark.parametrize(
    ("line", "pin"), [(b"1234", b"1234"), (b"1234\n", b"1234"), (b"1234\r\n", b"1234"), (b" 1 \n", b" 1 ")]
)
def test_one_line_is_a_pin_and_its_buffer_is_wiped(line: bytes, pin: bytes):
    buffer = bytearray(line) + bytearray(4)
    assert one_line(buffer, len(line)) == pin
    assert not any(buffer)


@pytest.mark.parametrize("line", [b"", b"\n", b"\r\n", b"12\n34\n", b"12\x0034", b"x" * (MAX_PIN_BYTES + 1)])
def test_what_is_no_line_is_no_pin_and_the_message_does_not_quote_it(line: bytes):
    buffer = bytearray(line)
    with pytest.raises(ValueError, match=r"empty|no single line") as error:
        one_line(buffer, len(line))
    assert "12" not in str(error.value)
    assert not any(buffer)


def test_refused_pins_are_known_again_until_they_are_forgotten():
    refused = RefusedPins()
    for number in range(20):
        refused.add(secret(f"wrong-{number}"))
    assert secret("wrong-19") in refused
    assert secret("wrong-0") not in refused, "only the last ones: an operator who tries more has looked at the token"
    assert secret("right") not in refused
    refused.forget()
    assert secret("wrong-19") not in refused


def test_a_length_that_the_token_does_not_have_breaks_its_rules():
    rules = PinRules(6, 8)
    assert not rules.broken_by(secret("123456"))
    assert "5 bytes" in rules.broken_by(secret("12345"))
    assert "6 to 8" in rules.broken_by(secret("123456789"))
    assert not PinRules().broken_by(secret("1"))


def test_tries_are_told_in_words():
    assert str(Tries(RetryCounter.LOW, 2)) == "2 tries are left"
    assert str(Tries(RetryCounter.FINAL_TRY, 1)) == "1 try is left"
    assert str(Tries(RetryCounter.FINAL_TRY)) == "one try is left"
    assert str(Tries(RetryCounter.LOCKED, 0)) == "0 tries are left"


@pytest.mark.parametrize("value", [CKR.PIN_INVALID, CKR.PIN_LEN_RANGE, CKR.PIN_TOO_WEAK])
def test_what_is_said_of_a_new_pin_is_not_said_of_the_old_one(value: CKR):
    assert is_new_pin_refused(value)
    assert not is_new_pin_refused(CKR.PIN_INCORRECT)


@pytest.fixture
def latch(tmp_path: Path) -> PinLatch:
    return PinLatch(tmp_path, "soft", "the operator's hands", by_operator=True)


@pytest.mark.parametrize(
    ("counter", "final_try", "allowed"),
    [
        (RetryCounter.FULL, False, True),
        (RetryCounter.LOW, False, True),
        (RetryCounter.FINAL_TRY, False, False),
        (RetryCounter.FINAL_TRY, True, True),
        (RetryCounter.LOCKED, False, False),
        (RetryCounter.LOCKED, True, False),
    ],
)
@pytest.mark.parametrize("before", ["nothing", "cut off", "refused"])
def test_an_operators_attempt_is_allowed_by_the_counter_whatever_became_of_the_last(
    latch: PinLatch, counter: RetryCounter, before: str, *, final_try: bool, allowed: bool
):
    if before != "nothing":
        latch.before_operator_attempt(RetryCounter.FULL, final_try=False)
    if before == "refused":
        latch.refused("CKR_PIN_INCORRECT")
    said = latch.last_attempt()
    assert {"nothing": "", "cut off": "may have cost a try", "refused": "CKR_PIN_INCORRECT"}[before] in said
    if not allowed:
        with pytest.raises(PinAttemptForbidden):
            latch.before_operator_attempt(counter, final_try=final_try)
        assert latch.last_attempt() == said, "a refusal leaves the record as it is"
        return
    latch.before_operator_attempt(counter, final_try=final_try)
    assert "may have cost a try" in latch.last_attempt(), "noted before the login"
    latch.succeeded()
    assert latch.last_attempt() == ""
