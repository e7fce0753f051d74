"""One signature's path, for lists: a unary call is a list of one.

    authorise and validate (admission) → choose version and token (placement) → commit INTENT → token signs
    → verify → commit OUTCOME, sign the checkpoint, advance the anchor → release the signature with its receipt

What certainly was not signed, because its token could not, goes to another token that can, as the next attempt: its
intent is closed first. What may have been signed is never tried again here.

A request id is looked up by committing its intent: the store refuses an attempt that is on record,
and only then is the record read. What the log says was signed is released again; what it says was
not opens the next attempt. Once an intent is committed the work goes on to its outcome, whatever
becomes of the caller.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from greatseal.errors import VerificationFailed
from greatseald.app.admission import Admitted, SignRequest, action_of
from greatseald.app.job import Call, Job
from greatseald.app.records import Records
from greatseald.app.replay import Replay, require_record
from greatseald.app.versions import record_halt
from greatseald.domain.errors import (
    AlgorithmNotOffered,
    GreatsealError,
    InternalFault,
    KeyHalted,
    OutcomeUnknown,
    Overloaded,
    Refusal,
    RequestIdReused,
    RequestInFlight,
    ShuttingDown,
    SigningFailed,
    TokenLocked,
    TokenUnavailable,
    WitnessesMissing,
)
from greatseald.ports.tokens import ALGORITHM_REFUSED, NotSigned, Operation, Signed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from greatseal.algorithms import Algorithm
    from greatseald.app.access import Access
    from greatseald.app.admission import Admission
    from greatseald.app.audit import AuditLog
    from greatseald.app.placement import Placement
    from greatseald.app.versions import Holding, SigningVersion
    from greatseald.app.witnessing import Witnessing
    from greatseald.app.writer import SignedHead
    from greatseald.domain.identity import Caller
    from greatseald.ports.metrics import Metrics
    from greatseald.ports.tokens import SignResult

_log = structlog.get_logger("greatseald.sign")

_VERIFY_CHUNK: Final = 32
"""A hop to the pool costs two wakings: so many results share one, while the token signs the next."""

_VERIFY_HERE: Final = 2
"""Groups up to this size are verified on the event loop: the hop to the pool costs more than it saves."""

_VERIFY_HERE_BYTES: Final = 64 * 1024
"""Unless what was signed is longer: of Ed25519 it is a whole message, and hashed by whoever verifies."""

_MAX_ATTEMPT_ROUNDS: Final = 4

_WITNESS_MARGIN: Final = 0.2
"""Seconds kept of a caller's deadline, so that what witnesses did not do is told with its own reason."""


@dataclass(slots=True, eq=False)
class Logged:
    """An entry of the log with its inclusion proof (32-byte hashes, concatenated). Not to be changed."""

    index: int
    entry: bytes
    proof: bytes


@dataclass(slots=True, eq=False)
class Released:
    """A signature that may leave: DER for ECDSA, modulus-sized for RSA; its evidence beside it. Not to be changed."""

    key_version: str
    algorithm: Algorithm
    signature: bytes
    digest: bytes
    intent: Logged
    outcome: Logged
    replayed: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """One result for each request, in order; `checkpoint` is the signed note that all proofs lead to, or empty."""

    results: list[Released | GreatsealError]
    checkpoint: str


