"""Gauges that are asked for at each scrape: what state the daemon is in, read where it is kept.

    gauges = StateGauges(registry)
    gauges.watch("greatseald_key_halted", lambda: [(("release",), 0.0)])     # label values, value

All of them are in the exposition from the first scrape on, without samples until somebody watches.
A source that fails loses its own samples for that scrape and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_log = structlog.get_logger("greatseald.metrics")

Samples = Iterable[tuple[tuple[str, ...], float]]

_GAUGES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "greatseald_certificate_expiry_timestamp_seconds": (
        "When a certificate in force expires, Unix time; of a key's chain the first to expire.",
        ("kind", "name"),
    ),
    "greatseald_key_ready": ("1 while the key can sign, its token and itself, 0 while it cannot.", ("key",)),
    "greatseald_key_halted": ("1 while the key is halted and waits for `greatseald key release`.", ("key",)),
    "greatseald_token_breaker_open": (
        "1 while the token failed so often that it is left alone for a while.",
        ("token",),
    ),
    "greatseald_token_breaker_half_open": (
        "1 while a token that failed is tried with one operation at a time.",
        ("token",),
    ),
    "greatseald_token_waiting_operations": ("Operations that wait for a token, and that its host has not.", ("token",)),
    "greatseald_token_in_flight_operations": ("Operations that a token's host has.", ("token",)),
    "greatseald_token_operation_seconds": (
        "How long a token takes for one operation in one session; 0 while that was not measured.",
        ("token",),
    ),
    "greatseald_token_late_seconds": (
        "For how long a token's next result has been overdue; grows while it hangs.",
        ("token",),
    ),
    "greatseald_token_last_success_timestamp_seconds": (
        "When a token last signed in this boot, Unix time; 0 before the first.",
        ("token",),
    ),
    "greatseald_anchor_entries": ("Size of the log that the anchor remembers.", ()),
    "greatseald_anchor_timestamp_seconds": ("When the anchor was last advanced, Unix time.", ()),
    "greatseald_index_behind_entries": ("Entries of the log that the search index does not cover yet.", ()),
    "greatseald_tiles_entries": ("Size of the newest checkpoint that is published as tiles.", ()),
    "greatseald_tiles_timestamp_seconds": ("When the tiles were last found or made current, Unix time.", ()),
    "greatseald_tiles_behind_entries": ("Entries of the log that are not published as tiles yet.", ()),
    "greatseald_tiles_failing": ("1 while the tiles cannot be published: alarm on it.", ()),
    "greatseald_tiles_disagree": (
        "1 once the directory of the tiles held another history than the log: nothing is published there any more.",
        (),
    ),
    "greatseald_waiting_items": ("Digests and statements on their way now.", ()),
    "greatseald_waiting_items_limit": ("How many may be on their way before calls are shed.", ()),
    "greatseald_rpc_in_flight_limit": ("How many calls may be served at once before calls are shed.", ()),
    "greatseald_log_volume_free_bytes": ("Free space of the log's volume, as an unprivileged user sees it.", ()),
    "greatseald_log_reserve_bytes": ("Free space below which nothing new is signed, [log] reserve_bytes.", ()),
    "greatseald_log_reserve_reached": ("1 while nothing new is signed for lack of free space.", ()),
}


class StateGauges(Collector):
    """The gauges of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._sources: dict[str, Callable[[], Samples]] = {}
        registry.register(self)

    def watch(self, name: str, read: Callable[[], Samples]) -> None:
        """Ask `read` at each scrape. Raises KeyError for a name that is not one of the gauges."""
        _GAUGES[name]
        self._sources[name] = read

    def watch_value(self, name: str, read: Callable[[], float]) -> None:
        """As `watch`, for a gauge without labels."""
        self.watch(name, lambda: [((), read())])

    def collect(self) -> Iterable[GaugeMetricFamily]:
        for name, (text, labels) in _GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=labels)
            source = self._sources.get(name)
            if source is not None:
                try:
                    for values, value in source():
                        family.add_metric(values, value)
                except Exception:  # noqa: BLE001 - the other metrics matter all the more then
                    _log.exception("gauge_unreadable", gauge=name)
            yield family
