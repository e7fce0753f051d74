"""Every way in which the client fails, as one tree.

    GreatsealError                      retry  exit
    ├── UsageError                      no     2     what was asked for is malformed; nothing was sent
    │   └── ProfileError                no     2     the client's profile is missing, malformed or unsafe
    │       └── DaemonNotRunning        no     5     the profile leads to a daemon of this machine that is not running
    ├── VerificationFailed              no     6     evidence does not verify (a signature, receipt, model, log)
    │   └── LogRegressed                no     6     the log is shorter than, or differs from, what was seen before
    └── DaemonError                                  the daemon, or the way to it, said no
        ├── InvalidRequest              no     2     the daemon cannot serve this request as it is
        │   └── RequestIdReused         no     2     another request was made under this request id
        ├── NotFound                    no     2     no key, log or entry has this name
        ├── Denied                      no     3     the caller may not
        ├── NotReady                    no     5     a key, token or certificate needs an operator
        ├── InFlight                    told   5     the same request is being worked on elsewhere
        ├── Unavailable                 yes    5     the daemon or the token cannot be reached now
        │   └── ConnectionRefused       no     5     the TLS handshake failed: trying again changes nothing
        ├── DeadlineExceeded            no     5     no answer in time; ask again with the same request id
        ├── Exhausted                   no     5     over a limit of the daemon's
        └── DaemonFault                 no     1     a fault of the daemon itself

`exit_code` is what the command `greatseal` ends with. `retryable` says whether the same request,
under the same request id, may succeed by being sent again; the client does that itself within the
deadline, so that an error that reaches the caller has been retried already. `InFlight` is retryable
where the daemon said when to ask again.

    try:
        client.sign_digest("keys/scratch", digest)
    except greatseal.Denied as error:
        print(error, error.reason, error.request_id)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar


class GreatsealError(Exception):
    """The root: catch it for everything that this package raises on purpose.

    `message` says what happened, why and, where there is something to do, what to do next; it
    never holds a secret.
    """

    exit_code: ClassVar[int] = 1
    default_retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed by being sent again."""
        return self.default_retryable


class UsageError(GreatsealError):
    """What was asked for is malformed; nothing was sent."""

    exit_code = 2


class ProfileError(UsageError):
    """The client's profile is missing, malformed or unsafe; the message names file and key."""


class DaemonNotRunning(ProfileError):
    """The profile leads to a daemon through the file that it writes while it runs, and there is no such file."""

    exit_code = 5


class VerificationFailed(GreatsealError):
    """Evidence does not verify; nothing that came with it may be used."""

    exit_code = 6


class LogRegressed(VerificationFailed):
    """The log shows less than, or something else than, it showed before: it was rolled back or forked.

    `remembered` and `presented` are the two signed notes that contradict each other: the evidence.
    """

    def __init__(self, message: str, *, remembered: str = "", presented: str = "") -> None:
        super().__init__(message)
        self.remembered = remembered
        self.presented = presented


class DaemonError(GreatsealError):
    """The daemon, or the way to it, refused or failed.

    Attributes:
        reason: the name in `greatseal.v1.ErrorReason`, such as `ACCESS_DENIED`; empty where the
            answer did not come from a daemon (no connection, a proxy).
        code: the gRPC status code's name, such as `PERMISSION_DENIED`.
        metadata: short strings that go with the reason (`field`, `path`, `offered`, ...).
        retry_after: seconds after which the daemon invites the same request again; None where it does not.
        request_id: the request's id where one request failed; the same id may be used again.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: str = "",
        metadata: Mapping[str, str] = MappingProxyType({}),
        retry_after: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code
        self.metadata = MappingProxyType(dict(metadata))
        self.retry_after = retry_after
        self.request_id = request_id


class InvalidRequest(DaemonError):
    """The daemon cannot serve this request as it is: change it."""

    exit_code = 2


class RequestIdReused(InvalidRequest):
    """Another request was made under this request id: use a new id for a new request."""


class NotFound(DaemonError):
    """No key, log or entry has this name."""

    exit_code = 2


class Denied(DaemonError):
    """The caller may not do this; an operator's rule or certificate has to change."""

    exit_code = 3


class NotReady(DaemonError):
    """A key, its token or its certificate needs an operator."""

    exit_code = 5


class InFlight(DaemonError):
    """The same request is being worked on elsewhere; retryable where the daemon says when."""

    exit_code = 5

    @property
    def retryable(self) -> bool:
        """Only where the answer had a RetryInfo."""
        return self.retry_after is not None


class Unavailable(DaemonError):
    """The daemon, its log or the token cannot be reached now."""

    exit_code = 5
    default_retryable = True


class ConnectionRefused(Unavailable):
    """The TLS handshake failed, for one side refuses the other's certificate."""

    default_retryable = False


class DeadlineExceeded(DaemonError):
    """No answer in time. The request may still be served: ask again with the same request id."""

    exit_code = 5


class Exhausted(DaemonError):
    """Over a limit of the daemon's or of the connection's."""

    exit_code = 5


class DaemonFault(DaemonError):
    """A fault of the daemon itself; its log has more under metadata `correlation_id`."""
