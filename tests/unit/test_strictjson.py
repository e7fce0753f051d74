"""JSON that two readers might understand differently is refused, with the place of the fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greatseal import compactjson, strictjson
from greatseal.strictjson import JSONInvalid

Decode = Callable[..., Any]


@pytest.fixture(params=[strictjson.decode, compactjson.decode], ids=["strict", "compact"], scope="module")
def decode(request: pytest.FixtureRequest) -> Decode:
    """Both decoders keep the same promises."""
    return cast("Decode", request.param)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"a":NaN}', "a"),
        ('{"a":[1,-Infinity]}', "a[1]"),
        ('{"a":{"b":1e999}}', "a.b"),
        ('{"a":{"b":1,"b":1}}', "a"),
        ('{"a":1,"b":2,"a":1}', ""),
        ('[{"a":"\\ud800"}]', "[0].a"),
        ('{"\\udc00":1}', ""),
    ],
)
def test_a_fault_is_refused_where_it_stands(decode: Decode, text: str, path: str):
    json.loads(text)  # which lets it pass
    with pytest.raises(JSONInvalid) as caught:
        decode(text.encode(), max_bytes=100, what="the text")
    assert caught.value.path == path


def test_the_bounds_are_those_of_the_caller(decode: Decode):
    assert decode(b"[1]", max_bytes=3, what="the text") == [1]
    with pytest.raises(JSONInvalid, match="the text of 3 bytes is over the limit of 2"):
        decode(b"[1]", max_bytes=2, what="the text")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    )
)
def test_everything_else_is_read_as_python_reads_it(decode: Decode, value: object):
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), compact):
        assert decode(text.encode(), max_bytes=1 << 20, what="the text") == value


@given(st.binary())
def test_no_bytes_raise_anything_else(decode: Decode, data: bytes):
    try:
        decode(data, max_bytes=50, what="the text")
    except JSONInvalid as error:
        str(error).encode()


@given(
    st.lists(st.tuples(st.sampled_from("ab\u00e9"), st.integers(0, 2) | st.just(1.5)), max_size=4),
    st.text(' \n1{}[],:"a', max_size=3),
)
def test_compact_or_not_the_same_texts_are_read_and_the_same_are_refused(pairs: list[tuple[str, float]], tail: str):
    """Keys that stand twice, blanks and rests behind the value among them."""
    data = ("{" + ",".join(f'"{name}":{value}' for name, value in pairs) + "}" + tail).encode()
    answers = []
    for decode in (strictjson.decode, compactjson.decode):
        try:
            answers.append(decode(data, max_bytes=1000, what="the text"))
        except JSONInvalid as error:
            answers.append(str(error))
    assert answers[0] == answers[1]
    assert len({name for name, _ in pairs}) == len(pairs) or isinstance(answers[1], str)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000])
def test_depth_ends_in_an_error_and_never_in_a_crash(decode: Decode, text: str):
    with pytest.raises(JSONInvalid, match=r"nested deeper|not JSON"):
        decode(text.encode(), max_bytes=1 << 20, what="the text")
