"""Metrics for Prometheus: `ports.metrics.Metrics` and the gate's `CallMetrics`, over prometheus_client.

Label values are bounded: keys, tokens, algorithms, reasons and methods come from the configuration
and from the API, never from a caller.

Histograms are kept here and only rendered by prometheus_client, whose own take a lock for each
bucket. Each is written by one thread (the event loop, or the log's writer); a scrape reads whatever
is there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from greatseald.adapters.metrics_state import StateGauges
from greatseald.ports.tokens import TokenState

_FAST: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.5, 5.0, 10.0, 30.0)
_BOUNDS: Final = (*map(str, _FAST), "+Inf")
_TOKEN_STATES: Final = tuple(state.value for state in TokenState)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class _Series:
    """The observations of one set of label values."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_FAST) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_FAST, seconds)] += 1
        self.total += seconds


class _Seconds(Collector):
    """A histogram of durations with labels."""

    def __init__(self, registry: CollectorRegistry, name: str, text: str, labels: tuple[str, ...] = ()) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._series: dict[tuple[str, ...], _Series] = {}
        registry.register(self)

    def observe(self, seconds: float, *labels: str) -> None:
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series()
        series.observe(seconds)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, series in list(self._series.items()):
            running = list(accumulate(series.counts))
            family.add_metric(labels, list(zip(_BOUNDS, running, strict=True)), series.total)
        yield family


