"""Statements: one strict reader, whose errors point at the fault; a model's manifest is checked whole."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greatseal.dsse import (
    Envelope,
    EnvelopeSignature,
    envelope_from_dict,
    envelope_from_json,
    pae,
)
from greatseal.statement import (
    MAX_STATEMENT_BYTES,
    OMS_PREDICATE_TYPE,
    STATEMENT_TYPE,
    Resource,
    check_resource_name,
    parse_statement,
)
from greatseal.verification import EnvelopeInvalid, StatementInvalid
from sample_log import as_json, oms_document

PROVENANCE = {
    "_type": STATEMENT_TYPE,
    "subject": [{"name": "app", "digest": {"sha256": "ab" * 32}}, {"digest": {"gitCommit": "cd" * 20}}],
    "predicateType": "https://slsa.dev/provenance/v1",
    "predicate": {"buildDefinition": {"buildType": "x", "n": 1.5, "list": [None, True, {"a": []}]}},
}


def reroot(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the subject's digest made to fit its resources again."""
    digests = "".join(each["digest"] for each in document["predicate"]["resources"])
    document["subject"][0]["digest"]["sha256"] = hashlib.sha256(bytes.fromhex(digests)).hexdigest()
    return document


def path_of_fault(document: Any, **options: bool) -> str:
    with pytest.raises(StatementInvalid) as caught:
        parse_statement(document if isinstance(document, bytes) else as_json(document), **options)
    assert str(caught.value).startswith(caught.value.path)
    return caught.value.path


def test_a_models_statement_is_read_with_its_manifest():
    statement = parse_statement(as_json(oms_document(["a-b", "a/b", "b/ü", "empty"], name="my model")))
    assert statement.predicate_type == OMS_PREDICATE_TYPE
    assert [each.name for each in statement.subjects] == ["my model"]
    assert statement.manifest is not None
    assert statement.manifest.root == statement.subjects[0].digest["sha256"]
    assert statement.manifest.resources[1] == Resource("a/b", hashlib.sha256(b"a/b").hexdigest())
    assert "model.sig" in statement.manifest.ignore_paths


def test_any_other_statement_is_read_without_one():
    statement = parse_statement(as_json(PROVENANCE))
    assert statement.manifest is None
    assert statement.predicate["buildDefinition"]["n"] == 1.5
    assert [each.name for each in statement.subjects] == ["app", ""]


def test_annotations_may_stand_in_subjects_and_resources():
    document = oms_document()
    document["subject"][0]["annotations"] = {"stage": "release"}
    document["predicate"]["resources"][0]["annotations"] = {"role": ["weights"]}
    assert parse_statement(as_json(document)).manifest is not None


def test_whitespace_and_the_order_of_fields_are_the_authors():
    document = oms_document()
    text = json.dumps(dict(reversed(document.items())), indent=2).encode()
    assert parse_statement(text).manifest == parse_statement(as_json(document)).manifest


