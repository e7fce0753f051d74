"""An installation whose tokens stand behind shims, and a plain client for it: what the fault tests start from.

`FaultSite` is a `Deployment` with the token `soft` (keys `release` and `scratch`) behind the shim
`site.soft`, and with a second token `other` (key `steady`) behind `site.other` if asked for: two
hosts that fail independently, and that both hold the key `pool`. `site.wire()` is raw stubs over mTLS, so that nothing of the client
library (retries, above all) stands between a test and the daemon.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pkcs11_shim
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from google.rpc import error_details_pb2, status_pb2

from deployment import Deployment
from greatseal.ids import new_request_id
from greatseal.v1 import audit_pb2, audit_pb2_grpc, key_pb2, key_pb2_grpc, signing_pb2, signing_pb2_grpc
from log_oracle import NoteVerifier, TreeHead, verify_receipt, verify_signature

PIPELINE = "spiffe://greatseal.local/pipeline"
CALL_SECONDS = 30.0


class RefusedError(Exception):
    """A call's error as the API promises it: exactly one ErrorInfo, from our domain."""

    def __init__(self, code: str, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code, self.reason, self.message = code, reason, message


def refusal(error: grpc.RpcError) -> RefusedError:
    """Read an RpcError. A broken connection has no details and gives the reason `""`."""
    code, text = error.code().name, error.details() or ""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            return _from_status(code, status_pb2.Status.FromString(value))
    return RefusedError(code, "", text)


def item_refusal(status: Any) -> RefusedError:
    """Read a batch item's error."""
    return _from_status(grpc.StatusCode(_CODES[status.code]).name, status)


_CODES = {code.value[0]: code.value for code in grpc.StatusCode}


def _from_status(code: str, status: Any) -> RefusedError:
    infos = []
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            infos.append(info)
    assert len(infos) == 1, f"{len(infos)} ErrorInfo in {status}"
    assert infos[0].domain == "greatseal"
    return RefusedError(code, infos[0].reason, status.message)


def digest_request(key: str, digest: bytes, request_id: str = "") -> signing_pb2.SignDigestRequest:
    request = signing_pb2.SignDigestRequest(key=f"keys/{key}", request_id=request_id or new_request_id())
    request.digest.sha256 = digest
    return request


class Wire:
    """Blocking calls that either answer or raise `RefusedError`. What is released is checked on arrival."""

    def __init__(self, site: FaultSite, channel: grpc.Channel) -> None:
        self._site = site
        self._signing = signing_pb2_grpc.SigningServiceStub(channel)
        self._audit = audit_pb2_grpc.AuditServiceStub(channel)
        self._keys = key_pb2_grpc.KeyServiceStub(channel)

    def sign(
        self, key: str = "scratch", digest: bytes = b"", request_id: str = "", timeout: float = CALL_SECONDS
    ) -> signing_pb2.Signature:
        request = digest_request(key, digest or os.urandom(32), request_id)
        try:
            answer = self._signing.SignDigest(request, timeout=timeout)
        except grpc.RpcError as error:
            raise refusal(error) from None
        self._site.check(key, request.digest.sha256, answer, answer.receipt.checkpoint)
        return answer

    def batch(self, key: str, digests: list[bytes], timeout: float = CALL_SECONDS) -> list[Any]:
        """Returns a Signature or a RefusedError for each digest."""
        request = signing_pb2.BatchSignRequest()
        for digest in digests:
            request.items.add().digest.CopyFrom(digest_request(key, digest))
        try:
            answer = self._signing.BatchSign(request, timeout=timeout)
        except grpc.RpcError as error:
            raise refusal(error) from None
        results: list[Any] = []
        for digest, result in zip(digests, answer.results, strict=True):
            if result.HasField("error"):
                results.append(item_refusal(result.error))
            else:
                self._site.check(key, digest, result.signature, answer.checkpoint)
                results.append(result.signature)
        return results

    def sign_until_it_works(self, key: str, seconds: float = 30.0) -> signing_pb2.Signature:
        """Retry one request as a client would while the daemon says that it may be retried."""
        deadline, request_id, digest = time.monotonic() + seconds, new_request_id(), os.urandom(32)
        while True:
            try:
                return self.sign(key, digest, request_id)
            except RefusedError as refused:
                if refused.code not in {"UNAVAILABLE", "ABORTED"} or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def key(self, name: str) -> key_pb2.Key:
        try:
            return self._keys.GetKey(key_pb2.GetKeyRequest(name=f"keys/{name}"), timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise refusal(error) from None

    def checkpoint(self) -> TreeHead:
        try:
            answer = self._audit.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise refusal(error) from None
        return self._site.notes.open(answer.note)

    def consistency(self, old: int, new: int) -> list[bytes]:
        request = audit_pb2.GetConsistencyProofRequest(old_size=old, new_size=new)
        try:
            return list(self._audit.GetConsistencyProof(request, timeout=CALL_SECONDS).hashes)
        except grpc.RpcError as error:
            raise refusal(error) from None

    def entries(self, start: int = 0) -> list[bytes]:
        """Every entry from `start` on."""
        found: list[bytes] = []
        try:
            while True:
                page = self._audit.ListEntries(
                    audit_pb2.ListEntriesRequest(start_index=start + len(found), page_size=1000), timeout=CALL_SECONDS
                )
                assert [entry.index for entry in page.entries] == [
                    start + len(found) + offset for offset in range(len(page.entries))
                ]
                found += [entry.data for entry in page.entries]
                if start + len(found) >= page.log_size:
                    return found
        except grpc.RpcError as error:
            raise refusal(error) from None


class FaultSite:
    """The deployment, its shims and what an auditor holds of it: the log's key and the public keys."""

    def __init__(
        self,
        parent: Path,
        *,
        two_tokens: bool = False,
        operation_timeout: int = 30,
        lockout: str = "none",
        deployment: Deployment | None = None,
    ) -> None:
        self.deployment = deployment or Deployment.create(parent)
        self.directory = self.deployment.directory
        self.soft = pkcs11_shim.Shim(parent / "shim-soft")
        self.other = pkcs11_shim.Shim(parent / "shim-other")
        self.softhsm_conf = self.directory / "tokens" / "soft" / "softhsm2.conf"
        edit = self.deployment.edit
        edit(r"^module = .*$", f'module = "{self.soft.module}"')
        edit(r"^environment = .*$", f"environment = {self._environment(self.soft, self.softhsm_conf)}")
        edit(r"^operation_timeout = \d+", f"operation_timeout = {operation_timeout}")
        edit(r"^reserve_bytes = \d+", "reserve_bytes = 4194304")  # a quarter of a gigabyte a test is too much
        edit(r'^lockout = "none"', f'lockout = "{lockout}"')
        if two_tokens:
            # A copy with files of its own: two hosts that log in at once on the same files make SoftHSM fail.
            other = self.directory / "tokens" / "other"
            shutil.copytree(self.softhsm_conf.parent, other)
            other_conf = other / "softhsm2.conf"
            other_conf.write_text(other_conf.read_text().replace("/tokens/soft/", "/tokens/other/"))
            self.deployment.append(
                f'[[tokens]]\nname = "other"\ntype = "pkcs11"\nuri = "pkcs11:token=greatseal"\n'
                f'module = "{self.other.module}"\nenvironment = {self._environment(self.other, other_conf)}\n'
                f'pin_file = "tokens/soft/pin"\nstate_dir = "tokens/other/state"\nsessions = 2\n'
                f'operation_timeout = {operation_timeout}\nlockout = "none"\n\n'
                f'[[keys]]\nname = "steady"\ntoken = "other"\nuri = "pkcs11:object=scratch"\n'
                f'algorithms = ["ecdsa-p256-sha256"]\n\n'
                f'[[keys]]\nname = "pool"\nalgorithms = ["ecdsa-p256-sha256"]\n'
                f'[[keys.holders]]\ntoken = "soft"\nuri = "pkcs11:object=scratch"\n'
                f'[[keys.holders]]\ntoken = "other"\nuri = "pkcs11:object=scratch"\n\n'
                f'[[allow]]\nclient = "{PIPELINE}"\nactions = ["signBlind", "readKeys"]\nkeys = ["steady", "pool"]\n'
            )
        self.notes = NoteVerifier(self.deployment.log_vkey.read_text())
        scratch = load_pem_public_key((self.directory / "keys" / "scratch.pem").read_bytes())
        release = load_pem_public_key((self.directory / "keys" / "release.pem").read_bytes())
        self.public = {"scratch": scratch, "steady": scratch, "pool": scratch, "release": release}
        pki = self.directory / "pki"
        self.credentials = grpc.ssl_channel_credentials(
            (pki / "ca.pem").read_bytes(), (pki / "pipeline.key").read_bytes(), (pki / "pipeline.pem").read_bytes()
        )

    def _environment(self, shim: pkcs11_shim.Shim, conf: Path) -> str:
        values = {"SOFTHSM2_CONF": str(conf), **shim.environment}
        return "{ " + ", ".join(f'{name} = "{value}"' for name, value in values.items()) + " }"

    @contextmanager
    def wire(self) -> Iterator[Wire]:
        options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_retries", 0)]
        with grpc.secure_channel(self.deployment.address, self.credentials, options=options) as channel:
            yield Wire(self, channel)

    def check(self, key: str, digest: bytes, signature: Any, checkpoint: str) -> TreeHead:
        """What every client may rely on: the signature is right, and the receipt proves it."""
        assert signature.digest == digest
        verify_signature(self.public[key], "ecdsa-p256-sha256", digest, signature.signature)
        return verify_receipt(signature.receipt, checkpoint, self.notes, digest, signature.signature)

    @property
    def daemon_pid(self) -> int:
        assert self.deployment.process is not None
        return self.deployment.process.pid

    def state_dir(self, token: str) -> Path:
        return self.directory / "tokens" / token / "state"

    def metric(self, pattern: str) -> list[str]:
        """Lines of the daemon's metrics that match."""
        listening = [line for line in self.deployment.stderr.splitlines() if '"metrics_listening"' in line]
        address = json.loads(listening[-1])["address"]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            return [line for line in answer.read().decode().splitlines() if re.search(pattern, line)]

    def close(self) -> None:
        self.soft.lift_all()
        self.other.lift_all()
        self.deployment.close()