class Signing:
    """Signs lists of requests."""

    def __init__(
        self,
        *,
        admission: Admission,
        access: Access,
        log: AuditLog,
        verifiers: Executor,
        metrics: Metrics,
        max_waiting_items: int,
        placement: Placement,
        witnessing: Witnessing | None = None,
    ) -> None:
        self._admission = admission
        self._replay = Replay(admission, log)
        self._placement = placement
        self._access = access
        self._log = log
        self._records = Records(log)
        self._verifiers = verifiers
        self._metrics = metrics
        self._max_waiting = max_waiting_items
        self._witnessing = witnessing
        self._waiting = 0
        self._draining = False
        self._tasks: set[asyncio.Task[Batch]] = set()
        self._running: dict[tuple[bytes, bytes], tuple[Job, Call]] = {}

    async def sign(self, caller: Caller, peer: str, items: Sequence[SignRequest], until: float = math.inf) -> Batch:
        """Sign each item, or say why not. `until` (of time.monotonic) is how long the caller waits.

        Cancelling this call does not cancel what its intents began; the same request ids fetch it.

        Raises:
            Overloaded, ShuttingDown: nothing was begun for any item.
        """
        if self._draining:
            message = "the daemon is stopping: ask again, another start or another front will answer"
            raise ShuttingDown(message)
        if self._waiting + len(items) > self._max_waiting and self._waiting:
            message = f"{self._waiting} requests are waiting already, and {self._max_waiting} is the limit"
            raise Overloaded(message)
        self._waiting += len(items)
        call = Call(caller, peer, time.perf_counter(), asyncio.get_running_loop().create_future())
        task = asyncio.create_task(self._sign(call, items, until))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, len(items)))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            call.abandoned = True
            raise

    @property
    def waiting(self) -> int:
        """Items on their way."""
        return self._waiting

    async def drain(self) -> None:
        """Take nothing new and wait until nothing is under way."""
        self._draining = True
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _ended(self, task: asyncio.Task[Batch], items: int) -> None:
        self._tasks.discard(task)
        self._waiting -= items
        if not task.cancelled() and task.exception() is not None and not isinstance(task.exception(), GreatsealError):
            _log.error("signing_fault", exc_info=task.exception())

    async def _sign(self, call: Call, items: Sequence[SignRequest], until: float) -> Batch:
        admitted, refused = await self._admission.admit(call.caller, items, self._log.clock())
        try:
            self._claim(call, admitted, refused)
            head = await self._carry_out(call)
        finally:
            self._let_go(call)
        return await self._answer(call, items, refused, head, until)

    def _claim(self, call: Call, admitted: list[Admitted], refused: dict[int, GreatsealError]) -> None:
        """Take the request ids; one that is under way here already is joined, not begun again."""
        for request in admitted:
            name = (request.scope.caller, request.scope.request_id)
            running = self._running.get(name)
            if running is None:
                job = Job(request)
                self._running[name] = (job, call)
                call.jobs.append(job)
            elif not _is_same(running[0].request, request):
                refused[request.position] = RequestIdReused.of(request.request_id)
            else:
                call.joined.append((request.position, *running))

    def _let_go(self, call: Call) -> None:
        for job in call.jobs:
            scope = job.request.scope
            self._running.pop((scope.caller, scope.request_id), None)
        if not call.done.done():
            call.done.set_result(None)

    async def _carry_out(self, call: Call) -> SignedHead | None:
        """Bring every job to its end; return the checkpoint if one commit proved all that is released."""
        unwritable = self._unwritable()
        for job in call.jobs:
            job.error = job.request.unready or unwritable
        await self._replay.take_up([job for job in call.jobs if job.error is not None])
        return await self._attempt(call, [job for job in call.jobs if job.error is None and job.replayed is None])

    async def _attempt(self, call: Call, pending: list[Job]) -> SignedHead | None:
        """Give jobs to tokens, and bring them to their end; return the checkpoint as `_carry_out` does."""
        self._placement.place(pending, self._log.clock())
        try:
            opened = await self._open(call, pending)
        except BaseException:
            self._placement.asked(pending)
            raise
        if len(opened) < len(pending):
            self._placement.asked([job for job in pending if job.intent_index < 0 or job.replayed is not None])
        groups: defaultdict[tuple[int, Algorithm], list[Job]] = defaultdict(list)
        for job in opened:
            groups[id(job.holding), job.request.algorithm].append(job)
        if len(groups) == 1:
            return await self._sign_group(call, opened)
        await asyncio.gather(*(self._sign_group(call, jobs) for jobs in groups.values()))
        return None

    async def _open(self, call: Call, pending: list[Job]) -> list[Job]:
        """Commit the intents; settle those that are on record already. Returns the jobs to sign."""
        opened: list[Job] = []
        for _ in range(_MAX_ATTEMPT_ROUNDS):
            if not pending:
                return opened
            pending = self._write_intents(call, pending)
            requests = [(job.request.scope, job.request.request_hash) for job in pending]
            placed = await self._log.open_intents(
                [job.intent_entry for job in pending], requests, alone=self._waiting == 1
            )
            known = []
            for job, place in zip(pending, placed, strict=True):
                if place is None:
                    known.append(job)
                else:
                    job.intent_index, job.leaf_hash = place
                    opened.append(job)
            pending = await self._replay.take_up(known)
        for job in pending:
            job.error = RequestInFlight(f"request {job.request.request_id} is being worked on by another front")
        return opened

    def _unwritable(self) -> GreatsealError | None:
        try:
            self._log.require_writable()
        except GreatsealError as error:
            return error
        return None

    def _write_intents(self, call: Call, jobs: list[Job]) -> list[Job]:
        """Encode the intents; return the jobs that have one."""
        ts = self._records.now()
        for job in jobs:
            try:
                job.intent_entry = self._records.intent(call, job.request, ts)
            except GreatsealError as error:
                job.error = error
        return [job for job in jobs if job.error is None]

    async def _sign_group(self, call: Call, jobs: list[Job]) -> SignedHead | None:
        """Sign jobs of one version, token and algorithm, and commit exactly one outcome for each of their intents.

        Those that move on to another token have theirs at once, and do not wait for the others.
        """
        version, algorithm, holding = jobs[0].request.version, jobs[0].request.algorithm, _holding(jobs[0])
        token = holding.token.name
        began = time.perf_counter()
        moves: list[asyncio.Task[None]] = []
        moved: set[int] = set()

        def given_back(part: list[Job]) -> None:
            moved.update(map(id, part))
            moves.append(asyncio.create_task(self._move(call, part, began)))

        def remaining() -> list[Job]:
            return [job for job in jobs if id(job) not in moved] if moved else jobs

        try:
            await self._ask_token(version, holding, algorithm, jobs, given_back)
        except GreatsealError as error:
            _end_all(remaining(), "aborted", error)
        except Exception as error:  # noqa: BLE001 - whatever it is, every intent gets its outcome
            fault = InternalFault.of("the token's answer could not be used")
            _log.error("token_fault", token=token, exc_info=error, **fault.metadata)
            _end_all(remaining(), "unknown", fault)
        jobs = remaining()
        _end_all(jobs, "unknown", OutcomeUnknown(f"token {token} left the operation without an answer"))
        await record_halt(self._log, version)
        head = await self._close(call, jobs, began) if jobs else None
        await self._move_on(call, jobs)
        if moves:
            await asyncio.gather(*moves)
        return None if moves or any(job.tried for job in jobs) else head

    async def _move(self, call: Call, jobs: list[Job], began: float) -> None:
        """Close the intents of jobs that their token gave back, and go on with them elsewhere."""
        await self._close(call, jobs, began)
        await self._move_on(call, jobs)

    async def _move_on(self, call: Call, jobs: list[Job]) -> None:
        """Give jobs that certainly were not signed to other tokens, as long as somebody waits for them."""
        if call.abandoned or self._unwritable() is not None:
            return
        now = self._log.clock()
        moving = [job for job in jobs if job.may_move and self._placement.has_another(job, now)]
        if not moving:
            return
        for job in moving:
            _log.info(
                "moved_to_another_token", request_id=job.request.request_id, token=_holding(job).token.name, why=job.why
            )
            job.again()
        await self._attempt(call, moving)

    async def _close(self, call: Call, jobs: list[Job], began: float) -> SignedHead:
        """Commit the outcomes of jobs of one version, token and algorithm."""
        version, algorithm, token = jobs[0].request.version, jobs[0].request.algorithm, _holding(jobs[0]).token.name
        seconds = time.perf_counter() - began
        self._metrics.token_seconds(token, len(jobs), seconds)
        dur_us, ts = int(seconds * 1e6), self._records.now()
        entries = [self._records.outcome(job, dur_us, ts) for job in jobs]
        replayed = [job for job in call.jobs if job.replayed is not None]
        pairs = [(job.intent_index, job.outcome_index) for job in replayed]
        proven = await self._log.close_intents(
            entries, [job.intent_index for job in jobs], pairs, alone=self._waiting == 1
        )
        written = []
        for job, entry, index in zip(jobs, entries, proven.indexes, strict=True):
            if index is None:
                job.error = OutcomeUnknown("another front took this daemon for dead and closed the request: ask again")
            else:
                job.outcome_index, job.outcome_entry = index, entry
                written.append(job)
        for job, proof in zip(written + replayed, proven.proofs, strict=True):
            job.proof = proof
        self._metrics.signed(
            version.key,
            algorithm.value,
            sum(job.released for job in jobs),
            time.perf_counter() - call.started,
        )
        for job in jobs:
            if job.result != "signed":
                self._metrics.not_signed(version.key, algorithm.value, job.result)
                self._metrics.token_failed(token, _kind(job), 1)
        return proven.head

    async def _ask_token(
        self,
        version: SigningVersion,
        holding: Holding,
        algorithm: Algorithm,
        jobs: list[Job],
        given_back: Callable[[list[Job]], None],
    ) -> None:
        operations = [Operation(job.intent_index, job.leaf_hash, job.request.tbs, job.request.message) for job in jobs]
        loop = asyncio.get_running_loop()
        here = len(jobs) <= _VERIFY_HERE and all(len(job.request.signed) <= _VERIFY_HERE_BYTES for job in jobs)
        verifying = []
        held: list[SignResult] = []
        movable = jobs[0].movable
        try:
            answers = holding.token.sign(holding.uri, algorithm, operations, movable=movable)
        finally:
            self._placement.asked(jobs)
        async for chunk in answers:
            if movable and (back := [result for result in chunk if _is_given_back(result)]):
                _take(version, holding, algorithm, jobs, back)
                given_back([jobs[result.position] for result in back])
                chunk = [result for result in chunk if not _is_given_back(result)]  # noqa: PLW2901 - the rest of it
            if here:
                _take(version, holding, algorithm, jobs, chunk)
                continue
            held += chunk
            if len(held) >= _VERIFY_CHUNK:
                verifying.append(loop.run_in_executor(self._verifiers, _take, version, holding, algorithm, jobs, held))
                held = []
        if held:
            verifying.append(loop.run_in_executor(self._verifiers, _take, version, holding, algorithm, jobs, held))
        if verifying:
            await asyncio.gather(*verifying)

    async def _answer(
        self,
        call: Call,
        items: Sequence[SignRequest],
        refused: dict[int, GreatsealError],
        head: SignedHead | None,
        until: float,
    ) -> Batch:
        """Put the results in order, with proofs under one checkpoint, and record what was refused."""
        ended = {job.request.position: job for job in call.jobs}
        for position, job, other in call.joined:
            if other is not call:
                await other.done
            ended[position] = job
        shown = [job for job in ended.values() if job.released]
        proofs = {id(job): job.proof for job in shown}
        if shown and (head is None or call.joined):
            proven = await self._log.prove([(job.intent_index, job.outcome_index) for job in shown])
            head = proven.head
            proofs = {id(job): proof for job, proof in zip(shown, proven.proofs, strict=True)}
        for job in shown:
            if job.replayed is not None and head is not None:
                require_record(job, proofs[id(job)], head)
        note = ""
        withheld: dict[int, GreatsealError] = {}
        if shown and head is not None:
            note, withheld = await self._witnessed(shown, head, proofs, until)
        failed = {position: job.failure for position, job in ended.items() if not job.released}
        held = {position: withheld[id(job)] for position, job in ended.items() if job.released and id(job) in withheld}
        errors = failed | held | refused
        if errors:
            await self._record(call, items, errors)
        results = [
            errors[position] if position in errors else _released(ended[position], proofs)
            for position in range(len(items))
        ]
        return Batch(results, note)

    async def _witnessed(
        self, shown: Sequence[Job], head: SignedHead, proofs: dict[int, tuple[bytes, bytes]], until: float
    ) -> tuple[str, dict[int, GreatsealError]]:
        """Return the note to release under, and which jobs (by id) must wait; `proofs` becomes those under that note."""
        against = self._log.standing.refusal()
        if against is not None:
            return head.note, {id(job): against for job in shown}
        if self._witnessing is None:
            return head.note, {}
        wanted = max(job.request.witnesses for job in shown)
        if not wanted:
            return self._witnessing.note(head), {}
        covered = await self._witnessing.cover(head.size, wanted, until - _WITNESS_MARGIN)
        against = self._log.standing.refusal()
        if against is not None:
            return head.note, {id(job): against for job in shown}
        have = len(covered.lines) if covered is not None else 0
        withheld: dict[int, GreatsealError] = {
            id(job): _unwitnessed(job, have) for job in shown if job.request.witnesses > have
        }
        if covered is None:
            return head.note, withheld
        if covered.head.size != head.size:
            pairs = [(job.intent_index, job.outcome_index) for job in shown]
            under = await self._log.prove_under(pairs, covered.head.size)
            proofs.update({id(job): proof for job, proof in zip(shown, under, strict=True)})
        return covered.note, withheld

    async def _record(self, call: Call, items: Sequence[SignRequest], errors: dict[int, GreatsealError]) -> None:
        for error in errors.values():
            self._metrics.refused(error.reason)
        await asyncio.gather(
            *(
                self._access.record_refusal(
                    call.caller,
                    call.peer,
                    action_of(items[position]),
                    error,
                    key=items[position].key.removeprefix("keys/"),
                    payload_type=getattr(items[position], "payload_type", ""),
                    request_id=items[position].request_id,
                )
                for position, error in errors.items()
                if isinstance(error, Refusal)
            )
        )


