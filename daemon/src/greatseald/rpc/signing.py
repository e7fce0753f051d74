"""SigningService: conversion around `app.sign`. A unary call is a list of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from greatseal.v1 import signing_pb2
from greatseald.domain.errors import ArgumentInvalid, GreatsealError, RequestTooLarge
from greatseald.domain.policy import SIGN, SIGN_BLIND
from greatseald.rpc import conversion
from greatseald.rpc.errors import status_of

if TYPE_CHECKING:
    import grpc

    from greatseald.app.access import Access
    from greatseald.app.admission import SignRequest
    from greatseald.app.sign import Signing
    from greatseald.ports.metrics import Metrics
    from greatseald.rpc.gate import Call, Gate

MAX_ITEMS: Final = 1000
_SERVICE: Final = "/greatseal.v1.SigningService/"


class SigningService:
    """`greatseal.v1.SigningService`. The core authorises every item, and records what it refuses."""

    def __init__(self, signing: Signing, access: Access, metrics: Metrics) -> None:
        self._signing = signing
        self._access = access
        self._metrics = metrics

    def handlers(self, gate: Gate) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The methods by path."""
        return {
            _SERVICE + "SignDigest": gate.unary(
                _SERVICE + "SignDigest",
                signing_pb2.SignDigestRequest.FromString,
                self.sign_digest,
                counts_refusals=True,
            ),
            _SERVICE + "SignStatement": gate.unary(
                _SERVICE + "SignStatement",
                signing_pb2.SignStatementRequest.FromString,
                self.sign_statement,
                counts_refusals=True,
            ),
            _SERVICE + "BatchSign": gate.unary(
                _SERVICE + "BatchSign",
                signing_pb2.BatchSignRequest.FromString,
                self.batch_sign,
                counts_refusals=True,
            ),
        }

    async def sign_digest(self, call: Call, request: signing_pb2.SignDigestRequest) -> signing_pb2.Signature:
        """Sign one digest."""
        try:
            item = conversion.digest_request(request)
        except GreatsealError as error:
            await self._record(call, SIGN_BLIND, request.key, request.request_id, error)
            raise
        return await self._one(call, item)

    async def sign_statement(self, call: Call, request: signing_pb2.SignStatementRequest) -> signing_pb2.Signature:
        """Sign one statement."""
        try:
            item = conversion.statement_request(request)
        except GreatsealError as error:
            await self._record(call, SIGN, request.key, request.request_id, error)
            raise
        return await self._one(call, item)

    async def _one(self, call: Call, item: SignRequest) -> signing_pb2.Signature:
        batch = await self._signing.sign(call.caller, call.peer, [item], call.until)
        result = batch.results[0]
        if isinstance(result, GreatsealError):
            raise result
        return conversion.signature(result, batch.checkpoint)

    async def batch_sign(self, call: Call, request: signing_pb2.BatchSignRequest) -> signing_pb2.BatchSignResponse:
        """Sign every item that can be signed; the others get their own errors."""
        count = len(request.items)
        if not 1 <= count <= MAX_ITEMS:
            refusal = (
                RequestTooLarge(f"a batch has at most {MAX_ITEMS} items, not {count}", limit=str(MAX_ITEMS))
                if count
                else ArgumentInvalid("a batch has at least one item", field="items")
            )
            await self._record(call, SIGN, "", "", refusal)
            raise refusal
        items: list[SignRequest] = []
        refused: dict[int, GreatsealError] = {}
        for position, message in enumerate(request.items):
            try:
                items.append(conversion.batch_item(message))
            except GreatsealError as error:
                refused[position] = error
        if refused:
            await self._record_items(call, request, refused)
        if not items:
            return signing_pb2.BatchSignResponse(results=[_failed(refused[position]) for position in range(count)])
        batch = await self._signing.sign(call.caller, call.peer, items, call.until)
        answers = iter(batch.results)
        response = signing_pb2.BatchSignResponse(checkpoint=batch.checkpoint)
        for position in range(count):
            result = refused[position] if position in refused else next(answers)
            answer = response.results.add()
            if isinstance(result, GreatsealError):
                answer.error.CopyFrom(status_of(result))
            else:
                conversion.fill_signature(answer.signature, result)
        return response

    async def _record_items(
        self, call: Call, request: signing_pb2.BatchSignRequest, refused: dict[int, GreatsealError]
    ) -> None:
        for position, error in refused.items():
            item = request.items[position]
            part = item.statement if item.HasField("statement") else item.digest
            action = SIGN if item.HasField("statement") else SIGN_BLIND
            await self._record(call, action, part.key, part.request_id, error)

    async def _record(self, call: Call, action: str, key: str, request_id: str, error: GreatsealError) -> None:
        self._metrics.refused(error.reason)
        await self._access.record_refusal(
            call.caller, call.peer, action, error, key=key.removeprefix("keys/"), request_id=request_id
        )


def _failed(error: GreatsealError) -> signing_pb2.BatchResult:
    return signing_pb2.BatchResult(error=status_of(error))
