"""Large hostile inputs: what a parser holds while it refuses them is bounded, by the input's size or by a limit of its own.

Each case is the costliest text of its size that we know; the bound is on what Python allocates while
the parser has it, the input itself not counted.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from greatseal import dsse, note, profile, receipt, statement, tlog
from greatseal.errors import GreatsealError as ClientError
from greatseal.oms import bundle
from greatseald.adapters.authn.certificate import read_caller
from greatseald.adapters.tokens import frames
from greatseald.adapters.tokens.uris import UriInvalid, parse_uri
from greatseald.config import ConfigError, load
from greatseald.domain.errors import GreatsealError
from greatseald.rpc import conversion

MIB = 1 << 20


def distinct(count: int) -> bytes:
    return b"{" + b",".join(b'"%d":0' % number for number in range(count)) + b',"0":0}'


FRAME = (3 * MIB).to_bytes(4, "big") + b"\x91" * (3 * MIB)
SHORT_LISTS = b"[" + b"[]," * (5 * MIB) + b"[]]"


@pytest.mark.parametrize(
    "parse,data,mebibytes",
    [
        pytest.param(bundle.parse_bundle, SHORT_LISTS, 64, id="bundle-lists"),
        pytest.param(bundle.parse_bundle, b"[" * (8 * MIB), 64, id="bundle-deep"),
        pytest.param(bundle.parse_bundle, b'{"a":' * MIB, 64, id="bundle-deep-objects"),
        pytest.param(bundle.parse_bundle, distinct(500_000), 256, id="bundle-names"),
        pytest.param(bundle.parse_bundle, b" " * (65 * MIB), 1, id="bundle-size"),
        pytest.param(dsse.envelope_from_json, SHORT_LISTS, 64, id="envelope-lists"),
        pytest.param(statement.parse_statement, SHORT_LISTS, 64, id="statement-lists"),
        pytest.param(statement.parse_statement, distinct(500_000), 256, id="statement-names"),
        pytest.param(receipt.Receipt.from_json, distinct(200_000), 200, id="receipt-names"),
        pytest.param(note.parse_note, "— a b\n".encode() * (4 * MIB), 1, id="note-lines"),
        pytest.param(note.parse_note, b"a\n\n" + "— a b\n".encode() * 100_000, 16, id="note-signatures"),
        pytest.param(lambda data: tlog.parse_tlog_proof(data.decode()), b"\n" * (8 * MIB), 24, id="proof-lines"),
        pytest.param(read_caller, b"-----BEGIN CERTIFICATE-----\n" * 200_000, 1, id="certificate-lines"),
        pytest.param(lambda data: parse_uri(data.decode()), b"pkcs11:" + b";" * MIB, 4, id="uri"),
        pytest.param(
            lambda data: conversion.read_page_token("up", data.decode()), b"A" * (4 * MIB), 12, id="page-token"
        ),
    ],
)
def test_what_is_refused_costs_bounded_memory(parse: Callable[[bytes], object], data: bytes, mebibytes: int) -> None:
    with pytest.raises((ClientError, GreatsealError, UriInvalid)):
        parse(data)  # once outside, where it is fast: what takes for ever is found by the test's time limit
    assert peak_of(parse, data) < mebibytes * MIB


def peak_of(parse: Callable[[bytes], object], data: bytes) -> int:
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        with pytest.raises(Exception):  # noqa: B017 - which one, the caller has seen
            parse(data)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("decode", [frames.decode_to_host, frames.decode_from_host])
def test_a_frame_of_nested_arrays_costs_no_more_than_itself(decode: Callable[[bytes], object]) -> None:
    def read(data: bytes) -> None:
        for body in frames.FrameBuffer().feed(data):
            decode(body)

    assert peak_of(read, FRAME) < 12 * MIB
    huge = b"\x95\xa4Sign\x01\xa0\xa0" + b"\xdd\xff\xff\xff\xff" * 800_000  # arrays that claim 2^32 - 1 elements
    assert peak_of(read, len(huge).to_bytes(4, "big") + huge) < 16 * MIB


@pytest.mark.parametrize("data", [b"a = [" + b"1," * 400_000 + b"]", b"[[a]]\n" * 100_000, b"#" * (5 * MIB)])
def test_configurations_are_bounded(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "greatseald.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        load(path, {})
    with pytest.raises(ClientError):
        profile.load(path, environment={})
