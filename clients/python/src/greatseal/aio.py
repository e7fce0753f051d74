"""The client for asyncio: the methods of `greatseal.client`, awaited.

    async with greatseal.AsyncClient.from_profile("client.toml") as client:
        signature = await client.sign_digest("keys/scratch", hashlib.sha256(data).digest())
        async for key in client.keys.list():
            print(key.name)

A client belongs to the event loop that it is first used on. A cancelled call is cancelled at the
daemon as well, but a signature that its token was already asked for is made, logged, and returned
to whoever asks again under the same request id.
"""

# ruff: noqa: ASYNC109 - a timeout covers a call with its retries and is told to the daemon; asyncio.timeout cannot
from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc.aio

from greatseal import channel as channels
from greatseal import messages, wire
from greatseal.algorithms import Algorithm
from greatseal.calls import PAGE, Calls, Pause, Rpc, Talk
from greatseal.dsse import IN_TOTO_PAYLOAD_TYPE
from greatseal.errors import DaemonError, UsageError
from greatseal.logpages import Pages
from greatseal.profile import Profile, Setting, load
from greatseal.timestamps import Stamped

T = TypeVar("T")


class AsyncClient:
    """A connection to one daemon.

    Every method takes `timeout`, the seconds that it may take with all its retries; the profile's
    where None (30 by default). Every method may raise a `DaemonError` (the daemon or the way to it
    said no), a `VerificationFailed` (what came back does not prove what it should) or a `UsageError`
    (what was asked for is malformed).

    Args:
        profile: where the daemon is, and who we are.
        public_keys: PEM or DER public keys of the daemon's keys; signatures by them are verified.
            Those read with `keys.public_key` are added.
        on_retry: told the seconds to wait and the error each time before a call is sent again.

    Raises:
        ProfileError: the profile lacks something or names a file that cannot be used.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        public_keys: Iterable[str | bytes] = (),
        on_retry: Callable[[float, DaemonError], None] | None = None,
    ) -> None:
        self._calls = Calls(profile, public_keys=public_keys)
        self._connection = _Connection(profile, on_retry)
        self.keys = AsyncKeys(self._calls, self._connection)
        self.tokens = AsyncTokens(self._calls, self._connection)
        self.audit = AsyncAudit(self._calls, self._connection)

    @classmethod
    def from_profile(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        public_keys: Iterable[str | bytes] = (),
        on_retry: Callable[[float, DaemonError], None] | None = None,
        **settings: Setting,
    ) -> Self:
        """Open a client with a profile's file, the environment's `GREATSEAL_*` and `settings` over both.

            AsyncClient.from_profile("client.toml", timeout=5)

        Raises:
            ProfileError: as `greatseal.profile.load`.
        """
        return cls(load(path, settings), public_keys=public_keys, on_retry=on_retry)

    @property
    def profile(self) -> Profile:
        """The profile that it was opened with."""
        return self._calls.profile

    async def sign_digest(
        self,
        key: str,
        digest: bytes,
        *,
        algorithm: Algorithm | None = None,
        claimed_subject: str = "",
        claimed_payload_type: str = "",
        request_id: str = "",
        timeout: float | None = None,
    ) -> messages.Signature:
        """Have a digest signed blindly; takes the action `signBlind`.

        Args:
            key: `keys/{key}`, or `keys/{key}/versions/{n}`.
            digest: 32 (SHA-256), 48 (SHA-384) or 64 bytes (SHA-512).
            algorithm: how; the key's default where None.
            claimed_subject: what the digest is of, at most 256 bytes; logged, never checked.
            claimed_payload_type: the payload type it is of, at most 256 bytes; logged, never checked.
            request_id: a UUID; a new UUIDv7 where empty. The same id again returns the same signature.
            timeout: seconds.
        """
        item = messages.DigestRequest(key, digest, algorithm, claimed_subject, claimed_payload_type, request_id)
        return await self._connection.run(self._calls.sign(item, timeout))

    async def sign_statement(
        self,
        key: str,
        payload: bytes,
        *,
        payload_type: str = IN_TOTO_PAYLOAD_TYPE,
        algorithm: Algorithm | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> messages.Signature:
        """Have a payload signed as DSSE does, over the PAE of its type and bytes; takes the action `sign`.

        Args:
            key: `keys/{key}`, or `keys/{key}/versions/{n}`.
            payload: the payload's exact bytes, such as an in-toto statement.
            payload_type: its DSSE type.
            algorithm: how; the key's default where None.
            request_id: a UUID; a new UUIDv7 where empty. The same id again returns the same signature.
            timeout: seconds.
        """
        item = messages.StatementRequest(key, payload, payload_type, algorithm, request_id)
        return await self._connection.run(self._calls.sign(item, timeout))

    async def sign_batch(
        self, items: Sequence[messages.SignRequest], *, timeout: float | None = None
    ) -> list[messages.Signature | DaemonError]:
        """Have any number of digests and statements signed; one refusal never discards the others.

        Returns one result for each item, in their order: its signature, or the error that it met.
        Items that failed retryably are sent again, they alone, until the time is over. A result that
        does not verify raises, for then nothing in its answer can be trusted.

            results = await client.sign_batch([DigestRequest("keys/scratch", d) for d in digests], timeout=300)
        """
        return await self._connection.run(self._calls.sign_batch(items, timeout))

    async def whoami(self, *, timeout: float | None = None) -> messages.WhoAmI:
        """Return the caller as the daemon sees it, and what it may do."""
        return await self._connection.run(self._calls.whoami(timeout))

    async def close(self) -> None:
        """Close the connection; calls in flight end with an error."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncTokens:
    """The tokens; reading takes the action `readTokens`."""

    def __init__(self, calls: Calls, connection: _Connection) -> None:
        self._calls = calls
        self._connection = connection

    async def list(self, *, timeout: float | None = None) -> AsyncIterator[messages.Token]:
        """Iterate over the tokens by name, page by page; `timeout` is for each page."""
        token = ""
        while True:
            page, token = await self._connection.run(self._calls.token_page(token, timeout))
            for item in page:
                yield item
            if not token:
                return

    async def get(self, name: str, *, timeout: float | None = None) -> messages.Token:
        """Return one token, `tokens/{token}`."""
        return await self._connection.run(self._calls.token(name, timeout))

    async def drain(
        self, name: str, *, reason: str = "", request_id: str = "", timeout: float | None = None
    ) -> messages.Token:
        """Have a token finish what it has and take nothing new; takes the action `drainToken`."""
        return await self._connection.run(self._calls.change_token("DrainToken", name, reason, request_id, timeout))

    async def quarantine(
        self, name: str, *, reason: str = "", request_id: str = "", timeout: float | None = None
    ) -> messages.Token:
        """Take a token out of service at once; takes the action `quarantineToken`."""
        return await self._connection.run(
            self._calls.change_token("QuarantineToken", name, reason, request_id, timeout)
        )

    async def resume(
        self, name: str, *, reason: str = "", request_id: str = "", timeout: float | None = None
    ) -> messages.Token:
        """Put a token back into service; takes the action `resumeToken`."""
        return await self._connection.run(self._calls.change_token("ResumeToken", name, reason, request_id, timeout))


