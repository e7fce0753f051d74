"""What the client does, with no socket and no clock of its own: every method as a conversation.

A conversation is a generator. It yields a step (`Rpc`, `Pause` or `Work`), is sent what the step
gave or is thrown the `DaemonError` that it met, and returns the result. `greatseal.client` runs
conversations on threads and `greatseal.aio` on an event loop, so that both retry, split, check and
remember alike, and tests can be the peer.

Invariants:
    - Everything in one call shares one deadline; a retry repeats the request id.
    - A signature is returned only after `Checks.signature` accepted it, and, where checkpoints are
      remembered, after its checkpoint was proven to extend the remembered one.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from greatseal import messages, tlog, wire
from greatseal.checkpoint import Checkpoint
from greatseal.checks import Checks
from greatseal.errors import (
    ConnectionRefused,
    DaemonError,
    DeadlineExceeded,
    Denied,
    InvalidRequest,
    LogRegressed,
    NotFound,
    UsageError,
    VerificationFailed,
)
from greatseal.ids import new_request_id
from greatseal.profile import MAX_TIMEOUT, Profile
from greatseal.remembered import CheckpointFile, Seen
from greatseal.retry import Backoff, Deadline
from greatseal.timestamps import Stamped
from greatseal.verification import ProofInvalid

MAX_BATCH_ITEMS: Final = 1000
MAX_BATCH_BYTES: Final = 8 << 20
"""A batch is split above so many items, or bytes of requests; one larger item goes alone."""
PAGE: Final = 1000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rpc:
    """Call a method of the API; gives its answer, or throws a `DaemonError`."""

    method: str
    request: Any
    timeout: float
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds because of an error; gives None."""

    seconds: float
    error: DaemonError


@dataclass(frozen=True, slots=True)
class Work:
    """Run a function that computes for long or touches the disk; gives what it returns."""

    function: Callable[[], Any]


Step = Rpc | Pause | Work
Talk = Generator[Step, Any, T]


