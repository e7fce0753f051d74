"""Frames between front and host: what goes in comes out, and junk from either side is refused within bounds."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greatseald.adapters.tokens import frames
from greatseald.adapters.tokens.frames import FrameBuffer, FrameInvalid
from greatseald.domain.tokens import TokenSettings
from greatseald.ports.tokens import NotSigned, Operation, Signed

SIGN = frames.Sign(7, "pkcs11:object=release", "ecdsa-p256-sha256", [Operation(1, b"l" * 32, b"d" * 32)])
RESULTS = frames.Results(7, [Signed(0, b"sig", 1)], [NotSigned(1, True, 6, "why", 2, True, False)], 0.001)


def bodies(data: bytes) -> list[bytes]:
    return list(FrameBuffer().feed(data))


@pytest.mark.parametrize(
    "message",
    [frames.Hello(1, "soft", None), SIGN, frames.FindKey(1, "pkcs11:id=%01"), frames.Ping(3), frames.Stop()],
)
def test_what_a_front_sends_is_what_the_host_gets(message: frames.ToHost):
    (body,) = bodies(frames.encode(message))
    assert frames.decode_to_host(body) == message


@pytest.mark.parametrize(
    "message",
    [
        RESULTS,
        frames.Ready(1, 2, "s", "l", "m", "mo", "1.0", 3, 2, ["ed25519"], ["note"]),
        frames.NotReady(1, locked=True, detail="x"),
        frames.Key(1, b"spki", ["ecdsa-p256-sha256"]),
        frames.KeyRefused(1, "x", locked=False),
        frames.Pong(1),
    ],
)
def test_what_a_host_sends_is_what_the_front_gets(message: frames.FromHost):
    (body,) = bodies(frames.encode(message))
    assert frames.decode_from_host(body) == message


def test_results_come_back_as_the_ports_own_types():
    (body,) = bodies(frames.encode(RESULTS))
    message = frames.decode_from_host(body)
    assert isinstance(message, frames.Results)
    assert isinstance(message.signed[0], Signed)
    assert isinstance(message.failed[0], NotSigned)


def test_the_length_is_four_bytes_big_endian():
    frame = frames.encode(frames.Ping(1))
    assert struct.unpack(">I", frame[:4]) == (len(frame) - 4,)


@given(st.lists(st.integers(0, 1 << 63), min_size=1, max_size=20), st.integers(1, 7))
def test_frames_survive_being_cut_anywhere(numbers: list[int], step: int):
    stream = b"".join(frames.encode(frames.Ping(number)) for number in numbers)
    buffer = FrameBuffer()
    seen = [
        frames.decode_to_host(body)
        for at in range(0, len(stream), step)
        for body in buffer.feed(stream[at : at + step])
    ]
    assert seen == [frames.Ping(number) for number in numbers]


@pytest.mark.parametrize("length", [0, frames.MAX_FRAME_BYTES + 1, 0xFFFFFFFF])
def test_a_frame_that_claims_too_much_or_nothing_is_refused_before_it_is_read(length: int):
    with pytest.raises(FrameInvalid):
        bodies(struct.pack(">I", length))


def test_a_message_that_fits_no_frame_is_not_sent():
    with pytest.raises(FrameInvalid):
        frames.encode(frames.FindKey(1, "x" * frames.MAX_FRAME_BYTES))


@given(st.binary(max_size=300))
def test_junk_is_refused_and_never_anything_else(data: bytes):
    for decode in (frames.decode_to_host, frames.decode_from_host):
        try:
            decode(data)
        except FrameInvalid:
            continue


def test_the_two_directions_do_not_mix():
    (body,) = bodies(frames.encode(RESULTS))
    with pytest.raises(FrameInvalid):
        frames.decode_to_host(body)


def test_deep_nesting_is_refused():
    with pytest.raises(FrameInvalid):
        frames.decode_to_host(b"\x91" * 100_000 + b"\x00")


def test_a_host_gets_its_settings_without_the_environment_of_its_token():
    settings = TokenSettings(
        name="soft", uri="pkcs11:token=x", module=Path("/m.so"), state_dir=Path("/s"), environment={"A": "B"},
        pin_file=Path("/p"), sessions=3, operation_timeout=2.5, lockout="none", init_args="a=b",
    )  # fmt: skip
    sent = frames.to_host_settings(settings)
    assert b"\xa1A" not in msgspec.msgpack.encode(sent)
    got = frames.from_host_settings(sent)
    assert got == TokenSettings(
        name="soft", uri="pkcs11:token=x", module=Path("/m.so"), state_dir=Path("/s"),
        pin_file=Path("/p"), sessions=3, operation_timeout=2.5, lockout="none", init_args="a=b",
    )  # fmt: skip
