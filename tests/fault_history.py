"""Load with a memory, and the three-way comparison that judges what a fault did.

    released to clients ⊆ outcomes in the log ⊆ signatures the token made ⊆ operations its host let
    through ⊆ intents in the log

`Load` asks for signatures, new ones and earlier ones again, and remembers every answer. `Auditor`
reads the log as it grows and compares it with those memories, with the shim's ledger (what the
module really signed) and with the token host's own ledger.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import random
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from fault_site import FaultSite, RefusedError, Wire, digest_request, item_refusal, refusal
from greatseal.ids import new_request_id
from greatseal.v1 import signing_pb2, signing_pb2_grpc
from log_oracle import GrowingTree, TreeHead, leaf_hash

# What a client may be told while a daemon is dying, draining or coming up. "" is a broken connection.
EXPECTED = {
    "",
    "TOKEN_UNAVAILABLE",
    "OUTCOME_UNKNOWN",
    "REQUEST_IN_FLIGHT",
    "SHUTTING_DOWN",
    "LOG_UNAVAILABLE",
    "OVERLOADED",
}


@dataclass
class Asked:
    """One request id's story as its client knows it."""

    key: str
    digest: bytes
    signature: bytes = b""
    acknowledged: int = 0
    outcome_index: int = -1


@dataclass
class Load:
    """Callers that never tire. `run` returns when `until` is set and every call has ended."""

    site: FaultSite
    rng: random.Random
    keys: tuple[str, ...] = ("scratch",)
    asked: dict[str, Asked] = field(default_factory=dict)
    heads: dict[int, TreeHead] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    extra_expected: frozenset[str] = frozenset()

    async def run(self, until: asyncio.Event, callers: int = 6) -> None:
        options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_retries", 0)]
        address = self.site.deployment.address
        async with grpc.aio.secure_channel(address, self.site.credentials, options=options) as channel:
            stub = signing_pb2_grpc.SigningServiceStub(channel)
            await asyncio.gather(*(self._caller(stub, until, number) for number in range(callers)))

    async def _caller(self, stub: Any, until: asyncio.Event, number: int) -> None:
        while not until.is_set():
            size = 1 if number % 2 else self.rng.randint(2, 48)
            requests = [self._next() for _ in range(size)]
            try:
                if size == 1:
                    self._took(requests[0], await stub.SignDigest(requests[0], timeout=30))
                    continue
                batch = signing_pb2.BatchSignRequest()
                for request in requests:
                    batch.items.add().digest.CopyFrom(request)
                answer = await stub.BatchSign(batch, timeout=30)
                for request, result in zip(requests, answer.results, strict=True):
                    if result.HasField("error"):
                        self._refused(item_refusal(result.error))
                    else:
                        self._took(request, result.signature, answer.checkpoint)
            except grpc.RpcError as error:
                self._refused(refusal(error))
                await asyncio.sleep(0.02)

    def _next(self) -> Any:
        """Mostly a new request; sometimes one that was made before, answered or not."""
        if self.asked and self.rng.random() < 0.15:
            request_id = self.rng.choice(list(self.asked)[-400:])
            known = self.asked[request_id]
            return digest_request(known.key, known.digest, request_id)
        request_id, key, digest = new_request_id(), self.rng.choice(self.keys), os.urandom(32)
        self.asked[request_id] = Asked(key, digest)
        return digest_request(key, digest, request_id)

    def _took(self, request: Any, signature: Any, checkpoint: str = "") -> None:
        known = self.asked[request.request_id]
        head = self.site.check(known.key, known.digest, signature, checkpoint or signature.receipt.checkpoint)
        assert known.signature in {b"", signature.signature}, f"{request.request_id} was given two signatures"
        known.signature = signature.signature
        known.outcome_index = signature.receipt.outcome_index
        known.acknowledged += 1
        seen = self.heads.setdefault(head.size, head)
        assert seen == head, f"two checkpoints of size {head.size} with different roots: the log forked"

    def _refused(self, refused: RefusedError) -> None:
        self.refusals[refused.reason or refused.code] += 1
        expected = refused.reason in EXPECTED | self.extra_expected
        assert expected, f"a client was told {refused}"

    @property
    def acknowledged(self) -> int:
        return sum(1 for asked in self.asked.values() if asked.acknowledged)

    def ask_again(self, wire: Wire, count: int = 20) -> None:
        """Retry some acknowledged ids (the same signature comes back) and some that were never answered."""
        answered = [name for name, asked in self.asked.items() if asked.acknowledged]
        open_ones = [name for name, asked in self.asked.items() if not asked.acknowledged]
        for request_id in self.rng.sample(answered, min(count, len(answered))):
            asked = self.asked[request_id]
            answer = wire.sign(asked.key, asked.digest, request_id)
            assert answer.replayed, f"{request_id} was acknowledged and is not known any more"
            self._took(digest_request(asked.key, asked.digest, request_id), answer)
        for request_id in self.rng.sample(open_ones, min(count, len(open_ones))):
            asked = self.asked[request_id]
            self._took(
                digest_request(asked.key, asked.digest, request_id), wire.sign(asked.key, asked.digest, request_id)
            )


