"""JSON that two readers might understand differently is refused, with the place of the fault."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greatseal.strictjson import JSONInvalid, decode


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
def test_a_fault_is_refused_where_it_stands(text: str, path: str):
    json.loads(text)  # which lets it pass
    with pytest.raises(JSONInvalid) as caught:
        decode(text.encode(), max_bytes=100, what="the text")
    assert caught.value.path == path


def test_the_bounds_are_those_of_the_caller():
    assert decode(b"[1]", max_bytes=3, what="the text") == [1]
    with pytest.raises(JSONInvalid, match="the text of 3 bytes is over the limit of 2"):
        decode(b"[1]", max_bytes=2, what="the text")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    )
)
def test_everything_else_is_read_as_python_reads_it(value: object):
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert decode(text.encode(), max_bytes=1 << 20, what="the text") == value


@given(st.binary())
def test_no_bytes_raise_anything_else(data: bytes):
    try:
        decode(data, max_bytes=50, what="the text")
    except JSONInvalid as error:
        str(error).encode()
