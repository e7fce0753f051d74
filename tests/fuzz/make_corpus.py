"""Writes the first inputs of every target into tests/fuzz/corpus/: genuine ones, from tests/golden and made here.

    python tests/fuzz/make_corpus.py [TARGET ...]

What a run finds beside them lies in build/fuzz/corpus; `make fuzz FUZZ_ARGS=--keep` takes over the few
that reach code which the committed ones do not.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import msgspec  # noqa: E402
from config_site import CONFIG  # noqa: E402
from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from cryptography.hazmat.primitives.serialization import (  # noqa: E402
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from cryptography.x509.oid import NameOID  # noqa: E402

from greatseal.ids import new_request_id  # noqa: E402
from greatseal.timestamps import parse_line  # noqa: E402
from greatseal.tlogwitness import AddCheckpoint  # noqa: E402
from greatseal.v1 import audit_pb2, signing_pb2  # noqa: E402
from greatseald.adapters.tokens import frames  # noqa: E402
from greatseald.adapters.tokens.operator_protocol import Answer, Request, TokenStatus  # noqa: E402
from greatseald.ports.tokens import NotSigned, Operation, OperatorAct, Signed  # noqa: E402
from greatseald.rpc import conversion  # noqa: E402
from sample_log import as_json, oms_document  # noqa: E402

GOLDEN = HERE.parent / "golden"
LOG, OMS, ANCHORS = GOLDEN / "0.1", GOLDEN / "oms-0.1", GOLDEN / "anchors-0.1"
CORPUS = HERE / "corpus"


def operators() -> Iterator[tuple[str, str, bytes]]:
    """What passes between an operator and a token host."""
    yield "assuan", "pin", b"# comment\nS PASSWORD_FROM_CACHE\nD 12%2534%0A\nOK\n"
    yield "assuan", "cancelled", b"ERR 83886179 Operation cancelled <Pinentry>\r\n"
    status = TokenStatus("locked", "operator", "d", "full", "3 tries are left", "full", "3", "PUK", 6, 8, False, "", 1)
    for name, body, secrets in (
        ("unlock", Request(1, "soft", "unlock", False, [4]), b"1234"),
        ("change", Request(1, "soft", "change-pin", True, [4, 6]), b"1234567890"),
        ("answer", Answer("refused", "CKR_PIN_INCORRECT", status), b""),
    ):
        encoded = msgspec.msgpack.encode(body)
        yield "operator", name, struct.pack(">H", len(encoded)) + encoded + secrets
    act = OperatorAct("2b6f0cc9-04d1-4a0b-8ffa-0e6ee3f4a6d1", "2026-01-02T03:04:05Z", "unlock", 0, "root")
    yield "operator-acts", "two", msgspec.json.encode([act, act._replace(result="unlocked", detail="d")])


def seeds() -> Iterator[tuple[str, str, bytes]]:
    """(target, name, bytes) of each genuine input."""
    yield from operators()
    statement = (LOG / "statement.json").read_bytes()
    annotated = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha512": "0" * 128, "gitCommit": "x"}, "annotations": {"a": [1, {"b": None}]}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {"n": [-1.5, 1e3, True], "t": "\u00fc\U0001f999"},
    }
    unordered = oms_document(["b", "a"])
    for name, data in (("oms", statement), ("slsa", as_json(annotated)), ("unordered", as_json(unordered))):
        yield "statement", name, data
        yield "strictjson", name, data
    stamps = (ANCHORS / "timestamps.jsonl").read_bytes()
    yield "cosigned", "golden", (ANCHORS / "checkpoint").read_bytes()
    yield "witness-request", "first", AddCheckpoint(0, (), (LOG / "checkpoint").read_text()).body()
    yield "witness-request", "grown", AddCheckpoint(3, (bytes(32), b"x" * 32), (LOG / "checkpoint").read_text()).body()
    yield "timestamp-line", "golden", stamps
    yield "timestamp", "golden", parse_line(stamps).response
    yield "strictjson", "escapes", rb'{"\ud83e\udd99":"\ud800","a":1,"a":2,"n":[1e999,-0.0,00]}'
    yield "http-request", "tile", b'GET /tile/entries/x001/234.p/17 HTTP/1.1\r\nHost: a\r\nIf-None-Match: "x"'
    yield "http-request", "checkpoint", b"HEAD /checkpoint?x=1 HTTP/1.0"
    yield "http-request", "body", b"GET /tile/0/000 HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked"
    yield "strictjson", "levels", b"[" * 80 + b"]" * 80
    for name in ("checkpoint", "checkpoint-3"):
        for target in ("note", "checkpoint"):
            yield target, name, (LOG / name).read_bytes()
    two = (LOG / "checkpoint").read_bytes()
    yield "note", "witnessed", two + two.splitlines(keepends=True)[-1].replace(b"greatseal.local", b"witness.example")
    yield "vkey", "log", (LOG / "log.vkey").read_bytes()
    receipts = {path.name.split(".")[0]: path.read_bytes() for path in sorted(LOG.glob("*.receipt.json"))}
    for name, data in receipts.items():
        yield "receipt", name, data
        yield "tlog-proof", name, json.loads(data)["outcome"]["proof"].encode()
    for name in ("digest-ecdsa-p256-sha256", "statement-rsa-pss-sha256"):
        document = json.loads(receipts[name])
        intent, outcome = (base64.b64decode(document[part]["entry"]) for part in ("intent", "outcome"))
        changed = json.loads(outcome)
        changed["intent"] = {"index": 0, "leaf_hash": "LEAF"}
        yield "receipt-entries", name, intent + b"\n" + as_json(changed)
    yield "entries", "log", b"\n".join((LOG / "entries.jsonl").read_bytes().splitlines()[:14])
    for path in sorted(OMS.glob("*-P-*.sig")):
        data = path.read_bytes()
        if len(data) < 8192:
            yield "bundle", path.stem, data
            yield "envelope", path.stem, json.dumps(json.loads(data)["dsseEnvelope"]).encode()
        for each in json.loads(data)["verificationMaterial"].get("x509CertificateChain", {}).get("certificates", []):
            der = base64.b64decode(each["rawBytes"])
            mark = hashlib.sha256(der).hexdigest()[:8]
            yield "chain", mark, der
            yield "certificate", mark, der
    yield "chain", "root-pem", (OMS / "root.pem").read_bytes()
    yield from _certificates()
    for path in sorted(LOG.glob("*.pem")):
        key = load_pem_public_key(path.read_bytes())
        yield "public-key", path.stem, path.read_bytes()
        yield "public-key", f"{path.stem}-der", key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for name, data in receipts.items():
        sig = json.loads(base64.b64decode(json.loads(data)["outcome"]["entry"]))["sig"]
        yield "signature", name, base64.b64decode(sig)
    yield (
        "profile",
        "all",
        (
            b'address = "127.0.0.1:7420"\nca_cert = "a.pem"\nclient_cert = "b"\nclient_key = "c"\nserver_name = "x"\n'
            b'log_key = "' + (LOG / "log.vkey").read_bytes().strip() + b'"\ncheckpoint_file = "d"\ntimeout = 2.5\n'
        ),
    )
    yield "config", "all", CONFIG
    for target in ("config", "profile"):
        yield target, "deep", b"timeout = " + b"[" * 3000
        yield target, "deep-table", b"timeout = " + b"{a=" * 3000
        yield target, "dotted", b"a" + b".a" * 3000 + b" = 1"
        yield target, "digits", b"timeout = " + b"9" * 5000
        yield target, "large", b"timeout = 1" + b"0" * 400
    yield "profile", "home", b'ca_cert = "~nobody-of-this-name/x"'
    for target in ("bundle", "envelope", "receipt", "statement", "strictjson"):
        yield target, "deep", b'{"a":' * 1500
        yield target, "digits", b'{"mediaType":' + b"9" * 5000 + b"}"
    yield from _daemon()


def _certificates() -> Iterator[tuple[str, str, bytes]]:
    key, begin = ec.derive_private_key(7, ec.SECP256R1()), datetime(2026, 1, 1, tzinfo=UTC)
    named: dict[str, list[x509.GeneralName]] = {
        "spiffe": [x509.UniformResourceIdentifier("spiffe://example.org/ci")],
        "dns": [x509.DNSName("ci.example.org")],
        "email": [x509.RFC822Name("release@example.org")],
        "two": [x509.DNSName("a.example.org"), x509.DNSName("b.example.org")],
        "none": [],
    }
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "someone")])
    for name, names in named.items():
        builder = x509.CertificateBuilder(subject, subject, key.public_key(), 7, begin, begin + timedelta(days=9))
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        yield "certificate", name, builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def _daemon() -> Iterator[tuple[str, str, bytes]]:
    operations = [Operation(5, b"\x01" * 32, b"\x02" * 32), Operation(6, b"\x03" * 32, b"\x04" * 48)]
    signed, failed = Signed(0, b"\x30\x06\x02\x01\x01\x02\x01\x01", 9), NotSigned(1, True, 5, "why", 10, False, False)
    settings = frames.HostSettings("soft", "pkcs11:token=t", "/m.so", "/s", "", "/p", "", 2, 30.0, "none")
    messages = {
        "hello": frames.Hello(1, "soft", settings),
        "sign": frames.Sign(1, "pkcs11:object=k", "ecdsa-p256-sha256", operations),
        "find": frames.FindKey(2, "pkcs11:object=k"),
        "ready": frames.Ready(1, 7, "s", "l", "m", "m", "2.6", 3, 2, [], ["n"]),
        "acts": frames.OperatorActs([OperatorAct("i", "2026-01-02T03:04:05Z", "unlock", 0, "root", "unlocked")]),
        "noted": frames.ActsNoted(["i"]),
        "not-ready": frames.NotReady(1, True, "locked"),
        "key": frames.Key(2, b"\x30\x59", ["ecdsa-p256-sha256"]),
        "refused": frames.KeyRefused(2, "none", False),
        "results": frames.Results(1, [signed], [failed], 0.001),
    }
    for name, message in messages.items():
        yield "frames", name, frames.encode(message)
    yield "frames", "stream", b"".join(map(frames.encode, [frames.Ping(1), frames.Pong(1), frames.Stop()]))
    record = struct.pack(">QQB7x32s64s", 5, 5, 32, b"\x01" * 32, b"\x02" * 32)
    yield "ledger", "two-records", b"\x01" + 2 * record
    yield "ledger", "empty", b"greatseal-led-1\n"
    yield "ledger", "same-intent", b"\x01" + struct.pack(">QQB7x32s64s", 2**63, 5, 32, b"\x11" * 32, b"\x02" * 32)
    yield "anchor", "two-slots", b"\x01" + struct.pack(">QQ", 41, 42)
    yield "anchor", "text", b"greatseal-anchor-v1 " + b"0" * 19 + b"\nsize 7\n"
    for name, text in {
        "token": "pkcs11:token=greatseal;serial=0f;manufacturer=SoftHSM%20project;model=x",
        "object": "pkcs11:object=release;id=%01%ff;type=private;slot-id=007",
        "pin": "pkcs11:token=t?pin-value=1234&module-path=/m.so",
    }.items():
        yield "uri", name, text.encode()
    yield "page-token", "up", conversion.write_page_token("up", "99").encode()
    yield "page-token", "keys", conversion.write_page_token("keys", "scratch").encode()
    yield "page-token", "entry", b"logs/log/entries/12"
    yield "page-token", "key", b"keys/release/versions/1"
    digest = signing_pb2.SignDigestRequest(key="keys/scratch", request_id=new_request_id(), claimed_subject="m")
    digest.digest.sha256 = b"\x05" * 32
    statement = signing_pb2.SignStatementRequest(
        key="keys/release", request_id=new_request_id(), payload_type="application/vnd.in-toto+json", payload=b"{}"
    )
    batch = signing_pb2.BatchSignRequest()
    batch.items.add().digest.CopyFrom(digest)
    batch.items.add().statement.CopyFrom(statement)
    pages = audit_pb2.ListEntriesRequest(parent="logs/-", page_size=7, start_index=3, descending=True)
    for name, message in (("digest", digest), ("statement", statement), ("batch", batch), ("list", pages)):
        yield "requests", name, message.SerializeToString()


def main(wanted: list[str]) -> None:
    for target, name, data in seeds():
        if not wanted or target in wanted:
            path = CORPUS / target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


if __name__ == "__main__":
    main(sys.argv[1:])
