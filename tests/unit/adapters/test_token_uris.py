"""RFC 7512 references: what they mean, and that a PIN or an attribute that is not honoured never passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greatseald.adapters.tokens.uris import MAX_URI_LENGTH, PkcsUri, UriInvalid, parse_uri


def test_attributes_are_percent_decoded():
    uri = parse_uri("pkcs11:token=My%20Token%3b1;serial=0001;manufacturer=Gr%c3%a4f;model=v2;slot-id=7")
    assert uri == PkcsUri(token="My Token;1", serial="0001", manufacturer="Gräf", model="v2", slot_id=7)
    assert uri.names_token
    assert not uri.names_object


def test_an_id_is_bytes_and_not_text():
    assert parse_uri("pkcs11:id=%01%ff%00;type=private") == PkcsUri(id=b"\x01\xff\x00", type="private")
    assert parse_uri("pkcs11:object=release").names_object


def test_an_empty_uri_names_nothing():
    assert parse_uri("pkcs11:") == PkcsUri()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a PKCS#11 URI"),
        ("file:/etc/passwd", "not a PKCS#11 URI"),
        ("pkcs11:token=a;token=b", "twice"),
        ("pkcs11:tokn=a", "tokn"),
        ("pkcs11:token", "name=value"),
        ("pkcs11:token=a;", "not one of"),
        ("pkcs11:token=%g1", "hexadecimal"),
        ("pkcs11:token=a%", "hexadecimal"),
        ("pkcs11:token=a b", "percent-encoded"),
        ("pkcs11:token=ä", "percent-encoded"),
        ("pkcs11:token=%ff", "UTF-8"),
        ("pkcs11:slot-id=-1", "decimal"),
        ("pkcs11:slot-id=1e3", "decimal"),
        ("pkcs11:type=secret", "type is one of"),
        ("pkcs11:token=a?module-path=/lib/evil.so", "module-path"),
        ("pkcs11:token=a?x-vendor=1", "not honoured"),
        ("pkcs11:token=" + "a" * MAX_URI_LENGTH, "at most"),
    ],
)
def test_what_cannot_be_honoured_is_refused_and_named(text: str, why: str):
    with pytest.raises(UriInvalid, match=why):
        parse_uri(text)


@pytest.mark.parametrize(
    "text", ["pkcs11:token=a?pin-value=31415", "pkcs11:pin-value=31415", "pkcs11:token=a?pin-source=file:/31415"]
)
def test_a_pin_in_a_uri_is_refused_without_being_repeated(text: str):
    with pytest.raises(UriInvalid, match="pin_file") as caught:
        parse_uri(text)
    assert "31415" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_parses_or_is_refused_by_name(text: str):
    try:
        parse_uri("pkcs11:" + text)
    except UriInvalid:
        return


@given(st.binary(max_size=64))
def test_every_id_can_be_written(value: bytes):
    assert parse_uri("pkcs11:id=" + "".join(f"%{byte:02X}" for byte in value)).id == value
