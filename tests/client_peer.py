"""A daemon's answers for tests of the client: the real protos over a real log, with faults on demand.

`Peer.answer` gives the answer to a method's request, or raises `Refused`, as the wire would carry
either. `served` puts it behind a real grpc server with mutual TLS on loopback; `drive` hands a
conversation of `greatseal.calls` its answers without any network.

    peer = Peer()
    peer.faults.append(refusal("UNAVAILABLE", "OVERLOADED", retry_after=0.01))
    with served(peer, tmp_path) as profile, Client.from_profile(profile) as client: ...
"""

# ruff: noqa: N802 - methods are named as the API names them
from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from greatseal import wire
from greatseal.algorithms import Algorithm
from greatseal.calls import Pause, Rpc, Talk
from greatseal.dsse import pae
from greatseal.errors import DaemonError
from greatseal.profile import Profile
from greatseal.v1 import audit_pb2, identity_pb2, key_pb2, signing_pb2, types_pb2
from greatseald.adapters import pki
from sample_log import SampleLog, new_key, sign_digest

CODES = {code.name: code for code in grpc.StatusCode}


@dataclass
class Refused(Exception):
    """An error as the wire carries it."""

    status: status_pb2.Status

    @property
    def code(self) -> grpc.StatusCode:
        return next(code for code in grpc.StatusCode if code.value[0] == self.status.code)