class TestTheManifest:
    def test_out_of_order_is_refused_at_the_file_that_is_too_late(self):
        document = reroot(oms_document(["a", "c", "b"]))
        assert path_of_fault(document) == "predicate.resources[2].name"

    def test_order_is_by_path_string_not_by_parts(self):
        assert path_of_fault(oms_document(["a/b", "a-b"])) == "predicate.resources[1].name"
        assert parse_statement(as_json(oms_document(["a-b", "a/b"]))).manifest

    def test_order_of_letters_beyond_ascii_is_that_of_their_utf8(self):
        names = sorted(["Ω", "a", "ÿ", "\uffee", "\U0001f600", "z"], key=str.encode)
        assert parse_statement(as_json(oms_document(names))).manifest

    def test_another_order_is_read_where_the_caller_admits_it(self):
        document = oms_document(["a/b", "a-b"])
        statement = parse_statement(as_json(document), any_order=True)
        assert statement.manifest is not None
        assert [each.name for each in statement.manifest.resources] == ["a/b", "a-b"]

    @pytest.mark.parametrize("any_order", [False, True])
    def test_a_file_that_is_listed_twice_is_refused(self, any_order: bool):
        document = oms_document(["a", "b", "b"])
        with pytest.raises(StatementInvalid, match=r"resources\[2\]\.name: stands there twice"):
            parse_statement(as_json(document), any_order=any_order)

    def test_a_file_that_is_listed_twice_apart_is_refused(self):
        assert path_of_fault(oms_document(["b", "a", "b"]), any_order=True) == "predicate.resources[2].name"

    def test_another_root_is_refused(self):
        document = oms_document()
        document["predicate"]["resources"][1]["digest"] = "00" * 32
        assert path_of_fault(document) == "subject[0].digest.sha256"

    def test_a_root_over_another_order_is_refused(self):
        document = oms_document(["a", "b"])
        document["predicate"]["resources"].reverse()
        assert path_of_fault(document, any_order=True) == "subject[0].digest.sha256"

    def test_no_files_are_no_model(self):
        assert path_of_fault(reroot(oms_document([]))) == "predicate.resources"

    @pytest.mark.parametrize(
        "name",
        ["", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/../b", "./a", "a/.", "a\\b", "a\0b", "a\nb", "x" * 4097],
    )
    def test_names_that_leave_the_model_or_mislead_are_refused(self, name: str):
        assert path_of_fault(oms_document([name])) == "predicate.resources[0].name"
        with pytest.raises(StatementInvalid):
            check_resource_name(name)

    @pytest.mark.parametrize("name", [".gitignore", "...", "a/.b", "..a/b..", "a b", "ünïcode/模型", "sub/.gitignore"])
    def test_unusual_names_are_names(self, name: str):
        assert parse_statement(as_json(oms_document([name]))).manifest
        assert check_resource_name(name) == name

    def test_half_a_surrogate_pair_is_no_name(self):
        text = as_json(oms_document(["NAME"])).replace(b"NAME", b"\\ud83d")
        assert path_of_fault(text) == "predicate.resources[0].name"
        with pytest.raises(StatementInvalid):
            check_resource_name("\ud83d")

    def test_a_whole_surrogate_pair_is(self):
        text = as_json(oms_document(["NAME"])).replace(b"NAME", b"\\ud83d\\ude00")
        manifest = parse_statement(text).manifest
        assert manifest is not None
        assert manifest.resources[0].name == "\U0001f600"

    @pytest.mark.parametrize(
        ("field", "value", "path"),
        [
            ("digest", "AB" * 32, "predicate.resources[1].digest"),
            ("digest", "ab" * 31, "predicate.resources[1].digest"),
            ("digest", "ab" * 32 + "\n", "predicate.resources[1].digest"),
            ("digest", 7, "predicate.resources[1].digest"),
            ("digest", None, "predicate.resources[1].digest"),
            ("algorithm", "blake2b", "predicate.resources[1].algorithm"),
            ("algorithm", "SHA256", "predicate.resources[1].algorithm"),
            ("name", 7, "predicate.resources[1].name"),
            ("name", None, "predicate.resources[1].name"),
            ("size", 7, "predicate.resources[1].size"),
            ("annotations", [], "predicate.resources[1].annotations"),
        ],
    )
    def test_a_resource_with_a_wrong_field_is_refused(self, field: str, value: Any, path: str):
        document = oms_document()
        document["predicate"]["resources"][1][field] = value
        assert path_of_fault(document) == path

    @pytest.mark.parametrize("resource", [5, "a", None, []])
    def test_a_resource_is_an_object(self, resource: Any):
        document = oms_document()
        document["predicate"]["resources"][2] = resource
        assert path_of_fault(document) == "predicate.resources[2]"

    def test_more_than_100000_files_are_refused(self):
        names = [f"{each:06d}" for each in range(100_001)]
        with pytest.raises(StatementInvalid, match="100000 is the limit"):
            parse_statement(as_json(oms_document(names)))

    def test_a_resource_without_a_field_is_refused(self):
        document = oms_document()
        del document["predicate"]["resources"][0]["algorithm"]
        assert path_of_fault(document) == "predicate.resources[0].algorithm"

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("method", "shards"),
            ("hash_type", "sha512"),
            ("allow_symlinks", True),
            ("allow_symlinks", "false"),
            ("allow_symlinks", 0),
            ("ignore_paths", "model.sig"),
            ("shard_size", 5),
        ],
    )
    def test_another_serialization_is_refused(self, field: str, value: Any):
        document = oms_document()
        document["predicate"]["serialization"][field] = value
        assert path_of_fault(document) == f"predicate.serialization.{field}"

    @pytest.mark.parametrize("path", ["../x", "/x", "", 5])
    def test_ignored_paths_stay_within_the_model(self, path: Any):
        document = oms_document()
        document["predicate"]["serialization"]["ignore_paths"][3] = path
        assert path_of_fault(document) == "predicate.serialization.ignore_paths[3]"

    @pytest.mark.parametrize("subjects", [[], [0], [{"name": "m"}] * 2])
    def test_a_model_has_one_subject(self, subjects: list[Any]):
        document = oms_document()
        document["subject"] = [document["subject"][0] | each for each in subjects if each] or subjects
        assert path_of_fault(document).startswith("subject")

    def test_a_model_has_a_name_and_no_second_digest(self):
        document = oms_document(name="")
        assert path_of_fault(document) == "subject[0].name"
        document = oms_document()
        document["subject"][0]["digest"]["sha512"] = "00" * 64
        assert path_of_fault(document) == "subject[0].digest"

    def test_a_predicate_with_other_fields_is_refused(self):
        document = oms_document()
        document["predicate"]["comment"] = "x"
        assert path_of_fault(document) == "predicate.comment"

    @pytest.mark.parametrize("value", [None, [], "x", {}])
    def test_a_predicate_that_is_none_is_refused(self, value: Any):
        document = oms_document()
        document["predicate"] = value
        assert path_of_fault(document).startswith("predicate")


