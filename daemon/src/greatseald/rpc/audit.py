"""AuditService: reading the log, with proofs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from greatseal.v1 import audit_pb2
from greatseald.app.search import LogSearch
from greatseald.domain.errors import ArgumentInvalid, LogUnavailable, WitnessesMissing
from greatseald.domain.policy import READ_AUDIT
from greatseald.ports.stamps import StampsUnusable
from greatseald.rpc import audit_filter, conversion

if TYPE_CHECKING:
    import grpc

    from greatseald.app.access import Access
    from greatseald.app.audit import AuditLog
    from greatseald.app.search import Candidates
    from greatseald.app.witnessing import Witnessing
    from greatseald.ports.stamps import Stamps
    from greatseald.rpc.gate import Call, Gate

_SERVICE: Final = "/greatseal.v1.AuditService/"
_PAGE: Final = 100
_MAX_PAGE: Final = 1000
_TIMESTAMPS: Final = 100
_WITNESS_MARGIN: Final = 0.2
"""Seconds kept of a caller's deadline, so that the answer arrives with its reason."""


class AuditService:
    """`greatseal.v1.AuditService`. Everything needs the action `readAudit`."""

    def __init__(
        self,
        log: AuditLog,
        access: Access,
        witnessing: Witnessing,
        stamps: Stamps,
        index: Candidates | None = None,
    ) -> None:
        self._log = log
        self._stamps = stamps
        self._witnessing = witnessing
        self._search = LogSearch(log, index)
        self._access = access

    def handlers(self, gate: Gate) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The methods by path."""
        return {
            _SERVICE + "GetCheckpoint": gate.unary(
                _SERVICE + "GetCheckpoint", audit_pb2.GetCheckpointRequest.FromString, self.get_checkpoint
            ),
            _SERVICE + "ListTimestamps": gate.unary(
                _SERVICE + "ListTimestamps", audit_pb2.ListTimestampsRequest.FromString, self.list_timestamps
            ),
            _SERVICE + "GetEntry": gate.unary(
                _SERVICE + "GetEntry", audit_pb2.GetEntryRequest.FromString, self.get_entry
            ),
            _SERVICE + "ListEntries": gate.unary(
                _SERVICE + "ListEntries", audit_pb2.ListEntriesRequest.FromString, self.list_entries
            ),
            _SERVICE + "GetInclusionProof": gate.unary(
                _SERVICE + "GetInclusionProof",
                audit_pb2.GetInclusionProofRequest.FromString,
                self.get_inclusion_proof,
            ),
            _SERVICE + "GetConsistencyProof": gate.unary(
                _SERVICE + "GetConsistencyProof",
                audit_pb2.GetConsistencyProofRequest.FromString,
                self.get_consistency_proof,
            ),
        }

    async def get_checkpoint(self, call: Call, request: audit_pb2.GetCheckpointRequest) -> audit_pb2.Checkpoint:
        """Release the newest checkpoint, or the newest with so many cosignatures."""
        await self._admit(call, request.parent)
        head = await self._log.checkpoint()
        note = self._witnessing.note(head)
        wanted = request.cosignatures
        if wanted:
            if wanted > len(self._witnessing):
                message = f"{wanted} cosignatures are wanted, and the daemon has {len(self._witnessing)} witnesses"
                raise ArgumentInvalid(message, field="cosignatures")
            covered = await self._witnessing.cover(head.size, wanted, call.until - _WITNESS_MARGIN)
            have = len(covered.lines) if covered is not None else 0
            if covered is None or have < wanted:
                message = f"{wanted} cosignatures are wanted, and {have} witnesses have cosigned: ask again"
                raise WitnessesMissing(message, wanted=str(wanted), cosignatures=str(have))
            head, note = covered.head, covered.note
        name = f"logs/{self._log.name}/checkpoints/{head.size}"
        return audit_pb2.Checkpoint(name=name, note=note, size=head.size, root=head.root)

    async def list_timestamps(
        self, call: Call, request: audit_pb2.ListTimestampsRequest
    ) -> audit_pb2.ListTimestampsResponse:
        """Return a page of timestamps, oldest first."""
        await self._admit(call, request.parent)
        limit = conversion.page_size(request.page_size, _TIMESTAMPS, _TIMESTAMPS)
        token = request.page_token
        start = _index(conversion.read_page_token("timestamps", token)) if token else 0
        try:
            found, place = await asyncio.to_thread(self._stamps.page, start, limit)
        except ValueError as error:
            raise ArgumentInvalid("page_token is none that this list gave", field="page_token") from error
        except StampsUnusable as error:
            raise LogUnavailable(str(error)) from error
        return audit_pb2.ListTimestampsResponse(
            timestamps=[
                audit_pb2.Timestamp(authority=each.authority, checkpoint=each.checkpoint, response=each.response)
                for each in found
            ],
            next_page_token=conversion.write_page_token("timestamps", str(place)) if place else "",
        )

    async def get_entry(self, call: Call, request: audit_pb2.GetEntryRequest) -> audit_pb2.Entry:
        """Return one entry."""
        await self._admit(call, "")
        index = conversion.parse_entry_name(request.name, self._log.name)
        await self._log.size_for(index + 1)
        return self._entry(index, await asyncio.to_thread(self._log.entry, index))

    async def list_entries(self, call: Call, request: audit_pb2.ListEntriesRequest) -> audit_pb2.ListEntriesResponse:
        """Return a page of entries in either order."""
        await self._admit(call, request.parent)
        query = audit_filter.query(request)
        limit = conversion.page_size(request.page_size, _PAGE, _MAX_PAGE)
        kind = audit_filter.token_kind(request)
        start = request.start_index
        if request.page_token:
            start = _index(conversion.read_page_token(kind, request.page_token))
        size = await self._log.size_for(start + 1)
        if not request.page_token and request.descending and not start:
            start = max(size - 1, 0)
        page = await self._search.page(
            query,
            start,
            limit,
            size,
            descending=request.descending,
            with_intents=request.include_intents,
        )
        following = "" if page.following is None else conversion.write_page_token(kind, str(page.following))
        return audit_pb2.ListEntriesResponse(
            entries=[self._entry(index, data) for index, data in page.entries],
            intents=[self._entry(index, data) for index, data in page.intents],
            next_page_token=following,
            log_size=size,
            pruned_size=await self._log.pruned_size(),
        )

    async def get_inclusion_proof(
        self, call: Call, request: audit_pb2.GetInclusionProofRequest
    ) -> audit_pb2.InclusionProof:
        """Prove that an entry is in a tree."""
        await self._admit(call, request.parent)
        size, hashes = await self._log.inclusion(request.index, request.tree_size)
        return audit_pb2.InclusionProof(index=request.index, tree_size=size, hashes=hashes)

    async def get_consistency_proof(
        self, call: Call, request: audit_pb2.GetConsistencyProofRequest
    ) -> audit_pb2.ConsistencyProof:
        """Prove that one tree is the beginning of another."""
        await self._admit(call, request.parent)
        size, hashes = await self._log.consistency(request.old_size, request.new_size)
        return audit_pb2.ConsistencyProof(old_size=request.old_size, new_size=size, hashes=hashes)

    async def _admit(self, call: Call, log: str) -> None:
        await self._access.require(call.caller, call.peer, READ_AUDIT)
        conversion.check_log(log, self._log.name)

    def _entry(self, index: int, data: bytes) -> audit_pb2.Entry:
        return audit_pb2.Entry(name=f"logs/{self._log.name}/entries/{index}", index=index, data=data)


def _index(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise ArgumentInvalid("page_token is none that this list gave", field="page_token")
    return int(text)
