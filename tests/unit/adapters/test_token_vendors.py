"""What vendors' modules give where the specification wants something else."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, utils
from hypothesis import given
from hypothesis import strategies as st

from greatseald.adapters.tokens.vendors import decode_ec_point, ecdsa_to_der, profile_of

POINT = ec.derive_private_key(7, ec.SECP256R1()).public_key().public_numbers()
X, Y = POINT.x.to_bytes(32, "big"), POINT.y.to_bytes(32, "big")
BARE = b"\x04" + X + Y


@pytest.mark.parametrize(
    "data", [b"\x04\x41" + BARE, BARE, b"\x03\x42\x00" + BARE, b"\x04\x81\x41" + BARE, b"\x04\x40" + BARE, X + Y]
)
def test_points_are_found_in_every_wrapping_that_modules_use(data: bytes):
    assert decode_ec_point(data, 32) == BARE


def test_a_compressed_point_is_found_too():
    compressed = bytes((2 + (POINT.y & 1),)) + X
    assert decode_ec_point(b"\x04\x21" + compressed, 32) == compressed


@pytest.mark.parametrize("data", [b"", b"\x04", b"\x04\x41" + b"\x05" + X + Y[:20], BARE[:-3]])
def test_what_holds_no_point_gives_none(data: bytes):
    assert decode_ec_point(data, 32) is None


@given(st.integers(1, (1 << 256) - 1), st.integers(1, (1 << 256) - 1))
def test_r_and_s_become_the_der_that_everybody_reads(r: int, s: int):
    raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    assert ecdsa_to_der(raw, 32) == utils.encode_dss_signature(r, s)


@given(st.integers(1, (1 << 384) - 1), st.integers(1, (1 << 384) - 1))
def test_the_same_for_p384(r: int, s: int):
    raw = r.to_bytes(48, "big") + s.to_bytes(48, "big")
    assert ecdsa_to_der(raw, 48) == utils.encode_dss_signature(r, s)


def test_shorter_halves_and_der_itself_are_understood():
    assert ecdsa_to_der(b"\x01" * 31 + b"\x02" * 31, 32) == utils.encode_dss_signature(
        int.from_bytes(b"\x01" * 31, "big"), int.from_bytes(b"\x02" * 31, "big")
    )
    der = utils.encode_dss_signature((1 << 255) + 5, (1 << 254) + 9)
    assert ecdsa_to_der(der, 32) == der


@pytest.mark.parametrize("data", [b"", b"\x01" * 65, b"\x30" * 71, b"\x01" * 128, b"\x30\x45" + b"\x02" * 69])
def test_what_is_no_signature_gives_none(data: bytes):
    assert ecdsa_to_der(data, 32) is None


def test_an_unknown_vendor_is_taken_to_follow_the_specification():
    assert profile_of("Nobody", "X").max_sessions >= 16
    assert profile_of("Yubico", "YubiHSM 2").keep_alive < 15