class TestTheStatement:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("_type", "https://in-toto.io/Statement/v0.1"),
            ("_type", None),
            ("predicateType", ""),
            ("predicateType", "provenance"),
            ("predicateType", 5),
            ("predicateType", "https://" + "x" * 600),
            ("subject", {}),
            ("subject", []),
            ("predicate", []),
            ("predicate", None),
            ("signature", "x"),
        ],
    )
    def test_a_wrong_field_is_named(self, field: str, value: Any):
        assert path_of_fault(PROVENANCE | {field: value}) == field

    @pytest.mark.parametrize("field", ["_type", "subject", "predicateType"])
    def test_a_missing_field_is_named(self, field: str):
        assert path_of_fault({name: value for name, value in PROVENANCE.items() if name != field}) == field

    @pytest.mark.parametrize(
        ("subject", "path"),
        [
            (5, "subject[0]"),
            ({"name": "x"}, "subject[0].digest"),
            ({"name": "x", "digest": {}}, "subject[0].digest"),
            ({"name": "x", "digest": {"sha256": "ab"}}, "subject[0].digest.sha256"),
            ({"name": "x", "digest": {"sha256": "AB" * 32}}, "subject[0].digest.sha256"),
            ({"name": "x", "digest": {"sha256": 5}}, "subject[0].digest.sha256"),
            ({"name": 5, "digest": {"sha256": "ab" * 32}}, "subject[0].name"),
            ({"name": "x" * 4097, "digest": {"sha256": "ab" * 32}}, "subject[0].name"),
            ({"nom": "x", "digest": {"sha256": "ab" * 32}}, "subject[0].nom"),
            ({"digest": {"sha256": "ab" * 32}, "annotations": 5}, "subject[0].annotations"),
        ],
    )
    def test_a_wrong_subject_is_named(self, subject: Any, path: str):
        assert path_of_fault(PROVENANCE | {"subject": [subject]}) == path

    @pytest.mark.parametrize("text", [b"", b" ", b"null", b"[]", b"{", b"{}x", b"\xef\xbb\xbf{}", b"'", b"{}{}"])
    def test_what_is_no_json_object_is_refused(self, text: bytes):
        path_of_fault(text)

    def test_bytes_that_are_not_utf8_are_refused(self):
        with pytest.raises(StatementInvalid, match="not UTF-8 at byte 2"):
            parse_statement(b'{"\xff":1}')

    def test_utf16_is_refused(self):
        with pytest.raises(StatementInvalid):
            parse_statement(as_json(PROVENANCE).decode().encode("utf-16"))


class TestWhatTwoReadersMightReadDifferently:
    """Each of these is JSON that Python's own decoder accepts."""

    def test_a_key_that_stands_twice_is_refused_wherever_it_stands(self):
        text = as_json(oms_document())
        for place, path in (
            (b'"_type":', ""),
            (b'"sha256":', "subject[0].digest"),
            (b'"name":"a/b"', "predicate.resources[1]"),
            (b'"method":', "predicate.serialization"),
        ):
            key = place.partition(b":")[0]
            with pytest.raises(StatementInvalid, match="stands there twice") as caught:
                parse_statement(text.replace(place, key + b':"x",' + place, 1))
            assert caught.value.path == path

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
    def test_numbers_that_are_none_are_refused(self, number: str):
        text = as_json(PROVENANCE).replace(b"1.5", number.encode())
        assert path_of_fault(text) == "predicate.buildDefinition.n"

    def test_half_a_surrogate_pair_is_refused_wherever_it_stands(self):
        assert path_of_fault(as_json(PROVENANCE).replace(b'"x"', b'"\\ud800"')) == "predicate.buildDefinition.buildType"
        path_of_fault(as_json(PROVENANCE).replace(b'"buildType"', b'"\\udfff"'))

    def test_the_refusal_can_be_printed_even_where_the_key_cannot(self):
        with pytest.raises(StatementInvalid) as caught:
            parse_statement(b'{"\\ud800":{"a":NaN}}')
        str(caught.value).encode()