class Calls:
    """The conversations with one daemon."""

    def __init__(
        self, profile: Profile, *, public_keys: Iterable[str | bytes] = (), backoff: Backoff | None = None
    ) -> None:
        self.profile = profile
        self.checks = Checks(profile.log_key, public_keys)
        self._backoff = backoff or Backoff()
        self._memory: CheckpointFile | None = None
        if profile.checkpoint_file is not None and self.checks.log_key is not None:
            self._memory = CheckpointFile(profile.checkpoint_file, self.checks.log_key)

    # --- signing

    def sign(self, item: messages.SignRequest, timeout: float | None) -> Talk[messages.Signature]:
        """Have one digest or statement signed."""
        deadline = self._deadline(timeout)
        item = _with_id(item)
        method = "SignStatement" if isinstance(item, messages.StatementRequest) else "SignDigest"
        before = yield from self._remembered()
        answer = yield from self._ask(method, wire.sign_request(item), deadline, item.request_id)
        signature, seen = self.checks.signature(item, answer, answer.receipt.checkpoint)
        if seen is not None:
            yield from self._compare(before, seen, deadline)
        return signature

    def sign_batch(
        self, items: Sequence[messages.SignRequest], timeout: float | None
    ) -> Talk[list[messages.Signature | DaemonError]]:
        """Have many signed, in as many calls as it takes; items that failed retryably are sent again."""
        deadline = self._deadline(timeout)
        items = [_with_id(item) for item in items]
        ids = [item.request_id for item in items]
        if len(set(ids)) != len(ids):
            message = "two items of the batch have the same request id: each needs its own"
            raise UsageError(message)
        encoded = [wire.batch_item(item) for item in items]
        results: list[messages.Signature | DaemonError | None] = [None] * len(items)
        before = yield from self._remembered()
        hopeless: DaemonError | None = None
        for chunk in split([item.ByteSize() for item in encoded]):
            if hopeless is None:
                hopeless = yield from self._sign_chunk(items, encoded, chunk, results, before, deadline)
            else:
                for position in chunk:
                    results[position] = _about(hopeless, ids[position])
        return [result for result in results if result is not None]

    def _sign_chunk(
        self,
        items: Sequence[messages.SignRequest],
        encoded: Sequence[Any],
        chunk: Sequence[int],
        results: list[messages.Signature | DaemonError | None],
        before: Seen | None,
        deadline: Deadline,
    ) -> Talk[DaemonError | None]:
        """Fill in the results at these positions; return the error that would meet every later chunk too."""
        pending: Sequence[int] = chunk
        attempt = 0
        while True:
            error: DaemonError | None = None
            try:
                request = wire.batch_request(encoded[position] for position in pending)
                answer = yield Rpc("BatchSign", request, deadline.remaining())
            except DaemonError as met:
                error = met
                for position in pending:
                    # What was learnt from an earlier try says more than that the time is over.
                    if not (isinstance(error, DeadlineExceeded) and results[position] is not None):
                        results[position] = _about(error, items[position].request_id)
            else:
                sent = [items[position] for position in pending]
                outcomes, seen = yield Work(partial(self.checks.batch, sent, answer))
                for position, outcome in zip(pending, outcomes, strict=True):
                    results[position] = outcome
                if seen is not None:
                    yield from self._compare(before, seen, deadline)
            again, pauses = [], []
            last: DaemonError | None = None
            for position in pending:
                outcome = results[position]
                if isinstance(outcome, DaemonError):
                    pause = self._backoff.pause(outcome, attempt, deadline.left())
                    if pause is not None:
                        again.append(position)
                        pauses.append(pause)
                        last = outcome
            if last is None:
                return error if isinstance(error, (Denied, DeadlineExceeded, ConnectionRefused)) else None
            yield Pause(max(pauses), last)
            pending = again
            attempt += 1

    # --- identity and keys

    def whoami(self, timeout: float | None) -> Talk[messages.WhoAmI]:
        """Ask who we are."""
        return wire.whoami((yield from self._ask("WhoAmI", wire.whoami_request(), self._deadline(timeout))))

    def key_page(self, page_token: str, timeout: float | None) -> Talk[tuple[list[messages.Key], str]]:
        """Read one page of keys and the token of the next."""
        answer = yield from self._ask("ListKeys", wire.list_keys_request(page_token), self._deadline(timeout))
        return [wire.key(key) for key in answer.keys], _next_page(answer, page_token, some=True)

    def key(self, name: str, timeout: float | None) -> Talk[messages.Key]:
        """Read one key."""
        return wire.key((yield from self._ask("GetKey", wire.get_key_request(key_name(name)), self._deadline(timeout))))

    def token_page(self, page_token: str, timeout: float | None) -> Talk[tuple[list[messages.Token], str]]:
        """Read one page of tokens and the page token of the next."""
        answer = yield from self._ask("ListTokens", wire.list_tokens_request(page_token), self._deadline(timeout))
        return [wire.token(token) for token in answer.tokens], _next_page(answer, page_token, some=True)

    def token(self, name: str, timeout: float | None) -> Talk[messages.Token]:
        """Read one token; `soft` is short for `tokens/soft`."""
        request = wire.get_token_request(token_name(name))
        return wire.token((yield from self._ask("GetToken", request, self._deadline(timeout))))

    def change_token(
        self, method: str, name: str, reason: str, request_id: str, timeout: float | None
    ) -> Talk[messages.Token]:
        """Take a token out of service or put it back: DrainToken, QuarantineToken or ResumeToken."""
        request_id = checked_request_id(request_id)
        request = wire.token_change_request(method, token_name(name), request_id, reason)
        return wire.token((yield from self._ask(method, request, self._deadline(timeout), request_id)))

    def public_key(self, name: str, timeout: float | None) -> Talk[messages.PublicKey]:
        """Read a public key; signatures by it are verified from now on."""
        request = wire.get_public_key_request(key_name(name))
        public = wire.public_key((yield from self._ask("GetPublicKey", request, self._deadline(timeout))))
        self.checks.know(public.pem)
        return public

    # --- the log

    def checkpoint(self, timeout: float | None, cosignatures: int = 0) -> Talk[messages.SignedCheckpoint]:
        """Read the newest checkpoint, check it as far as the log's key is known, and remember it.

        With `cosignatures` it is the newest that so many witnesses have cosigned; whether by whom one trusts is for
        the caller to verify.
        """
        deadline = self._deadline(timeout)
        before = yield from self._remembered()
        answer = yield from self._ask("GetCheckpoint", wire.get_checkpoint_request(cosignatures), deadline)
        checkpoint, seen = self.checks.checkpoint(answer.note)
        if (answer.size, answer.root) != (checkpoint.size, checkpoint.root):
            message = "the daemon's checkpoint says another size or root than the note that it signed"
            raise VerificationFailed(message)
        if seen is not None:
            yield from self._compare(before, seen, deadline)
        return messages.SignedCheckpoint(answer.note, checkpoint.size, checkpoint.root, verified=seen is not None)

    def entry(self, index: int, timeout: float | None) -> Talk[messages.Entry]:
        """Read one entry."""
        _natural(index=index)
        entry = wire.entry((yield from self._ask("GetEntry", wire.get_entry_request(index), self._deadline(timeout))))
        if entry.index != index:
            message = f"entry {index} was asked for and the daemon answered with entry {entry.index}"
            raise VerificationFailed(message)
        return entry

    def inclusion(self, index: int, tree_size: int, timeout: float | None) -> Talk[messages.InclusionProof]:
        """Read an inclusion proof; it is checked where entry and root are, not here."""
        _natural(index=index, tree_size=tree_size)
        request = wire.inclusion_request(index, tree_size)
        proof = wire.inclusion_proof((yield from self._ask("GetInclusionProof", request, self._deadline(timeout))))
        if proof.index != index or proof.tree_size != (tree_size or proof.tree_size):
            message = "the daemon answered with the inclusion proof of another entry or tree"
            raise VerificationFailed(message)
        return proof

    def consistency(self, old_size: int, new_size: int, timeout: float | None) -> Talk[messages.ConsistencyProof]:
        """Read a consistency proof; it is checked where the roots are, not here."""
        _natural(old_size=old_size, new_size=new_size)
        return (yield from self._consistency(old_size, new_size, self._deadline(timeout)))

    def timestamp_page(self, page_token: str, timeout: float | None) -> Talk[tuple[list[Stamped], str]]:
        """Read one page of timestamps, not yet checked, and the token of the next."""
        answer = yield from self._ask(
            "ListTimestamps", wire.list_timestamps_request(page_token), self._deadline(timeout)
        )
        return [wire.timestamp(each) for each in answer.timestamps], _next_page(answer, page_token, some=True)

    def _consistency(self, old_size: int, new_size: int, deadline: Deadline) -> Talk[messages.ConsistencyProof]:
        request = wire.consistency_request(old_size, new_size)
        proof = wire.consistency_proof((yield from self._ask("GetConsistencyProof", request, deadline)))
        if proof.old_size != old_size or proof.new_size != (new_size or proof.new_size):
            message = "the daemon answered with the consistency proof of other sizes"
            raise VerificationFailed(message)
        return proof

    # --- the remembered checkpoint

    def _remembered(self) -> Talk[Seen | None]:
        return (yield Work(self._memory.read)) if self._memory is not None else None

    def _compare(self, before: Seen | None, new: Seen, deadline: Deadline) -> Talk[None]:
        """Prove that a new checkpoint and the remembered one are of one log, and remember the larger.

        `before` was remembered when the call began: the new one may not be smaller. What is
        remembered now may be larger, for other calls and processes go on meanwhile.
        """
        if self._memory is None:
            return
        if before is not None and new.checkpoint.size < before.checkpoint.size:
            raise _regressed("is shorter than", before, new, self._memory)
        while True:
            known: Seen | None = yield Work(self._memory.read)
            if known is not None:
                yield from self._prove(known, new, deadline)
                if new.checkpoint.size <= known.checkpoint.size:
                    return
            if (yield Work(partial(self._memory.replace, known, new.note))):
                return

    def _prove(self, known: Seen, new: Seen, deadline: Deadline) -> Talk[None]:
        assert self._memory is not None  # noqa: S101 - only called by _compare
        small, large = sorted((known.checkpoint, new.checkpoint), key=lambda checkpoint: checkpoint.size)
        if small.size == large.size:
            if small.root != large.root:
                raise _regressed("has another root than, at the same size,", known, new, self._memory)
            return
        if small.size == 0:
            return
        try:
            proof = yield from self._consistency(small.size, large.size, deadline)
            check_consistency(small, large, proof.hashes)
        except (ProofInvalid, NotFound, InvalidRequest) as error:
            raise _regressed("is not proven to continue", known, new, self._memory) from error
        except Denied as error:
            error.add_note("checkpoint_file compares every new checkpoint, which takes the action readAudit")
            raise

    # --- asking

    def ask(self, method: str, request: Any, timeout: float | None) -> Talk[Any]:
        """Call a method that reads."""
        return (yield from self._ask(method, request, self._deadline(timeout)))

    def _deadline(self, timeout: float | None) -> Deadline:
        seconds = self.profile.timeout if timeout is None else timeout
        if not 0 < seconds <= MAX_TIMEOUT:
            message = f"timeout must be above 0 and at most {MAX_TIMEOUT:.0f} seconds, not {seconds}"
            raise UsageError(message)
        return Deadline.after(seconds)

    def _ask(self, method: str, request: Any, deadline: Deadline, request_id: str = "") -> Talk[Any]:
        """Call until it is answered, refused, or the deadline would pass first."""
        attempt = 0
        before: DaemonError | None = None
        while True:
            try:
                return (yield Rpc(method, request, deadline.remaining(), request_id))
            except DaemonError as error:
                pause = self._backoff.pause(error, attempt, deadline.left())
                if pause is None:
                    # That the time ran out is less news than why the tries before failed.
                    if isinstance(error, DeadlineExceeded) and before is not None:
                        raise before from error
                    raise
                before = error
            yield Pause(pause, before)
            attempt += 1