class PrometheusMetrics:
    """The daemon's metrics, in a registry of its own."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._children: dict[tuple[Counter, tuple[str, ...]], Counter] = {}
        ProcessCollector(registry=registry)
        build = Gauge(
            "greatseald_build_info", "Always 1; the label says which version runs.", ["version"], registry=registry
        )
        build.labels(version).set(1)
        self._signatures = Counter(
            "greatseald_signatures",
            "Signatures released, replayed ones not counted again.",
            ["key", "algorithm"],
            registry=registry,
        )
        self._signing = _Seconds(
            registry,
            "greatseald_signing_seconds",
            "From the arrival of a group of requests of one key to the durable, verified outcome of all of them.",
            ("key", "algorithm"),
        )
        self._refusals = Counter(
            "greatseald_refusals",
            "Requests refused or failed, by ErrorReason; items of batches count one by one.",
            ["reason"],
            registry=registry,
        )
        self._commit_seconds = _Seconds(
            registry,
            "greatseald_log_commit_seconds",
            "One group commit of the audit log, checkpoint and anchor included.",
        )
        self._committed = Counter(
            "greatseald_log_committed_entries", "Entries that this boot committed.", registry=registry
        )
        self._log_entries = Gauge("greatseald_log_entries", "Size of the audit log.", registry=registry)
        self._open_intents = Gauge(
            "greatseald_open_intents", "Intents of this front without an outcome; 0 when idle.", registry=registry
        )
        self._token_operations = Counter(
            "greatseald_token_operations", "Operations given to a token.", ["token"], registry=registry
        )
        self._token_seconds = _Seconds(
            registry, "greatseald_token_seconds", "How long a token worked on one group of operations.", ("token",)
        )
        self._touch_awaited = Gauge(
            "greatseald_token_touch_awaited",
            "1 while a token waits for a person to touch it.",
            ["token"],
            registry=registry,
        )
        self._token_state = Gauge(
            "greatseald_token_state",
            "1 for the state that a token is in, 0 for the others.",
            ["token", "state"],
            registry=registry,
        )
        self._token_failures = Counter(
            "greatseald_token_failures",
            "Operations that a token did not do, by kind: unavailable, locked, refused, unknown, wrong.",
            ["token", "kind"],
            registry=registry,
        )
        self._restarts = Counter(
            "greatseald_host_restarts",
            "Token hosts that were replaced after a crash, a timeout or a lost device.",
            ["token", "cause"],
            registry=registry,
        )
        self._suppressed = Counter(
            "greatseald_denials_suppressed",
            "Denials counted into a later log entry rather than logged one by one.",
            registry=registry,
        )
        self._anchor_failures = Counter(
            "greatseald_anchor_failures", "Times the anchor could not be advanced; signing went on.", registry=registry
        )
        outside = ["kind", "anchor"]
        self._outside_entries = Gauge(
            "greatseald_outside_anchor_entries",
            "Size of the log that a witness, timestamp authority or peer has seen last.",
            outside,
            registry=registry,
        )
        self._outside_failures = Counter(
            "greatseald_outside_anchor_failures",
            "Times a witness, timestamp authority or peer gave no answer that could be used.",
            outside,
            registry=registry,
        )
        self._outside_failing = Gauge(
            "greatseald_outside_anchor_failing",
            "1 while the last exchange with a witness, timestamp authority or peer has failed: alarm on it.",
            outside,
            registry=registry,
        )
        self._outside_disagrees = Gauge(
            "greatseald_outside_anchor_disagrees",
            "1 once a witness or peer has seen another history; nothing is signed until it is sorted out.",
            outside,
            registry=registry,
        )
        self._outbox_delivered = Counter(
            "greatseald_outbox_delivered_entries",
            "Entries that a sink of the outbox has taken; those delivered twice count twice.",
            ["outbox"],
            registry=registry,
        )
        self._outbox_behind = Gauge(
            "greatseald_outbox_behind_entries",
            "Entries of the log that a sink has not taken yet; grows while the sink is dead.",
            ["outbox"],
            registry=registry,
        )
        self._outbox_failures = Counter(
            "greatseald_outbox_failures",
            "Deliveries that a sink did not take; each is tried again.",
            ["outbox"],
            registry=registry,
        )
        self._outbox_failing = Gauge(
            "greatseald_outbox_failing",
            "1 while the last delivery of a sink has failed: alarm on it.",
            ["outbox"],
            registry=registry,
        )
        self._calls = _Seconds(
            registry, "greatseald_rpc_seconds", "Calls of the API by method and status code.", ("method", "code")
        )
        self._in_flight = Gauge("greatseald_rpc_in_flight", "Calls being served now.", registry=registry)
        self._serving = Gauge("greatseald_serving", "1 while gRPC health answers SERVING.", registry=registry)
        self._reloads = Counter(
            "greatseald_config_reloads", "Reloads of the configuration.", ["result"], registry=registry
        )
        self._not_signed = Counter(
            "greatseald_signatures_failed",
            "Intents that gave no signature: failed (not signed), unknown (perhaps signed, not released), aborted (not asked).",
            ["key", "algorithm", "result"],
            registry=registry,
        )
        self.state = StateGauges(registry)

    def text(self) -> bytes:
        """Return the exposition format, version 0.0.4."""
        return generate_latest(self.registry)

    def watch_in_flight(self, read: Callable[[], float]) -> None:
        """Ask `read` at each scrape."""
        self._in_flight.set_function(read)

    def watch_serving(self, read: Callable[[], bool]) -> None:
        """Ask `read` at each scrape."""
        self._serving.set_function(read)

    def reloaded(self, result: str) -> None:
        """A reload ended: `ok` or `refused`."""
        self._reloads.labels(result).inc()

    def called(self, method: str, code: str, seconds: float) -> None:
        self._calls.observe(seconds, method, code)

    def signed(self, key: str, algorithm: str, count: int, seconds: float) -> None:
        self._child(self._signatures, key, algorithm).inc(count)
        self._signing.observe(seconds, key, algorithm)

    def not_signed(self, key: str, algorithm: str, result: str) -> None:
        self._not_signed.labels(key, algorithm, result).inc()

    def _child(self, counter: Counter, *labels: str) -> Counter:
        """A counter's child; `labels()` takes a lock and checks its arguments at every call."""
        child = self._children.get((counter, labels))
        if child is None:
            child = self._children[counter, labels] = counter.labels(*labels)
        return child

    def refused(self, reason: str, count: int = 1) -> None:
        self._refusals.labels(reason).inc(count)

    def committed(self, entries: int, seconds: float) -> None:
        self._committed.inc(entries)
        self._commit_seconds.observe(seconds)

    def log_size(self, entries: int, open_intents: int) -> None:
        self._log_entries.set(entries)
        self._open_intents.set(open_intents)

    def token_seconds(self, token: str, operations: int, seconds: float) -> None:
        self._child(self._token_operations, token).inc(operations)
        self._token_seconds.observe(seconds, token)

    def token_state(self, token: str, state: str) -> None:
        for each in _TOKEN_STATES:
            self._token_state.labels(token, each).set(each == state)

    def token_failed(self, token: str, kind: str, operations: int) -> None:
        self._token_failures.labels(token, kind).inc(operations)

    def touch_awaited(self, token: str, waiting: bool) -> None:
        self._touch_awaited.labels(token).set(waiting)

    def host_restarted(self, token: str, cause: str) -> None:
        self._restarts.labels(token, cause).inc()

    def denial_suppressed(self, count: int) -> None:
        self._suppressed.inc(count)

    def anchor_failed(self) -> None:
        self._anchor_failures.inc()

    def watch_outside(self, kind: str, anchor: str) -> None:
        """Have the series of an anchor outside from the start."""
        self._outside_failures.labels(kind, anchor).inc(0)
        self._outside_failing.labels(kind, anchor).set(0)
        self._outside_disagrees.labels(kind, anchor).set(0)

    def outside_seen(self, kind: str, anchor: str, size: int) -> None:
        self._outside_entries.labels(kind, anchor).set(size)
        self._outside_failing.labels(kind, anchor).set(0)

    def outside_failed(self, kind: str, anchor: str) -> None:
        self._outside_failures.labels(kind, anchor).inc()
        self._outside_failing.labels(kind, anchor).set(1)

    def outside_disagrees(self, kind: str, anchor: str) -> None:
        self._outside_disagrees.labels(kind, anchor).set(1)

    def watch_outbox(self, outbox: str, behind: Callable[[], float]) -> None:
        """Ask `behind` at each scrape; the other series of the outbox are there from the start."""
        self._outbox_behind.labels(outbox).set_function(behind)
        self._outbox_delivered.labels(outbox).inc(0)
        self._outbox_failures.labels(outbox).inc(0)
        self._outbox_failing.labels(outbox).set(0)

    def outbox_delivered(self, outbox: str, entries: int) -> None:
        self._outbox_delivered.labels(outbox).inc(entries)
        self._outbox_failing.labels(outbox).set(0)

    def outbox_failed(self, outbox: str) -> None:
        self._outbox_failures.labels(outbox).inc()
        self._outbox_failing.labels(outbox).set(1)
