"""Proofs are refused unless they prove exactly what is claimed; the tlog-proof text is read strictly."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greatseal.checkpoint import EMPTY_ROOT
from greatseal.tlog import (
    RootHash,
    TlogProof,
    leaf_hash,
    node_hash,
    parse_tlog_proof,
    split_hashes,
    verify_consistency,
    verify_inclusion,
)
from greatseal.verification import ProofInvalid
from greatseald.domain.tree import Tree

# A published inclusion and consistency proof over the eight leaves of Certificate Transparency's tests.
LEAVES = [
    leaf_hash(bytes.fromhex(each))
    for each in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOT_3 = bytes.fromhex("aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77")
ROOT_7 = bytes.fromhex("ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c")
ROOT_8 = bytes.fromhex("5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328")
PATH_5_OF_8 = [
    bytes.fromhex("bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"),
    bytes.fromhex("ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"),
    bytes.fromhex("d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"),
]


def build(count: int) -> tuple[Tree, list[bytes], list[bytes]]:
    tree = Tree(lambda _level, _index: None)
    leaves = [leaf_hash(b"%d" % each) for each in range(count)]
    roots = [tree.root()]
    for leaf in leaves:
        tree.append([leaf])
        roots.append(tree.root())
    return tree, leaves, roots


def test_the_published_inclusion_proof_verifies():
    verify_inclusion(5, 8, LEAVES[5], PATH_5_OF_8, ROOT_8)


def test_a_published_root_is_recomputed_from_its_entries():
    tree = RootHash()
    assert tree.root() == EMPTY_ROOT
    for leaf in LEAVES[:7]:
        tree.append(leaf)
    assert (tree.size, tree.root()) == (7, ROOT_7)
    tree.append(LEAVES[7])
    assert tree.root() == ROOT_8


def test_a_tree_of_three_is_what_the_rfc_says():
    assert node_hash(node_hash(LEAVES[0], LEAVES[1]), LEAVES[2]) == ROOT_3
    assert leaf_hash(b"") == hashlib.sha256(b"\x00").digest()


def test_no_other_index_size_leaf_or_root_passes_with_a_true_proof():
    tree, leaves, roots = build(33)
    for size in range(1, 34):
        prover = tree.prover(size)
        for index in range(size):
            proof = split_hashes(prover.inclusion(index))
            verify_inclusion(index, size, leaves[index], proof, roots[size])
            for other in range(size + 1):
                if other != index:
                    with pytest.raises(ProofInvalid):
                        verify_inclusion(other, size, leaves[index], proof, roots[size])
            for wrong_leaf, wrong_root in ((leaves[index - 1], roots[size]), (leaves[index], roots[size - 1])):
                if (wrong_leaf, wrong_root) != (leaves[index], roots[size]):
                    with pytest.raises(ProofInvalid):
                        verify_inclusion(index, size, wrong_leaf, proof, wrong_root)


def test_an_inclusion_proof_that_was_cut_lengthened_or_reordered_is_refused():
    tree, leaves, roots = build(21)
    for index in range(21):
        proof = split_hashes(tree.prover(21).inclusion(index))
        for wrong in (proof[:-1], proof[1:], (*proof, b"\0" * 32), (b"\0" * 32, *proof), proof[::-1], ()):
            if wrong != proof:
                with pytest.raises(ProofInvalid):
                    verify_inclusion(index, 21, leaves[index], wrong, roots[21])


def test_every_flipped_bit_of_a_consistency_proof_is_noticed():
    tree, _, roots = build(23)
    proof = tree.prover(23).consistency(13, 23)
    verify_consistency(13, 23, proof, roots[13], roots[23])
    for place, each in enumerate(proof):
        for byte in (0, 31):
            changed = bytearray(each)
            changed[byte] ^= 0x10
            with pytest.raises(ProofInvalid):
                verify_consistency(13, 23, [*proof[:place], bytes(changed), *proof[place + 1 :]], roots[13], roots[23])


def test_a_consistency_proof_fits_only_its_two_sizes():
    tree, _, roots = build(20)
    for new in range(1, 21):
        for old in range(1, new + 1):
            proof = tree.prover(new).consistency(old, new)
            verify_consistency(old, new, proof, roots[old], roots[new])
            for wrong in ([*proof, b"\0" * 32], proof[:-1]):
                if wrong != proof:
                    with pytest.raises(ProofInvalid):
                        verify_consistency(old, new, wrong, roots[old], roots[new])
            with pytest.raises(ProofInvalid):
                verify_consistency(old, new, proof, roots[old - 1], roots[new])
            with pytest.raises(ProofInvalid):
                verify_consistency(old, new, proof, roots[old], roots[new - 1] if new > old else roots[0])


def test_a_forked_log_is_called_that():
    with pytest.raises(ProofInvalid, match="forked"):
        verify_consistency(7, 7, [], ROOT_7, ROOT_8)


def test_a_log_that_shrank_is_refused():
    with pytest.raises(ProofInvalid, match="shrink"):
        verify_consistency(8, 7, [], ROOT_8, ROOT_7)


def test_everything_extends_the_empty_log_and_only_the_true_one():
    verify_consistency(0, 8, [], EMPTY_ROOT, ROOT_8)
    with pytest.raises(ProofInvalid):
        verify_consistency(0, 8, [], ROOT_7, ROOT_8)
    with pytest.raises(ProofInvalid, match="is empty"):
        verify_consistency(0, 8, [ROOT_3], EMPTY_ROOT, ROOT_8)


@pytest.mark.parametrize("size", [2**63, -1, 0])
def test_sizes_out_of_bounds_are_refused(size: int):
    with pytest.raises(ProofInvalid, match="has no leaf"):
        verify_inclusion(0, size, LEAVES[0], [], ROOT_8)


@pytest.mark.parametrize("index", [-1, 8, 2**63])
def test_an_index_outside_the_tree_is_refused(index: int):
    with pytest.raises(ProofInvalid, match="has no leaf"):
        verify_inclusion(index, 8, LEAVES[5], PATH_5_OF_8, ROOT_8)


def test_a_hash_of_another_length_is_refused():
    with pytest.raises(ProofInvalid, match="32 bytes"):
        verify_inclusion(5, 8, LEAVES[5], [*PATH_5_OF_8[:2], PATH_5_OF_8[2] + b"\0"], ROOT_8)
    with pytest.raises(ProofInvalid, match="hashes of 32"):
        split_hashes(b"\0" * 33)
    with pytest.raises(ProofInvalid):
        split_hashes(b"\0" * 32 * 64)


NOTE = "greatseal.local/log\n8\nXcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=\n\n— greatseal.local/log AAAAAAA=\n"


def test_the_tlog_proof_text_is_that_of_the_specification():
    text = TlogProof(5, tuple(PATH_5_OF_8), NOTE).text()
    assert text.split("\n")[:3] == [
        "c2sp.org/tlog-proof@v1",
        "index 5",
        "vBoGQ7EuTS18d5GPROD095qDi2z57FtcKD4fTYhZnms=",
    ]
    assert text.endswith("\n\n" + NOTE)
    assert parse_tlog_proof(text) == TlogProof(5, tuple(PATH_5_OF_8), NOTE)


def test_a_proof_without_hashes_is_of_a_tree_of_one():
    assert parse_tlog_proof(f"c2sp.org/tlog-proof@v1\nindex 0\n\n{NOTE}") == TlogProof(0, (), NOTE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "c2sp.org/tlog-proof@v1",
        "c2sp.org/tlog-proof@v1\n\nnote\n",
        "c2sp.org/tlog-proof@v2\nindex 0\n\nnote\n",
        "c2sp.org/tlog-proof@v1\nindex 00\n\nnote\n",
        "c2sp.org/tlog-proof@v1\nindex 007\n\nnote\n",
        "c2sp.org/tlog-proof@v1\nindex -1\n\nnote\n",
        "c2sp.org/tlog-proof@v1\nindex \u0661\n\nnote\n",
        "c2sp.org/tlog-proof@v1\nindex 9223372036854775808\n\nnote\n",
        "c2sp.org/tlog-proof@v1\nindex 0 \n\nnote\n",
        "c2sp.org/tlog-proof@v1\nindex 0\nAAAA\n\nnote\n",
        "c2sp.org/tlog-proof@v1\nindex 0\nXcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyh=\n\nnote\n",
        "c2sp.org/tlog-proof@v1\nindex 0\nXcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz_Nw7_RgQyg=\n\nnote\n",
        "c2sp.org/tlog-proof@v1\nindex 0\n\n",
        "c2sp.org/tlog-proof@v1\r\nindex 0\r\n\r\nnote\r\n",
        "c2sp.org/tlog-proof@v1\nindex 0\n" + "XcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=\n" * 64 + "\nnote\n",
        "c2sp.org/tlog-proof@v1\nindex 0\n\n" + "x" * 1_100_000,
    ],
)
def test_a_malformed_tlog_proof_is_refused(text: str):
    with pytest.raises(ProofInvalid):
        parse_tlog_proof(text)


def test_an_extra_line_is_refused_because_nothing_authenticates_it():
    with pytest.raises(ProofInvalid, match="nothing authenticates"):
        parse_tlog_proof(f"c2sp.org/tlog-proof@v1\nextra AAAA\nindex 0\n\n{NOTE}")


@given(st.text() | st.text().map(lambda tail: "c2sp.org/tlog-proof@v1\nindex " + tail))
def test_no_text_makes_the_parser_raise_anything_else(text: str):
    try:
        proof = parse_tlog_proof(text)
    except ProofInvalid:
        return
    assert proof.text() == text


@given(
    st.integers(-1, 2**64),
    st.integers(-1, 2**64),
    st.lists(st.binary(min_size=31, max_size=33), max_size=70),
    st.binary(min_size=32, max_size=32),
)
def test_no_proof_from_a_stranger_verifies_or_raises_anything_else(
    first: int, second: int, proof: list[bytes], root: bytes
):
    with pytest.raises(ProofInvalid):
        verify_inclusion(first, second, b"\1" * 32, proof, root)
    if first > 0 and not (first == second and not proof):
        with pytest.raises(ProofInvalid):
            verify_consistency(first, second, proof, b"\1" * 32, root)