class AsyncKeys:
    """The keys that this caller may read."""

    def __init__(self, calls: Calls, connection: _Connection) -> None:
        self._calls = calls
        self._connection = connection

    async def list(self, *, timeout: float | None = None) -> AsyncIterator[messages.Key]:
        """Iterate over the keys by name, page by page; `timeout` is for each page."""
        token = ""
        while True:
            page, token = await self._connection.run(self._calls.key_page(token, timeout))
            for item in page:
                yield item
            if not token:
                return

    async def get(self, name: str, *, timeout: float | None = None) -> messages.Key:
        """Return one key, `keys/{key}`."""
        return await self._connection.run(self._calls.key(name, timeout))

    async def public_key(self, name: str, *, timeout: float | None = None) -> messages.PublicKey:
        """Return the public half of `keys/{key}` or `keys/{key}/versions/{n}`.

        From now on this client verifies signatures by it.
        """
        return await self._connection.run(self._calls.public_key(name, timeout))


class AsyncAudit:
    """The log; takes the action `readAudit`."""

    def __init__(self, calls: Calls, connection: _Connection) -> None:
        self._calls = calls
        self._connection = connection

    async def checkpoint(self, *, cosignatures: int = 0, timeout: float | None = None) -> messages.SignedCheckpoint:
        """Return the newest checkpoint, its signature checked where the profile has a `log_key`.

        With `cosignatures` it is the newest that so many of the daemon's witnesses have cosigned, waited for within the
        time-out; `greatseal.cosignature.require_quorum` verifies them.
        """
        return await self._connection.run(self._calls.checkpoint(timeout, cosignatures))

    async def entry(self, index: int, *, timeout: float | None = None) -> messages.Entry:
        """Return one entry."""
        return await self._connection.run(self._calls.entry(index, timeout))

    async def entries(
        self,
        start: int = 0,
        *,
        descending: bool = False,
        page_size: int = PAGE,
        wanted: messages.EntryFilter | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[messages.Entry]:
        """Iterate over entries from `start`, page by page; `timeout` is for each page.

        Args:
            start: the first index; descending, 0 means the end of the log.
            descending: towards index 0.
            page_size: entries a page, at most 1,000.
            wanted: which entries; all where None.
            timeout: seconds.

        Raises:
            VerificationFailed: the daemon's answer is none that a log can give.
        """
        async for page in self.pages(start, descending=descending, page_size=page_size, wanted=wanted, timeout=timeout):
            for entry in page.entries:
                yield entry

    async def pruned_size(self, *, timeout: float | None = None) -> int:
        """Return the size below which entries were dropped after an export; 0 where none were."""
        async for page in self.pages(page_size=1, timeout=timeout):
            return page.pruned_size
        return 0

    async def pages(
        self,
        start: int = 0,
        *,
        descending: bool = False,
        page_size: int = PAGE,
        wanted: messages.EntryFilter | None = None,
        with_intents: bool = False,
        timeout: float | None = None,
    ) -> AsyncIterator[messages.EntryPage]:
        """Iterate over pages of entries. A page that a filter leaves empty need not be the last.

        Args:
            start: the first index; descending, 0 means the end of the log.
            descending: towards index 0.
            page_size: entries a page, at most 1,000.
            wanted: which entries; all where None.
            with_intents: give the intents of outcomes with each page.
            timeout: seconds.

        Raises:
            VerificationFailed: the daemon's answer is none that a log can give.
        """
        pages = Pages(
            self._calls,
            start,
            descending=descending,
            page_size=page_size,
            wanted=wanted,
            with_intents=with_intents,
        )
        while not pages.done:
            yield await self._connection.run(pages.following(timeout))

    async def inclusion(
        self, index: int, tree_size: int = 0, *, timeout: float | None = None
    ) -> messages.InclusionProof:
        """Return the proof that an entry stands in a tree, the newest where `tree_size` is 0; not yet checked."""
        return await self._connection.run(self._calls.inclusion(index, tree_size, timeout))

    async def timestamps(self, *, timeout: float | None = None) -> AsyncIterator[Stamped]:
        """Iterate over the RFC 3161 timestamps, oldest first; `greatseal.timestamps.verify` checks one."""
        token = ""
        while True:
            page, token = await self._connection.run(self._calls.timestamp_page(token, timeout))
            for item in page:
                yield item
            if not token:
                return

    async def consistency(
        self, old_size: int, new_size: int = 0, *, timeout: float | None = None
    ) -> messages.ConsistencyProof:
        """Return the proof that one tree begins another, the newest where `new_size` is 0; not yet checked."""
        return await self._connection.run(self._calls.consistency(old_size, new_size, timeout))


class _Connection:
    """The channel, and what runs conversations over it on the event loop."""

    def __init__(self, profile: Profile, on_retry: Callable[[float, DaemonError], None] | None) -> None:
        self._channel = channels.open_aio_channel(profile)
        self._methods = channels.methods(self._channel)
        self._on_retry = on_retry
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        await self._channel.close()

    async def run(self, talk: Talk[T]) -> T:
        """Take a conversation's steps until it returns."""
        try:
            step = next(talk)
            while True:
                try:
                    given = await self._take(step)
                except DaemonError as error:
                    step = talk.throw(error)
                else:
                    step = talk.send(given)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _take(self, step: Any) -> Any:
        if isinstance(step, Rpc):
            if self._closed:
                message = "the client is closed"
                raise UsageError(message)
            try:
                return await self._methods[step.method](step.request, timeout=step.timeout)
            except grpc.RpcError as error:
                raise wire.error_from_rpc(error, request_id=step.request_id) from None
        if isinstance(step, Pause):
            if self._on_retry is not None:
                self._on_retry(step.seconds, step.error)
            await asyncio.sleep(step.seconds)
            return None
        return await asyncio.to_thread(step.function)