def check_consistency(old: Checkpoint, new: Checkpoint, hashes: Sequence[bytes]) -> None:
    """Check that the tree of `old` is the beginning of that of `new`.

    Raises:
        ProofInvalid: the proof does not say so.
    """
    tlog.verify_consistency(old.size, new.size, list(hashes), old.root, new.root)


def split(sizes: Sequence[int]) -> list[range]:
    """Cut a list of items, given by their sizes in bytes, into the calls of a batch."""
    chunks, start, total = [], 0, 0
    for position, size in enumerate(sizes):
        if position > start and (position - start >= MAX_BATCH_ITEMS or total + size > MAX_BATCH_BYTES):
            chunks.append(range(start, position))
            start, total = position, 0
        total += size
    if start < len(sizes):
        chunks.append(range(start, len(sizes)))
    return chunks


def key_name(name: str) -> str:
    """Return a key's resource name; `release` is short for `keys/release`.

    Raises:
        UsageError: the name is empty.
    """
    if not name:
        message = "a key's name is empty; `greatseal keys list` shows the names"
        raise UsageError(message)
    return name if "/" in name else f"keys/{name}"


def token_name(name: str) -> str:
    """Return a token's resource name; `soft` is short for `tokens/soft`."""
    return name if "/" in name else f"tokens/{name}"


