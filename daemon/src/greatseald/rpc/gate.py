"""The one way into every method: what is checked, counted, bounded and translated around each call.

    shed → who calls → denied? → size → parse → handle, within the deadline → one error translation

Nothing is done for a call before it is known that there is room for it. The limit here is below
gRPC's own `maximum_concurrent_rpcs`, whose refusal carries no details. Handlers are registered
without serializers: the gate parses and serializes, so that a malformed message gets an answer like
any other, and so that one call costs one coroutine and no task.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeVar, cast
from urllib.parse import unquote

import grpc
import structlog
from google.protobuf.message import DecodeError

from greatseald.domain.errors import (
    ArgumentInvalid,
    CallerDenylisted,
    DeadlinePassed,
    GreatsealError,
    IdentityInvalid,
    InternalFault,
    Overloaded,
    RequestTooLarge,
    ShuttingDown,
)
from greatseald.rpc.errors import code_of, status_of, trailers_of

if TYPE_CHECKING:
    from greatseald.app.access import Access
    from greatseald.domain.identity import Caller
    from greatseald.ports.metrics import Metrics

_log = structlog.get_logger("greatseald.rpc")

_ANSWER_MARGIN: Final = 0.05
"""Seconds kept of a caller's deadline, so that our DEADLINE_EXCEEDED arrives with its reason."""
_SWEEP: Final = 0.02
"""Deadlines are looked at so often, in seconds."""
_PASSED: Final = "the call did not finish in its time; what was begun goes on: ask again with the same request_id"


_QUIET: Final = 0.1
_QUIET_LIMIT: Final = 2.0
"""A drain waits for so many seconds without a call, at most for so many."""

_DIALOGS: Final = 16
_DIALOG_MESSAGES: Final = 256

_NO_MESSAGE: Final = "the request is no protobuf message of its type"


class CallMetrics(Protocol):
    """What the gate reports, cheap enough for every call."""

    def called(self, method: str, code: str, seconds: float) -> None:
        """A call of this method ended with this status code after so long."""
        ...


