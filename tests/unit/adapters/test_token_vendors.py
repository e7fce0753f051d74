"""What vendors' modules give where the specification wants something else."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, utils
from hypothesis import given
from hypothesis import strategies as st

from greatseald.adapters.tokens.vendors import decode_ec_point, ecdsa_candidates, profile_of

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


@given(st.sampled_from([32, 48, 66]), st.data())
def test_r_and_s_become_the_der_that_everybody_reads(size: int, data: st.DataObject):
    r, s = (data.draw(st.integers(1, (1 << 8 * size - 7) - 1)) for _ in "rs")
    expected = utils.encode_dss_signature(r, s)
    assert ecdsa_candidates(r.to_bytes(size, "big") + s.to_bytes(size, "big"), size) == (expected,)


@given(st.sampled_from([32, 48, 66]), st.data())
def test_signatures_without_leading_zeroes_have_the_right_reading_among_few(size: int, data: st.DataObject):
    r, s = (data.draw(st.binary(min_size=size - 2, max_size=size).filter(lambda half: half[:1] > b"\0")) for _ in "rs")
    candidates = ecdsa_candidates(r + s, size)
    assert utils.encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big")) in candidates
    assert len(candidates) <= 5


@pytest.mark.parametrize("size", [32, 48, 66])
def test_der_itself_is_understood(size: int):
    der = utils.encode_dss_signature((1 << 8 * size - 8) + 5, (1 << 8 * size - 9) + 9)
    assert ecdsa_candidates(der, size) == (der,)


@pytest.mark.parametrize("data", [b"", b"\x01" * 65, b"\x30" * 71, b"\x01" * 128, b"\x30\x45" + b"\x02" * 69])
def test_what_is_no_signature_gives_none(data: bytes):
    assert ecdsa_candidates(data, 32) == ()


def test_an_unknown_vendor_is_taken_to_follow_the_specification():
    assert profile_of("Nobody", "X").max_sessions >= 16
    assert profile_of("Yubico", "YubiHSM 2").keep_alive < 15
