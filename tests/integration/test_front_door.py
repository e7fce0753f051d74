"""Who gets in: mTLS always, identities, the denylist on open connections, and what callers are told."""

from __future__ import annotations

import uuid

import grpc
import pytest
from cryptography import x509

from deployment import Deployment
from front_site import (
    TIMEOUT,
    Ca,
    connected,
    digest_request,
    pipeline,
    reason_of,
    reload,
    sign,
    who_am_i,
)
from greatseal.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    key_pb2,
    key_pb2_grpc,
    signing_pb2,
    signing_pb2_grpc,
)

pytestmark = pytest.mark.softhsm
Code = grpc.StatusCode
URI = x509.UniformResourceIdentifier


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    deployment = Deployment.create(tmp_path_factory.mktemp("front"))
    deployment.append(
        '[[allow]]\nclient = "spiffe://greatseal.local/auditor"\nactions = ["readAudit"]\n'
        '[[allow]]\nclient = "spiffe://greatseal.local/stolen"\nactions = ["signBlind"]\nkeys = ["scratch"]\n'
    )
    with deployment.running():
        yield deployment


def refused(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return reason_of(caught.value)


def shut_out(site, identity, **options) -> None:
    """No call gets through, and the refusal is the handshake's: no application answer."""
    with connected(site, identity, **options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            who_am_i(channel)
        assert caught.value.code() is Code.UNAVAILABLE
        assert "grpc-status-details-bin" not in dict(caught.value.trailing_metadata() or ())


def test_no_certificate_no_call(site):
    shut_out(site, None)


def test_a_certificate_of_a_foreign_ca_is_shut_out(site):
    shut_out(site, Ca.foreign().issue(URI("spiffe://greatseal.local/pipeline")))


def test_a_certificate_of_a_ca_with_the_same_name_is_shut_out(site):
    twin = Ca.foreign(Ca.of(site).cert.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
    shut_out(site, twin.issue(URI("spiffe://greatseal.local/pipeline")))


def test_an_expired_certificate_is_shut_out(site):
    shut_out(site, Ca.of(site).issue(URI("spiffe://greatseal.local/pipeline"), started=3, days=-1))


def test_plain_text_is_shut_out(site):
    with grpc.insecure_channel(site.address) as channel, pytest.raises(grpc.RpcError) as caught:
        who_am_i(channel)
    assert caught.value.code() is Code.UNAVAILABLE


def test_a_client_learns_who_it_is_and_what_it_may_do(site):
    with connected(site, pipeline(site)) as channel:
        answer = who_am_i(channel)
    assert answer.client == "spiffe://greatseal.local/pipeline"
    assert answer.certificate_serial == format(x509.load_pem_x509_certificate(pipeline(site)[0]).serial_number, "x")
    assert [(grant.policy_id, list(grant.keys)) for grant in answer.grants] == [
        ("allow[0]", ["keys/release"]),
        ("allow[1]", ["keys/scratch"]),
    ]


def test_a_client_without_a_rule_may_ask_who_it_is_and_nothing_else(site):
    with connected(site, Ca.of(site).issue(URI("spiffe://greatseal.local/nobody"))) as channel:
        assert who_am_i(channel).client == "spiffe://greatseal.local/nobody"
        keys = key_pb2_grpc.KeyServiceStub(channel)
        audit = audit_pb2_grpc.AuditServiceStub(channel)
        denied = (Code.PERMISSION_DENIED, "ACCESS_DENIED")
        assert refused(lambda: sign(channel)) == denied
        assert refused(lambda: keys.ListKeys(key_pb2.ListKeysRequest(), timeout=TIMEOUT)) == denied
        assert refused(lambda: audit.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=TIMEOUT)) == denied
        # Whether a key exists is not for this caller to learn.
        for name in ("keys/scratch", "keys/absent"):
            assert refused(lambda name=name: keys.GetKey(key_pb2.GetKeyRequest(name=name), timeout=TIMEOUT)) == denied
            assert refused(lambda name=name: sign(channel, key=name)) == denied


def test_every_refusal_of_a_known_caller_is_in_the_log(site):
    ca = Ca.of(site)
    name = f"spiffe://greatseal.local/{uuid.uuid4()}"
    with connected(site, ca.issue(URI(name))) as channel:
        refused(lambda: sign(channel))
    with connected(site, ca.issue(URI("spiffe://greatseal.local/auditor"))) as channel:
        audit = audit_pb2_grpc.AuditServiceStub(channel)
        page = audit.ListEntries(audit_pb2.ListEntriesRequest(descending=True, page_size=5), timeout=TIMEOUT)
    texts = [entry.data.decode() for entry in page.entries]
    assert any(name in text and '"reason":"ACCESS_DENIED"' in text and '"act":"signBlind"' in text for text in texts)


@pytest.mark.parametrize(
    "names",
    [
        (URI("spiffe://greatseal.local/a"), URI("spiffe://greatseal.local/pipeline")),
        (x509.DNSName("spiffe://greatseal.local/pipeline"),),
        (x509.DNSName("a.local"), x509.DNSName("b.local")),
    ],
    ids=["two SPIFFE ids", "a SPIFFE id spelt as a DNS name", "two DNS names"],
)
def test_a_certificate_that_names_nobody_for_sure_is_not_served(site, names):
    with connected(site, Ca.of(site).issue(*names)) as channel:
        assert refused(lambda: who_am_i(channel)) == (Code.UNAUTHENTICATED, "IDENTITY_INVALID")


@pytest.mark.parametrize("by", ["serial", "spki_sha256"])
def test_a_denied_certificate_stops_at_once_on_an_open_connection(site, by):
    identity = Ca.of(site).issue(URI("spiffe://greatseal.local/stolen"))
    cert = x509.load_pem_x509_certificate(identity[0])
    from hashlib import sha256

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    spki = cert.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    value = format(cert.serial_number, "X") if by == "serial" else sha256(spki).hexdigest()
    with connected(site, identity) as channel:
        assert sign(channel).signature
        site.append(f'[[deny]]\n{by} = "{value}"\ncomment = "laptop lost"\n')
        reload(site)
        denied = (Code.PERMISSION_DENIED, "CALLER_DENYLISTED")
        assert refused(lambda: sign(channel)) == denied
        assert refused(lambda: who_am_i(channel)) == denied
        health = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert refused(lambda: health(b"", timeout=TIMEOUT)) == denied


def test_health_needs_a_certificate_and_no_rule(site):
    with connected(site, Ca.of(site).issue(URI("spiffe://greatseal.local/probe"))) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=TIMEOUT) == b"\x08\x01"
        name = b"greatseal.v1.SigningService"
        assert check(b"\x0a" + bytes([len(name)]) + name, timeout=TIMEOUT) == b"\x08\x01"
        assert refused(lambda: check(b"\x0a\x01x", timeout=TIMEOUT))[0] is Code.NOT_FOUND


def test_the_admin_service_and_reflection_are_not_on_the_network(site):
    with connected(site, pipeline(site)) as channel:
        for path in ("/greatseal.v1.AdminService/Reload", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(path)(b"", timeout=TIMEOUT)
            assert caught.value.code() is Code.UNIMPLEMENTED


def test_bytes_that_are_no_message_get_an_answer_with_a_reason(site):
    with connected(site, pipeline(site)) as channel:
        call = channel.unary_unary("/greatseal.v1.SigningService/SignDigest")
        assert refused(lambda: call(b"\xff\xff\xff", timeout=TIMEOUT)) == (Code.INVALID_ARGUMENT, "ARGUMENT_INVALID")


def test_a_message_over_the_limit_is_refused_and_the_connection_goes_on(site):
    with connected(site, pipeline(site)) as channel:
        stub = signing_pb2_grpc.SigningServiceStub(channel)
        near = signing_pb2.SignStatementRequest(key="keys/release", payload=b"x" * (17 << 20))
        assert refused(lambda: stub.SignStatement(near, timeout=TIMEOUT)) == (
            Code.INVALID_ARGUMENT,
            "REQUEST_TOO_LARGE",
        )
        far = signing_pb2.SignStatementRequest(key="keys/release", payload=b"x" * (40 << 20))
        with pytest.raises(grpc.RpcError) as caught:
            stub.SignStatement(far, timeout=TIMEOUT)
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED
        assert sign(channel).signature


def test_a_batch_is_answered_item_by_item(site):
    with connected(site, pipeline(site)) as channel:
        stub = signing_pb2_grpc.SigningServiceStub(channel)
        bad = digest_request("bad")
        bad.digest.sha256 = b"short"
        unknown = digest_request("unknown")
        unknown.algorithm = 77
        items = [
            signing_pb2.BatchItem(digest=digest_request("one")),
            signing_pb2.BatchItem(),
            signing_pb2.BatchItem(digest=bad),
            signing_pb2.BatchItem(digest=unknown),
            signing_pb2.BatchItem(digest=digest_request("two")),
        ]
        answer = stub.BatchSign(signing_pb2.BatchSignRequest(items=items), timeout=TIMEOUT)
        kinds = [result.WhichOneof("result") for result in answer.results]
        assert kinds == ["signature", "error", "error", "error", "signature"]
        assert answer.checkpoint.startswith("greatseal.local/log\n")
        assert all(not result.signature.receipt.checkpoint for result in answer.results)
        for count in (0, 1001):
            many = signing_pb2.BatchSignRequest(items=[signing_pb2.BatchItem()] * count)
            assert refused(lambda many=many: stub.BatchSign(many, timeout=TIMEOUT))[0] is Code.INVALID_ARGUMENT


def test_lists_are_paged_to_their_end_in_both_orders(site):
    with connected(site, pipeline(site)) as channel:
        audit = audit_pb2_grpc.AuditServiceStub(channel)
        size = audit.GetCheckpoint(audit_pb2.GetCheckpointRequest(parent="logs/-"), timeout=TIMEOUT).size
        for descending in (False, True):
            seen: list[int] = []
            token = ""
            while True:
                request = audit_pb2.ListEntriesRequest(page_size=3, page_token=token, descending=descending)
                page = audit.ListEntries(request, timeout=TIMEOUT)
                seen += [entry.index for entry in page.entries]
                token = page.next_page_token
                if not token:
                    break
            assert sorted(seen)[:size] == list(range(size))
            assert seen == sorted(seen, reverse=descending)
        other = audit_pb2.GetCheckpointRequest(parent="logs/other")
        assert refused(lambda: audit.GetCheckpoint(other, timeout=TIMEOUT)) == (Code.NOT_FOUND, "ENTRY_NOT_FOUND")
        keys = key_pb2_grpc.KeyServiceStub(channel)
        first = keys.ListKeys(key_pb2.ListKeysRequest(page_size=1), timeout=TIMEOUT)
        rest = keys.ListKeys(key_pb2.ListKeysRequest(page_token=first.next_page_token), timeout=TIMEOUT)
        assert [key.name for key in [*first.keys, *rest.keys]] == ["keys/release", "keys/scratch"]
        assert not rest.next_page_token


def test_a_call_that_cannot_finish_in_time_says_so_with_a_reason(site):
    """The deadline is over before the handler begins: the daemon's answer, not only the client's clock, tells why."""
    with connected(site, pipeline(site)) as channel:
        who_am_i(channel)
        stub = signing_pb2_grpc.SigningServiceStub(channel)
        items = [signing_pb2.BatchItem(digest=digest_request(str(number))) for number in range(1000)]
        with pytest.raises(grpc.RpcError) as caught:
            stub.BatchSign(signing_pb2.BatchSignRequest(items=items), timeout=0.06)
        assert caught.value.code() is Code.DEADLINE_EXCEEDED
        # What was begun goes on, and the same ids fetch it.
        answer = stub.BatchSign(signing_pb2.BatchSignRequest(items=items), timeout=60)
        assert all(result.HasField("signature") for result in answer.results)