def refusal(
    code: str, reason: str = "", message: str = "no", *, retry_after: float | None = None, **metadata: str
) -> Refused:
    status = status_pb2.Status(code=CODES[code].value[0], message=message)
    if reason:
        _pack(status, error_details_pb2.ErrorInfo(reason=reason, domain="greatseal", metadata=metadata))
    if retry_after is not None:
        delay = duration_pb2.Duration(seconds=int(retry_after), nanos=int(retry_after % 1 * 1e9))
        _pack(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return Refused(status)


def _pack(status: status_pb2.Status, detail: Any) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


@dataclass
class Peer:
    """Answers as a daemon does.

    Attributes:
        faults: raised before the next calls, one each, whichever method.
        item_faults: by request id, what an item of a batch meets, one for each try.
        tamper: changes an answer before it is sent.
        calls: the methods and requests that came in.
    """

    log: SampleLog = field(default_factory=SampleLog)
    faults: list[Refused] = field(default_factory=list)
    item_faults: dict[str, list[Refused]] = field(default_factory=dict)
    tamper: Callable[[str, Any], None] | None = None
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.key = new_key()
        self._signed: dict[str, signing_pb2.Signature] = {}
        self._pairs: dict[str, Any] = {}
        self._lock = threading.Lock()
        if not self.log.entries:
            self.log.grow(3)

    @property
    def profile(self) -> Profile:
        return Profile(log_key=self.log.vkey.line())

    def methods(self) -> list[str]:
        return [method for method, _ in self.calls]

    def answer(self, method: str, request: Any) -> Any:
        with self._lock:
            copy = type(request)()
            copy.CopyFrom(request)
            self.calls.append((method, copy))
            if self.faults:
                raise self.faults.pop(0)
            answer = getattr(self, method)(request)
            if self.tamper is not None:
                self.tamper(method, answer)
            return answer

    # --- the methods

    def SignDigest(self, request: signing_pb2.SignDigestRequest) -> signing_pb2.Signature:
        self._sign(request)
        return self._signature(request.request_id, self.log.note())

    SignStatement = SignDigest

    def BatchSign(self, request: signing_pb2.BatchSignRequest) -> signing_pb2.BatchSignResponse:
        items = [getattr(item, item.WhichOneof("request")) for item in request.items]
        refused = {}
        for item in items:
            if self.item_faults.get(item.request_id):
                refused[item.request_id] = self.item_faults[item.request_id].pop(0)
            else:
                self._sign(item)
        note = self.log.note()
        response = signing_pb2.BatchSignResponse(checkpoint=note)
        for item in items:
            if item.request_id in refused:
                response.results.add(error=refused[item.request_id].status)
            else:
                response.results.add(signature=self._signature(item.request_id, ""))
        return response

    def WhoAmI(self, _request: Any) -> identity_pb2.WhoAmIResponse:
        return identity_pb2.WhoAmIResponse(client="spiffe://test/me", log_origin=self.log.origin)

    def ListKeys(self, request: key_pb2.ListKeysRequest) -> key_pb2.ListKeysResponse:
        names = ["keys/a", "keys/b", "keys/c"]
        at = int(request.page_token or 0)
        following = str(at + 1) if at + 1 < len(names) else ""
        return key_pb2.ListKeysResponse(keys=[key_pb2.Key(name=names[at], state=1)], next_page_token=following)

    def GetCheckpoint(self, _request: Any) -> audit_pb2.Checkpoint:
        return audit_pb2.Checkpoint(
            note=self.log.note(), size=len(self.log.entries), root=self.log.tree.prover(len(self.log.entries)).root()
        )

    def GetEntry(self, request: audit_pb2.GetEntryRequest) -> audit_pb2.Entry:
        index = int(request.name.rpartition("/")[2])
        return audit_pb2.Entry(name=request.name, index=index, data=self.log.entries[index])

    def ListEntries(self, request: audit_pb2.ListEntriesRequest) -> audit_pb2.ListEntriesResponse:
        start = int(request.page_token or request.start_index)
        end = min(start + (request.page_size or 100), len(self.log.entries))
        entries = [audit_pb2.Entry(index=index, data=self.log.entries[index]) for index in range(start, end)]
        return audit_pb2.ListEntriesResponse(
            entries=entries,
            next_page_token=str(end) if end < len(self.log.entries) else "",
            log_size=len(self.log.entries),
        )

    def GetInclusionProof(self, request: audit_pb2.GetInclusionProofRequest) -> audit_pb2.InclusionProof:
        size = request.tree_size or len(self.log.entries)
        hashes = self.log.logged(request.index, size).hashes
        return audit_pb2.InclusionProof(index=request.index, tree_size=size, hashes=hashes)

    def GetConsistencyProof(self, request: audit_pb2.GetConsistencyProofRequest) -> audit_pb2.ConsistencyProof:
        size = request.new_size or len(self.log.entries)
        if size > len(self.log.entries):
            raise refusal("NOT_FOUND", "ENTRY_NOT_FOUND", f"no tree of {size} entries")
        hashes = self.log.tree.prover(size).consistency(request.old_size, size)
        return audit_pb2.ConsistencyProof(old_size=request.old_size, new_size=size, hashes=hashes)

    def _sign(self, request: Any) -> None:
        if request.request_id in self._pairs:
            self._signed[request.request_id].replayed = True
            return
        if isinstance(request, signing_pb2.SignStatementRequest):
            digest = hashlib.sha256(pae(request.payload_type, request.payload)).digest()
        else:
            digest = getattr(request.digest, request.digest.WhichOneof("value"))
        identity = {"req": request.request_id}
        pair = self.log.sign(self.key, digest, edit_intent=identity)
        entry = wire_json(self.log.entries[pair.outcome])
        self._pairs[request.request_id] = pair
        self._signed[request.request_id] = signing_pb2.Signature(
            key_version=f"{request.key}/versions/1",
            algorithm=types_pb2.ECDSA_P256_SHA256,
            signature=entry,
            digest=digest,
        )

    def _signature(self, request_id: str, note: str) -> signing_pb2.Signature:
        pair, signature = self._pairs[request_id], self._signed[request_id]
        intent, outcome = self.log.logged(pair.intent), self.log.logged(pair.outcome)
        signature.receipt.CopyFrom(
            types_pb2.Receipt(
                intent_index=intent.index,
                intent_entry=intent.entry,
                intent_proof=b"".join(intent.hashes),
                outcome_index=outcome.index,
                outcome_entry=outcome.entry,
                outcome_proof=b"".join(outcome.hashes),
                checkpoint=note,
            )
        )
        copy = signing_pb2.Signature()
        copy.CopyFrom(signature)
        return copy


def wire_json(entry: bytes) -> bytes:
    """The signature that an outcome holds."""
    import base64
    import json

    return base64.b64decode(json.loads(entry)["sig"])


def drive(talk: Talk[Any], peer: Peer, pauses: list[Pause] | None = None) -> Any:
    """Run a conversation against the peer; pauses are taken note of and not waited for."""
    try:
        step = next(talk)
        while True:
            try:
                if isinstance(step, Rpc):
                    given = peer.answer(step.method, step.request)
                elif isinstance(step, Pause):
                    given = pauses.append(step) if pauses is not None else None
                else:
                    given = step.function()
            except Refused as refused:
                step = talk.throw(wire.error_from_status(refused.status, request_id=getattr(step, "request_id", "")))
            except DaemonError as error:
                step = talk.throw(error)
            else:
                step = talk.send(given)
    except StopIteration as done:
        return done.value


@contextlib.contextmanager
def served(peer: Peer, directory: Path, *, again: int = 0, **settings: Any) -> Iterator[Profile]:
    """Serve the peer over mutual TLS on a free port; gives the profile that reaches it.

    `again` is the port of an earlier server of this directory, whose certificates are used again.
    """
    if not again:
        authority = pki.create_authority("greatseal.test")
        pki.write(authority, directory / "ca.pem", directory / "ca.key")
        pki.write(
            pki.issue_server(authority, ["localhost"], ["127.0.0.1"]),
            directory / "server.pem",
            directory / "server.key",
        )
        pki.write(
            pki.issue_client(authority, "spiffe://greatseal.test/client"),
            directory / "client.pem",
            directory / "client.key",
        )
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((_Handler(peer),))
        credentials = grpc.ssl_server_credentials(
            [((directory / "server.key").read_bytes(), (directory / "server.pem").read_bytes())],
            (directory / "ca.pem").read_bytes(),
            require_client_auth=True,
        )
        port = server.add_secure_port(f"127.0.0.1:{again}", credentials)
        server.start()
        try:
            profile = dataclasses.replace(
                peer.profile,
                address=f"127.0.0.1:{port}",  # not localhost: of several addresses, only the last one's error is told
                server_name="localhost",
                ca_cert=directory / "ca.pem",
                client_cert=directory / "client.pem",
                client_key=directory / "client.key",
            )
            yield dataclasses.replace(profile, **settings)
        finally:
            server.stop(None).wait()


_REQUESTS = {
    "SignDigest": signing_pb2.SignDigestRequest,
    "SignStatement": signing_pb2.SignStatementRequest,
    "BatchSign": signing_pb2.BatchSignRequest,
    "WhoAmI": identity_pb2.WhoAmIRequest,
    "ListKeys": key_pb2.ListKeysRequest,
    "GetCheckpoint": audit_pb2.GetCheckpointRequest,
    "GetEntry": audit_pb2.GetEntryRequest,
    "ListEntries": audit_pb2.ListEntriesRequest,
    "GetInclusionProof": audit_pb2.GetInclusionProofRequest,
    "GetConsistencyProof": audit_pb2.GetConsistencyProofRequest,
}


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def service(self, details: Any) -> Any:
        method = details.method.rpartition("/")[2]
        if method not in _REQUESTS:
            return None

        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                return self._peer.answer(method, request)
            except Refused as refused:
                context.set_trailing_metadata((("grpc-status-details-bin", refused.status.SerializeToString()),))
                context.abort(refused.code, refused.status.message)

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=_REQUESTS[method].FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )


__all__ = ["Algorithm", "Peer", "Refused", "drive", "refusal", "served", "sign_digest"]