def _take(
    version: SigningVersion, holding: Holding, algorithm: Algorithm, jobs: list[Job], chunk: list[SignResult]
) -> None:
    """Keep the results of a chunk, each signature only if it verifies. Runs on any thread."""
    verify = version.verifiers[algorithm].verify
    for result in chunk:
        job = jobs[result.position]
        job.sequence = result.sequence
        if isinstance(result, Signed):
            try:
                verify(job.request.signed, result.signature)
            except VerificationFailed:
                version.halt("its token returned a signature that does not verify with its public key")
                job.end("failed", KeyHalted(f"{version.resource_name} is halted: {version.halted}"))
            else:
                job.signature, job.result, job.error = result.signature, "signed", None
        else:
            job.end("unknown" if result.unknown else "failed", _failure(version, holding, algorithm, result))
            job.ckr = result.ckr


def _failure(version: SigningVersion, holding: Holding, algorithm: Algorithm, result: NotSigned) -> GreatsealError:
    name = holding.token.name
    if result.locked:
        return TokenLocked(f"token {name} is locked: {result.detail}", token=name)
    if result.unknown:
        message = f"token {name} gave no answer ({result.detail}): it may have signed, and nothing was released"
        return OutcomeUnknown(message, token=name)
    if result.retry:
        return TokenUnavailable(f"token {name} cannot sign now: {result.detail}", token=name)
    if result.ckr in ALGORITHM_REFUSED:  # accepted when it was probed, and refused now
        able = (each for each in version.offered if each in holding.algorithms and each is not algorithm)
        offered = ", ".join(each.value for each in able) or "nothing else"
        message = f"{version.resource_name} does not sign with {algorithm.value}: {result.detail}; it offers {offered}"
        return AlgorithmNotOffered(message, offered=offered)
    return SigningFailed(f"token {name} refused to sign: {result.detail}", token=name, ckr=str(result.ckr))


