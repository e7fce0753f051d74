"""Which part of the running daemon each gauge of `adapters.metrics_state` is read from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509

if TYPE_CHECKING:
    from greatseald.adapters.metrics_state import Samples, StateGauges
    from greatseald.adapters.tokens.supervisor import SupervisedToken
    from greatseald.app.keys import KeyRing
    from greatseald.app.versions import SigningVersion
    from greatseald.bootstrap.compose import Core, OpenLog
    from greatseald.config import Settings
    from greatseald.rpc.tls import ServerCertificates


def watch_state(
    gauges: StateGauges,
    settings: Settings,
    opened: OpenLog,
    core: Core,
    tokens: dict[str, SupervisedToken],
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
    gauges.watch(
        "greatseald_token_breaker_open",
        lambda: [((token.name,), float(token.breaker_open)) for token in tokens.values()],
    )
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
