"""Which part of the running daemon each gauge of `adapters.metrics_state` is read from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography import x509

from greatseald.ports.tokens import BreakerState, TokenLoad

if TYPE_CHECKING:
    from collections.abc import Callable

    from greatseald.adapters.metrics_state import Samples, StateGauges
    from greatseald.app.keys import KeyRing
    from greatseald.app.versions import SigningVersion
    from greatseald.bootstrap.compose import Core, OpenLog
    from greatseald.config import Settings
    from greatseald.rpc.tls import ServerCertificates

_OF_TOKENS: Final[dict[str, Callable[[TokenLoad], float]]] = {
    "greatseald_token_breaker_open": lambda load: load.breaker is BreakerState.OPEN,
    "greatseald_token_breaker_half_open": lambda load: load.breaker is BreakerState.HALF_OPEN,
    "greatseald_token_waiting_operations": lambda load: load.waiting,
    "greatseald_token_in_flight_operations": lambda load: load.in_flight,
    "greatseald_token_operation_seconds": lambda load: load.operation_seconds,
    "greatseald_token_late_seconds": lambda load: load.late,
    "greatseald_token_last_success_timestamp_seconds": lambda load: load.last_success,
}


def watch_state(
    gauges: StateGauges,
    settings: Settings,
    opened: OpenLog,
    core: Core,
    certificates: ServerCertificates,
) -> None:
    """Have every gauge read its part at each scrape."""
    keys = core.keys.keys
    gauges.watch(
        "greatseald_certificate_expiry_timestamp_seconds", lambda: [*certificates.expiries(), *_chains(core.keys)]
    )
    gauges.watch(
        "greatseald_key_ready",
        lambda: [((key.name,), float(any(map(_signs, key.versions.values())))) for key in keys.values()],
    )
    gauges.watch(
        "greatseald_key_halted",
        lambda: [
            ((key.name,), float(any(version.halted for version in key.versions.values()))) for key in keys.values()
        ],
    )
    for name, read in _OF_TOKENS.items():
        gauges.watch(name, lambda read=read: [((token.name,), read(token.load)) for token in core.tokens.values()])  # type: ignore[misc]
    gauges.watch_value("greatseald_anchor_entries", lambda: opened.anchor.size)
    gauges.watch_value("greatseald_anchor_timestamp_seconds", lambda: opened.anchor.written_at)
    gauges.watch_value("greatseald_waiting_items", lambda: core.signing.waiting)
    gauges.watch_value("greatseald_waiting_items_limit", lambda: settings.server.max_waiting_items)
    gauges.watch_value("greatseald_rpc_in_flight_limit", lambda: settings.server.max_concurrent_calls)
    gauges.watch_value("greatseald_log_volume_free_bytes", opened.reserve.free)
    gauges.watch_value("greatseald_log_reserve_bytes", lambda: settings.log.reserve_bytes)
    gauges.watch_value("greatseald_log_reserve_reached", lambda: float(opened.reserve.shortage() is not None))


def _signs(version: SigningVersion) -> bool:
    return version.signs and not version.certificate_error


def _chains(ring: KeyRing) -> Samples:
    for key in ring.keys.values():
        chain = [x509.load_der_x509_certificate(cert) for cert in key.primary_version.certificate_chain]
        if chain:
            yield ("key", key.name), min(cert.not_valid_after_utc for cert in chain).timestamp()