def _is_given_back(result: SignResult) -> bool:
    """Whether another token may do what this one certainly did not."""
    return isinstance(result, NotSigned) and not result.unknown and (result.retry or result.locked)


_KINDS: Final[dict[type[GreatsealError], str]] = {
    TokenUnavailable: "unavailable",
    TokenLocked: "locked",
    KeyHalted: "wrong",
    SigningFailed: "refused",
    AlgorithmNotOffered: "refused",
}


def _kind(job: Job) -> str:
    """How a token failed a job, for its metric."""
    return "unknown" if job.result == "unknown" else _KINDS.get(type(job.error), "refused")  # type: ignore[arg-type]


def _holding(job: Job) -> Holding:
    assert job.holding is not None  # noqa: S101 - placement has set it
    return job.holding


def _end_all(jobs: list[Job], result: str, error: GreatsealError) -> None:
    """End the jobs that have no answer yet."""
    for job in jobs:
        if job.result == "unknown" and job.error is None:
            job.end(result, error)


def _unwitnessed(job: Job, have: int) -> WitnessesMissing:
    wanted = job.request.witnesses
    message = (
        f"{job.request.version.resource_name} is released with the cosignatures of {wanted} witnesses, and {have} have "
        "cosigned so far: the signature stands in the log; ask again with the same request id"
    )
    return WitnessesMissing(message, wanted=str(wanted), cosignatures=str(have))


def _is_same(running: Admitted, request: Admitted) -> bool:
    """Whether a request is the one that is under way under its id: whoever named a version gets that one."""
    return running.request_hash == request.request_hash and request.pinned in {None, running.version.number}


def _released(job: Job, proofs: dict[int, tuple[bytes, bytes]]) -> Released:
    intent_proof, outcome_proof = proofs[id(job)]
    return Released(
        (job.replayed or job.request.version).name,
        job.request.algorithm,
        job.signature,
        job.request.tbs,
        Logged(job.intent_index, job.intent_entry, intent_proof),
        Logged(job.outcome_index, job.outcome_entry, outcome_proof),
        job.replayed is not None,
    )
