"""The seal on tree heads."""

from __future__ import annotations

import pytest

from greatseald.domain.heads import HeadForged, HeadSeal

SEAL = HeadSeal(b"k" * 32)
ROOT, FRONTIER = b"r" * 32, b"f" * 64


def test_a_sealed_head_passes() -> None:
    SEAL.check(7, ROOT, FRONTIER, SEAL.mac(7, ROOT, FRONTIER))


@pytest.mark.parametrize(
    ("size", "root", "frontier", "seal"),
    [
        (8, ROOT, FRONTIER, SEAL),
        (7, b"x" * 32, FRONTIER, SEAL),
        (7, ROOT, b"f" * 32, SEAL),
        (7, ROOT, FRONTIER, HeadSeal(b"o" * 32)),
    ],
)
def test_an_edited_head_is_refused(size: int, root: bytes, frontier: bytes, seal: HeadSeal) -> None:
    with pytest.raises(HeadForged):
        seal.check(size, root, frontier, SEAL.mac(7, ROOT, FRONTIER))


def test_the_key_does_not_show() -> None:
    assert "kkkk" not in repr(SEAL)


@pytest.mark.parametrize("authority", [-1, 0, 5])
def test_a_head_is_sealed_with_where_its_newest_authority_stands(authority: int) -> None:
    mac = SEAL.mac(7, ROOT, FRONTIER, authority)
    SEAL.check(7, ROOT, FRONTIER, mac, authority)
    for other in {-1, 0, 4, 5, 6, None} - {authority}:
        with pytest.raises(HeadForged):
            SEAL.check(7, ROOT, FRONTIER, mac, other)


@pytest.mark.parametrize("authority", [-2, 7, 8])
def test_a_head_that_names_an_authority_beyond_its_log_is_refused(authority: int) -> None:
    with pytest.raises(HeadForged, match="which it does not have"):
        SEAL.check(7, ROOT, FRONTIER, b"m" * 32, authority)
