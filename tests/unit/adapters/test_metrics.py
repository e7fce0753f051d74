"""What Prometheus reads is what was reported."""

from __future__ import annotations

import re

import pytest

from greatseald.adapters.metrics import PrometheusMetrics
from greatseald.adapters.status_http import NotLoopbackError, StatusServer


def lines(metrics: PrometheusMetrics, name: str) -> dict[str, float]:
    pattern = re.compile(rf"^({name}(?:_[a-z]+)?(?:\{{[^}}]*\}})?) (\S+)$", re.MULTILINE)
    return {match[1]: float(match[2]) for match in pattern.finditer(metrics.text().decode())}


def test_a_histogram_has_cumulative_buckets_a_count_and_a_sum():
    metrics = PrometheusMetrics("1.2.3")
    for seconds in (0.0004, 0.0005, 0.003, 0.1, 100.0):
        metrics.called("SignDigest", "OK", seconds)
    found = lines(metrics, "greatseald_rpc_seconds")
    label = 'code="OK",method="SignDigest"'
    bucket = {re.search('le="([^"]+)"', name)[1]: value for name, value in found.items() if "_bucket" in name}
    assert bucket["0.0005"] == 2
    assert bucket["0.004"] == 3
    assert bucket["0.064"] == 3
    assert bucket["0.128"] == 4
    assert bucket["30.0"] == 4
    assert bucket["+Inf"] == found[f"greatseald_rpc_seconds_count{{{label}}}"] == 5
    assert found[f"greatseald_rpc_seconds_sum{{{label}}}"] == pytest.approx(100.1039)


def test_every_report_of_the_port_is_exposed_with_a_help_text():
    metrics = PrometheusMetrics("1.2.3")
    metrics.signed("release", "ecdsa-p256-sha256", 3, 0.01)
    metrics.refused("ACCESS_DENIED")
    metrics.refused("OVERLOADED", 4)
    metrics.committed(7, 0.002)
    metrics.log_size(10, 2)
    metrics.token_seconds("soft", 5, 0.001)
    metrics.token_state("soft", "locked")
    metrics.host_restarted("soft", "timeout")
    metrics.denial_suppressed(6)
    metrics.anchor_failed()
    metrics.reloaded("refused")
    metrics.watch_in_flight(lambda: 9)
    metrics.watch_serving(lambda: True)
    text = metrics.text().decode()
    for line in (
        'greatseald_build_info{version="1.2.3"} 1.0',
        'greatseald_signatures_total{algorithm="ecdsa-p256-sha256",key="release"} 3.0',
        'greatseald_signing_seconds_count{algorithm="ecdsa-p256-sha256",key="release"} 1.0',
        'greatseald_refusals_total{reason="OVERLOADED"} 4.0',
        "greatseald_log_committed_entries_total 7.0",
        "greatseald_log_commit_seconds_count 1.0",
        "greatseald_log_entries 10.0",
        "greatseald_open_intents 2.0",
        'greatseald_token_operations_total{token="soft"} 5.0',
        'greatseald_token_state{state="locked",token="soft"} 1.0',
        'greatseald_token_state{state="ready",token="soft"} 0.0',
        'greatseald_host_restarts_total{cause="timeout",token="soft"} 1.0',
        "greatseald_denials_suppressed_total 6.0",
        "greatseald_anchor_failures_total 1.0",
        'greatseald_config_reloads_total{result="refused"} 1.0',
        "greatseald_rpc_in_flight 9.0",
        "greatseald_serving 1.0",
    ):
        assert f"\n{line}\n" in text
    for name in set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE)):
        assert re.search(rf"^# HELP {name} \S+", text, re.MULTILINE), name


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "example.org:1"])
def test_the_probe_server_refuses_any_address_that_others_can_reach(listen):
    with pytest.raises(NotLoopbackError):
        StatusServer(listen, metrics=bytes, content_type="", ready=lambda: (True, ""))