class WireMessage(Protocol):
    """What a handler returns."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """Return the exact bytes for the wire."""
        ...


@dataclass(slots=True, eq=False)
class Call:
    """Who calls, from where, and until when (of time.monotonic) the answer is waited for.

    Not to be changed by handlers; a frozen dataclass costs twice as much to make.
    """

    caller: Caller
    peer: str
    until: float = math.inf


@dataclass(frozen=True, slots=True)
class Limits:
    """What one front takes on: calls at once, bytes of one message, seconds for calls without a deadline."""

    max_calls: int
    max_message_bytes: int
    default_deadline: float


Request = TypeVar("Request")
Handle = Callable[[Call, Request], Awaitable[WireMessage]]


class Gate:
    """Wraps handlers. One for each front; its counters belong to the event loop."""

    def __init__(
        self,
        *,
        read_caller: Callable[[bytes], Caller],
        access: Access,
        limits: Limits,
        metrics: Metrics,
        call_metrics: CallMetrics,
    ) -> None:
        self._read_caller = read_caller
        self._access = access
        self._limits = limits
        self._metrics = metrics
        self._calls = call_metrics
        self.in_flight = 0
        """Calls being served."""
        self.draining = False
        """Whether new calls are refused because the daemon stops."""
        self._arrived = 0
        self._dialogs = 0
        self._deadlines: dict[asyncio.Task[Any], float] = {}
        self._expired: set[asyncio.Task[Any]] = set()
        self._sweeping = False

    def unary(
        self,
        path: str,
        parse: Callable[[bytes], Request],
        handle: Handle[Request],
        *,
        counts_refusals: bool = False,
        always: bool = False,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of a unary method of the network's port.

        `parse` turns bytes into the request and raises DecodeError if they are none. `counts_refusals`
        says that what `handle` raises is in the metrics already; `always`, that the method is served
        under overload and while draining too.
        """
        method = path.rsplit("/", 1)[1]

        async def serve(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            started = time.perf_counter()
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - gRPC runs every call in a task of its own
            call: Call | None = None
            counted = False
            self.in_flight += 1
            self._arrived += 1
            try:
                if not always:
                    self._require_room()
                call = self._enter(context)
                await self._require_not_denied(call, method)
                request = self._parse(parse, data)
                counted = counts_refusals
                call.until = self._set_deadline(task, cast("float | None", context.time_remaining()))
                answer = (await handle(call, request)).SerializeToString()
            except GreatsealError as error:
                failure = error
            except asyncio.CancelledError:
                if task not in self._expired:
                    self._calls.called(method, "CANCELLED", time.perf_counter() - started)
                    raise
                task.uncancel()
                failure = DeadlinePassed(_PASSED)
            except Exception as error:  # noqa: BLE001 - the last line of defence: nothing of it reaches the caller
                failure = _fault(error, method, call)
            else:
                self._calls.called(method, "OK", time.perf_counter() - started)
                return answer
            finally:
                self.in_flight -= 1
                self._deadlines.pop(task, None)
                self._expired.discard(task)
            self._calls.called(method, code_of(failure).name, time.perf_counter() - started)
            if not counted:
                self._metrics.refused(failure.reason)
            _log.debug("call_refused", method=method, reason=failure.reason, client=call.caller.id if call else "")
            return await _abort(context, failure)

        return grpc.unary_unary_rpc_method_handler(serve)

    def _set_deadline(self, task: asyncio.Task[Any], remaining: float | None) -> float:
        """Have the call's task cancelled a little before its caller stops waiting; return when (of time.monotonic).

        A timer for each call costs more than looking at all of them now and then.
        """
        if remaining is None:
            remaining = self._limits.default_deadline
        else:
            remaining -= min(_ANSWER_MARGIN, remaining / 4)
        until = self._deadlines[task] = time.monotonic() + remaining
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(_SWEEP, self._sweep)
        return until

    def _sweep(self) -> None:
        now = time.monotonic()
        for task in [task for task, until in self._deadlines.items() if until <= now]:
            del self._deadlines[task]
            self._expired.add(task)
            task.cancel()
        self._sweeping = bool(self._deadlines)
        if self._sweeping:
            asyncio.get_running_loop().call_later(_SWEEP, self._sweep)

    async def drain(self, seconds: float) -> bool:
        """Refuse new calls, and wait until those under way have ended and callers have stopped coming.

        gRPC answers CANCELLED to calls that wait in its queue when the server is stopped, and that is
        no code that anybody may retry: so callers are first told to go elsewhere, and get a moment to.
        Returns whether nothing was under way any more within so many seconds.
        """
        self.draining = True
        until = time.monotonic() + seconds
        quiet_until = time.monotonic() + min(_QUIET_LIMIT, seconds)
        while self.in_flight and time.monotonic() < until:  # noqa: ASYNC110 - once; an event would cost every call
            await asyncio.sleep(0.01)
        arrived = -1
        while arrived != self._arrived and time.monotonic() < quiet_until:
            arrived = self._arrived
            await asyncio.sleep(_QUIET)
        return self.in_flight == 0

    def stream(
        self,
        path: str,
        parse: Callable[[bytes], Request],
        handle: Callable[[Call, Request], AsyncIterator[WireMessage]],
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of a method that answers with a stream; it has no deadline of ours."""
        method = path.rsplit("/", 1)[1]

        async def serve(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
            call: Call | None = None
            try:
                call = self._enter(context)
                await self._require_not_denied(call, method)
                async for message in handle(call, parse(data)):
                    yield message.SerializeToString()
            except GreatsealError as error:
                failure = error
            except DecodeError:
                failure = ArgumentInvalid(_NO_MESSAGE, field="")
            except Exception as error:  # noqa: BLE001 - as in unary
                failure = _fault(error, method, call)
            else:
                return
            await _abort(context, failure)

        return grpc.unary_stream_rpc_method_handler(serve)

    def dialog(
        self,
        path: str,
        parse: Callable[[bytes], Request],
        handle: Callable[[Call, AsyncIterator[Request]], AsyncIterator[WireMessage]],
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of a method with streams both ways, each bounded: messages, seconds, dialogs at once."""
        method = path.rsplit("/", 1)[1]

        async def parsed(requests: AsyncIterator[bytes]) -> AsyncIterator[Request]:
            count = 0
            async for data in requests:
                count += 1
                if count > _DIALOG_MESSAGES:
                    raise RequestTooLarge(f"{_DIALOG_MESSAGES} messages are the limit of one {method}: begin another")
                yield self._parse(parse, data)

        async def serve(
            requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[bytes]:
            started = time.perf_counter()
            call: Call | None = None
            self._dialogs += 1
            try:
                self._require_room(self._dialogs - _DIALOGS)
                call = self._enter(context)
                await self._require_not_denied(call, method)
                async with asyncio.timeout(self._limits.default_deadline):
                    async for message in handle(call, parsed(requests)):
                        yield message.SerializeToString()
            except GreatsealError as error:
                failure = error
            except TimeoutError:
                failure = DeadlinePassed(f"{method} was open longer than {self._limits.default_deadline:g} s")
            except Exception as error:  # noqa: BLE001 - as in unary
                failure = _fault(error, method, call)
            else:
                self._calls.called(method, "OK", time.perf_counter() - started)
                return
            finally:
                self._dialogs -= 1
            self._calls.called(method, code_of(failure).name, time.perf_counter() - started)
            self._metrics.refused(failure.reason)
            await _abort(context, failure)

        return grpc.stream_stream_rpc_method_handler(serve)

    def _parse(self, parse: Callable[[bytes], Request], data: bytes) -> Request:
        limit = self._limits.max_message_bytes
        if len(data) > limit:
            message = f"the request has {len(data)} bytes, and {limit} is the limit: send fewer items at once"
            raise RequestTooLarge(message, limit=str(limit))
        try:
            return parse(data)
        except DecodeError:
            raise ArgumentInvalid(_NO_MESSAGE, field="") from None

    def _require_room(self, over: int = 0) -> None:
        if self.draining:
            raise ShuttingDown("the daemon is stopping: ask again, another start or another front will answer")
        if self.in_flight > self._limits.max_calls:
            raise Overloaded(f"{self._limits.max_calls} calls are being served already, and that is the limit")
        if over > 0:
            raise Overloaded(f"{_DIALOGS} streams of this kind are open already, and that is the limit")

    def _enter(self, context: grpc.aio.ServicerContext[Any, Any]) -> Call:
        certificates = context.auth_context().get("x509_pem_cert")
        if not certificates:
            raise IdentityInvalid("the connection has no client certificate")
        return Call(self._read_caller(next(iter(certificates))), _peer(context.peer()))

    async def _require_not_denied(self, call: Call, method: str) -> None:
        try:
            self._access.check_denylist(call.caller)
        except CallerDenylisted as refusal:
            await self._access.record_refusal(call.caller, call.peer, method[:1].lower() + method[1:], refusal)
            raise


def local(
    path: str, parse: Callable[[bytes], Request], handle: Callable[[Request], Awaitable[WireMessage]]
) -> grpc.RpcMethodHandler[Any, Any]:
    """Return the handler of a method of the admin socket, whose callers the file system has admitted."""
    method = path.rsplit("/", 1)[1]

    async def serve(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            response = await handle(parse(data))
            return response.SerializeToString()
        except GreatsealError as error:
            failure = error
        except DecodeError:
            failure = ArgumentInvalid(_NO_MESSAGE, field="")
        except Exception as error:  # noqa: BLE001 - as in Gate.unary
            failure = _fault(error, method, None)
        return await _abort(context, failure)

    return grpc.unary_unary_rpc_method_handler(serve)


class Handlers(grpc.GenericRpcHandler):
    """Every method of a server by its full path: one look-up a call."""

    def __init__(self, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: GreatsealError) -> NoReturn:
    status = status_of(error)
    await context.abort(code_of(error), status.message, trailers_of(status))


def _fault(error: Exception, method: str, call: Call | None) -> InternalFault:
    fault = InternalFault.of("a fault of the daemon")
    _log.error(
        "internal_fault",
        method=method,
        client=call.caller.id if call else "",
        peer=call.peer if call else "",
        exc_info=error,
        **fault.metadata,
    )
    return fault


def _peer(text: str) -> str:
    """`ipv4:127.0.0.1:4242` as `127.0.0.1:4242`, `ipv6:%5B::1%5D:4242` as `[::1]:4242`."""
    return unquote(text.partition(":")[2])[:128]