def checked_request_id(request_id: str) -> str:
    """Return a request id in its usual form, a new one where it is empty.

    Raises:
        UsageError: it is not a UUID.
    """
    if not request_id:
        return new_request_id()
    try:
        return str(uuid.UUID(request_id))
    except ValueError:
        message = f"the request id {request_id[:80]!r} is not a UUID"
        raise UsageError(message) from None


def _with_id(item: messages.SignRequest) -> messages.SignRequest:
    """Return the item with its key's full name and an id of its own."""
    return dataclasses.replace(item, key=key_name(item.key), request_id=checked_request_id(item.request_id))


def _about(error: DaemonError, request_id: str) -> DaemonError:
    """Return an error of a whole call as that of one of its items."""
    return type(error)(
        error.message,
        reason=error.reason,
        code=error.code,
        metadata=error.metadata,
        retry_after=error.retry_after,
        request_id=request_id,
    )


def _regressed(how: str, known: Seen, new: Seen, memory: CheckpointFile) -> LogRegressed:
    message = (
        f"the log's new checkpoint (size {new.checkpoint.size}, root {new.checkpoint.root.hex()[:16]}…) {how} the remembered one "
        f"(size {known.checkpoint.size}, root {known.checkpoint.root.hex()[:16]}…): the log was rolled back or forked, or an older copy "
        f"of it was restored. {memory.path} was left as it is: keep it as evidence and ask the operator"
    )
    return LogRegressed(message, remembered=known.note, presented=new.note)


def _next_page(answer: Any, asked: str, *, some: bool) -> str:
    token: str = answer.next_page_token
    if token and (token == asked or not some):
        message = "the daemon's pages do not end: a page is empty or the same as the one before"
        raise VerificationFailed(message)
    return token


def _natural(**numbers: int) -> None:
    for name, number in numbers.items():
        if not 0 <= number < 1 << 63:
            message = f"{name} must be from 0 to 2^63 - 1, not {number}"
            raise UsageError(message)