class TestBounds:
    def test_depth(self):
        nested: Any = 1
        for _ in range(61):
            nested = [nested]
        assert parse_statement(as_json(PROVENANCE | {"predicate": {"a": nested}})).predicate["a"] == nested
        path_of_fault(PROVENANCE | {"predicate": {"a": [[nested]]}})

    def test_depth_within_annotations(self):
        nested: Any = 1
        for _ in range(70):
            nested = {"a": nested}
        document = oms_document()
        document["predicate"]["resources"][0]["annotations"] = nested
        assert path_of_fault(document).startswith("predicate.resources[0].annotations")

    @pytest.mark.parametrize("text", [b"[" * 500_000, b'{"a":' * 300_000, b'{"_type":' + b"[" * 100_000])
    def test_a_tower_of_brackets(self, text: bytes):
        path_of_fault(text)

    def test_bytes(self):
        with pytest.raises(StatementInvalid, match="over the limit"):
            parse_statement(b" " * (MAX_STATEMENT_BYTES + 1))

    def test_values(self):
        with pytest.raises(StatementInvalid, match="more than 600000 values"):
            parse_statement(b"[" + b"[]," * 700_000 + b"[]]")

    def test_digits(self):
        with pytest.raises(StatementInvalid, match="too long"):
            parse_statement(b'{"a":' + b"9" * 5000 + b"}")

    def test_subjects(self):
        subject = {"digest": {"sha256": "ab" * 32}}
        assert len(parse_statement(as_json(PROVENANCE | {"subject": [subject] * 10_000})).subjects) == 10_000
        assert path_of_fault(PROVENANCE | {"subject": [subject] * 10_001}) == "subject"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.binary() | st.text().map(lambda text: text.encode(errors="replace")) | JSON.map(lambda x: json.dumps(x).encode())
)
def test_no_bytes_make_the_parser_raise_anything_else(payload: bytes):
    with pytest.raises(StatementInvalid):
        parse_statement(payload)


@given(st.data())
def test_no_value_in_any_place_makes_the_parser_raise_anything_else(data: st.DataObject):
    document = data.draw(st.sampled_from([oms_document(), json.loads(json.dumps(PROVENANCE))]))
    target: Any = document
    while True:
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(target[key], (dict, list)) and target[key] and data.draw(st.booleans()):
            target = target[key]
            continue
        target[key] = data.draw(JSON)
        break
    try:
        parse_statement(json.dumps(document).encode())
    except StatementInvalid as error:
        str(error).encode()


# --- DSSE ------------------------------------------------------------------------------------------


def test_pae_is_that_of_the_specification():
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("ü", b"") == "DSSEv1 2 ü 0 ".encode()


def test_an_envelope_is_what_it_was_after_a_round_trip():
    envelope = Envelope("text/plain", b"\x00payload", (EnvelopeSignature(b"\xff\xfe", "key"), EnvelopeSignature(b"s")))
    assert envelope_from_json(envelope.to_json()) == envelope
    assert envelope.signed_bytes() == b"DSSEv1 10 text/plain 8 \x00payload"
    assert envelope.to_dict()["signatures"][1] == {"sig": "cw=="}


def test_both_alphabets_of_base64_are_read():
    base = {"payloadType": "t", "signatures": [{"sig": "_-8="}], "payload": "//8="}
    envelope = envelope_from_dict(base)
    assert (envelope.payload, envelope.signatures[0].signature) == (b"\xff\xff", b"\xff\xef")


@pytest.mark.parametrize(
    "edit",
    [
        {"payload": None},
        {"payload": "not base64"},
        {"payload": "ü"},
        {"payloadType": ""},
        {"payloadType": 5},
        {"payloadType": "\ud800"},
        {"signatures": []},
        {"signatures": None},
        {"signatures": [{"sig": "AAAA"}] * 17},
        {"signatures": ["AAAA"]},
        {"signatures": [{"sig": 5}]},
        {"signatures": [{"sig": "AAAA", "keyid": 5}]},
    ],
)
def test_a_malformed_envelope_is_refused(edit: dict[str, Any]):
    base = {"payloadType": "t", "signatures": [{"sig": "AAAA"}], "payload": ""}
    envelope_from_dict(base)
    with pytest.raises(EnvelopeInvalid):
        envelope_from_dict(base | edit)
    with pytest.raises(EnvelopeInvalid):
        envelope_from_json(json.dumps(base | edit).encode())


@given(st.binary() | JSON.map(lambda x: json.dumps(x).encode()))
def test_no_bytes_make_the_envelope_parser_raise_anything_else(data: bytes):
    with pytest.raises(EnvelopeInvalid):
        envelope_from_json(data)
