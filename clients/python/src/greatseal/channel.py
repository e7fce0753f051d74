"""The connection: one gRPC channel over mutual TLS, sync or asyncio, and its stubs by method name.

gRPC's own retries are off: whether a call may be sent again is decided in `greatseal.calls` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc

from greatseal.profile import Profile
from greatseal.v1 import audit_pb2_grpc, identity_pb2_grpc, key_pb2_grpc, signing_pb2_grpc, token_pb2_grpc
from greatseal.version import VERSION

if TYPE_CHECKING:
    from grpc import aio

MAX_RECEIVED: Final = 64 << 20
"""Largest answer taken, in bytes: a page of 1,000 entries of 16 KiB and a batch of 1,000 receipts fit."""
MAX_SENT: Final = 16 << 20
"""Largest request sent, in bytes; the daemon's own default limit."""

_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    ("grpc.max_receive_message_length", MAX_RECEIVED),
    ("grpc.max_send_message_length", MAX_SENT),
    ("grpc.enable_retries", 0),
    # A dead peer is noticed while a call waits; an idle connection sends nothing.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # Our back-off decides when to call again; the channel must not still be sleeping by then.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A proxy from the environment would not pass mutual TLS through.
    ("grpc.enable_http_proxy", 0),
    # Two clients of one process share no connection, so that closing one closes its own.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.primary_user_agent", f"greatseal-python/{VERSION}"),
)

_STUBS: Final = (
    signing_pb2_grpc.SigningServiceStub,
    key_pb2_grpc.KeyServiceStub,
    token_pb2_grpc.TokenServiceStub,
    audit_pb2_grpc.AuditServiceStub,
    identity_pb2_grpc.IdentityServiceStub,
)


def open_channel(profile: Profile) -> grpc.Channel:
    """Return a channel; it connects at the first call.

    Raises:
        ProfileError: the address or a certificate is missing, malformed, or a key open to others.
    """
    return grpc.secure_channel(profile.target(), _credentials(profile), options=_options(profile))


def open_aio_channel(profile: Profile) -> aio.Channel:
    """Return a channel for asyncio; it connects at the first call.

    Raises:
        ProfileError: as `open_channel`.
    """
    from grpc import aio  # takes asyncio with it, which `Client` does without

    return aio.secure_channel(profile.target(), _credentials(profile), options=_options(profile))


def methods(channel: grpc.Channel | aio.Channel) -> dict[str, Any]:
    """Return the callables of every service by the method's name, such as `SignDigest`."""
    found: dict[str, Any] = {}
    for stub in _STUBS:
        found.update(vars(stub(channel)))
    return found


def _credentials(profile: Profile) -> grpc.ChannelCredentials:
    ca, key, chain = profile.credentials()
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=chain)


def _options(profile: Profile) -> list[tuple[str, int | str]]:
    options = list(_OPTIONS)
    if profile.server_name:
        options.append(("grpc.ssl_target_name_override", profile.server_name))
    return options