@dataclass
class Auditor:
    """Reads the log from byte one on, and holds it against everyone's memory."""

    site: FaultSite
    tree: GrowingTree = field(default_factory=GrowingTree)
    roots: dict[int, bytes] = field(default_factory=dict)
    intents: dict[int, dict[str, Any]] = field(default_factory=dict)
    leaves: dict[int, bytes] = field(default_factory=dict)
    outcomes: dict[int, dict[str, Any]] = field(default_factory=dict)  # by the intent's index
    outcome_indexes: dict[int, int] = field(default_factory=dict)  # outcome's index → intent's
    boots: list[dict[str, Any]] = field(default_factory=list)

    def read(self, wire: Wire) -> TreeHead:
        """Take in what the log has grown by, and check it against its checkpoint."""
        for data in wire.entries(self.tree.size):
            self._take(data)
        head = wire.checkpoint()
        assert head.size >= self.tree.size
        if head.size > self.tree.size:  # it grew between the two calls
            for data in wire.entries(self.tree.size)[: head.size - self.tree.size]:
                self._take(data)
        assert self.tree.root() == head.root, f"the entries do not have the root of the checkpoint at {head.size}"
        return head

    def _take(self, data: bytes) -> None:
        index, entry = self.tree.size, json.loads(data)
        assert data == json.dumps(entry, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
        self.tree.append(data)
        self.roots[self.tree.size] = self.tree.root()
        if entry["t"] == "intent":
            self.intents[index] = entry
            self.leaves[index] = leaf_hash(data)
        elif entry["t"] == "outcome":
            intent = entry["intent"]["index"]
            assert intent < index, f"outcome {index} stands before its intent {intent}"
            assert intent in self.intents, f"outcome {index} is of {intent}, which is no intent"
            assert intent not in self.outcomes, f"intent {intent} has two outcomes, the second at {index}"
            assert entry["intent"]["leaf_hash"] == self.leaves[intent].hex()
            assert entry["tbs"] == self.intents[intent]["tbs"]
            self.outcomes[intent] = entry
            self.outcome_indexes[index] = intent
        elif entry["t"] == "admin" and entry["what"] == "start":
            self.boots.append(entry)

    def check_all_closed(self) -> None:
        """Nothing is under way: every intent has its outcome."""
        still_open = sorted(set(self.intents) - set(self.outcomes))
        assert not still_open, f"{len(still_open)} intents have no outcome: {still_open[:10]}"

    def compare(
        self, load: Load, *shims: Any, tokens: tuple[str, ...] = ("soft",), sites: tuple[FaultSite, ...] = ()
    ) -> None:
        """released ⊆ outcomes ⊆ the token's signatures ⊆ what the hosts (of all `sites`) let through ⊆ intents."""
        ledgers = [
            list(host_ledger(site.state_dir(token)))
            for site in sites or (self.site,)
            for token in tokens
            if sites == () or (site.state_dir(token) / "ledger").exists()
        ]
        for size, head in load.heads.items():
            assert self.roots.get(size) == head.root, (
                f"the log does not extend the checkpoint of {size} that was released"
            )
        for request_id, asked in load.asked.items():
            if asked.acknowledged:
                outcome = self.outcomes[self.outcome_indexes[asked.outcome_index]]
                assert outcome["res"] == "signed"
                assert base64.b64decode(outcome["sig"]) == asked.signature, (
                    f"{request_id}: another signature in the log"
                )
                assert outcome["tbs"] == asked.digest.hex()
        signed = [call for shim in shims for call in shim.signatures()]
        made = {call.signature for call in signed}
        for intent, outcome in self.outcomes.items():
            if shims and outcome["res"] == "signed":
                r, s = decode_dss_signature(base64.b64decode(outcome["sig"]))
                assert r.to_bytes(32, "big") + s.to_bytes(32, "big") in made, (
                    f"the token never made outcome of {intent}"
                )
        passed = [record for ledger in ledgers for record in ledger]
        let_through = Counter(digest for _, _, digest in passed)
        for digest, count in Counter(call.digest for call in signed).items():
            assert count <= let_through[digest], f"the token signed {digest.hex()} more often than its host says"
        permitted = {(index, leaf) for index, leaf in self.leaves.items()}
        for index, leaf, digest in passed:
            assert (index, leaf) in permitted, f"a host worked for intent {index}, which is not in the log"
            assert self.intents[index]["tbs"] == digest.hex()
        assert len({index for index, _, _ in passed}) == len(passed), "an intent went to a token twice"


_RECORD = struct.Struct(">QQQB7x32s64s")
_HEADER = b"greatseal-led-1\n"


def host_ledger(state_dir: Path) -> Iterator[tuple[int, bytes, bytes]]:
    """(intent index, intent leaf hash, digest) of each record; the chain is checked on the way.

    The format as documented in greatseald.adapters.tokens.ledger, read without its code.
    """
    data = (state_dir / "ledger").read_bytes()
    assert data.startswith(_HEADER)
    chain, records = hashlib.sha256(_HEADER).digest(), data[len(_HEADER) :]
    for number in range(len(records) // 160):
        record = records[160 * number : 160 * number + 160]
        chain = hashlib.sha256(chain + record[:128]).digest()
        assert chain == record[128:], f"the host's ledger is broken at record {number + 1}"
        sequence, index, _, length, leaf, digest = _RECORD.unpack(record[:128])
        assert sequence == number + 1
        yield index, leaf, digest[:length]
