"""The bytes that are signed for a model, and which paths may be left out."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greatseal.oms.errors import ModelRefused
from greatseal.oms.listing import GIT_PATHS, IgnoredPaths, normalised
from greatseal.oms.manifest import ModelManifest
from greatseal.statement import Resource, parse_statement


def manifest_of(*names: str, ignored: tuple[str, ...] = ("model.sig",)) -> ModelManifest:
    resources = tuple(Resource(name, hashlib.sha256(name.encode()).hexdigest()) for name in sorted(names))
    return ModelManifest("llama", resources, tuple(sorted(IgnoredPaths.of(ignored))), 1)


def test_payload_is_exactly_these_bytes():
    digest = hashlib.sha256(b"").hexdigest()
    root = hashlib.sha256(bytes.fromhex(digest)).hexdigest()
    manifest = ModelManifest("größe", (Resource("a/b", digest),), ("model.sig",), 0)
    assert (
        manifest.payload()
        == (
            '{"_type":"https://in-toto.io/Statement/v1","predicate":{"resources":[{"algorithm":"sha256",'
            f'"digest":"{digest}","name":"a/b"}}],"serialization":{{"allow_symlinks":false,"hash_type":"sha256",'
            '"ignore_paths":["model.sig"],"method":"files"}},"predicateType":"https://model_signing/signature/v1.0",'
            f'"subject":[{{"digest":{{"sha256":"{root}"}},"name":"größe"}}]}}'
        ).encode()
    )


def test_root_is_over_raw_digests_in_the_order_of_path_strings():
    manifest = manifest_of("a/b", "a-b", "a.b", "a", "Z")
    assert [each.name for each in manifest.resources] == ["Z", "a", "a-b", "a.b", "a/b"]
    raw = b"".join(hashlib.sha256(name).digest() for name in (b"Z", b"a", b"a-b", b"a.b", b"a/b"))
    assert manifest.root == hashlib.sha256(raw).hexdigest()


@given(st.sets(st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\\x7f"), min_size=1)))
def test_every_payload_is_one_the_daemon_accepts(names: set[str]):
    names = {name for name in names if name not in {".", ".."}} or {"x"}
    statement = parse_statement(manifest_of(*names).payload())
    assert statement.manifest is not None
    assert {each.name for each in statement.manifest.resources} == names


def test_ignored_paths_stand_in_the_payload_sorted_and_once():
    predicate = json.loads(manifest_of("a", ignored=("./x/", "model.sig", "x", ".git")).payload())["predicate"]
    assert predicate["serialization"]["ignore_paths"] == [*GIT_PATHS, "model.sig", "x"]


@pytest.mark.parametrize(("path", "name"), [("a/", "a"), ("./a//b/./", "a/b"), (".cache", ".cache"), ("a b", "a b")])
def test_an_ignored_path_is_taken_in_its_plainest_form(path: str, name: str):
    assert normalised(path) == name


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/etc", "absolute"),
        ("../x", r"'\.\.'"),
        ("a/../b", r"'\.\.'"),
        ("", "itself"),
        (".", "itself"),
        ("./", "itself"),
        ("a\\b", "backslash"),
        ("a\nb", "control"),
        ("\udcff", "Unicode"),
    ],
)
def test_an_ignored_path_that_cannot_be_meant_is_refused(path: str, why: str):
    with pytest.raises(ModelRefused, match=why):
        normalised(path)
