"""The alerting rules ask for metrics, labels and values that exist, and say what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from greatseald.adapters.metrics import PrometheusMetrics
from greatseald.domain import errors

ROOT = Path(__file__).resolve().parents[3]
GROUPS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
RULES = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
TARGET_LABELS = {"job", "instance", "le"}


def exposed() -> dict[str, set[str]]:
    """Every series name with the labels that it can have."""
    metrics = PrometheusMetrics("0")
    metrics.signed("k", "a", 1, 0.1)
    metrics.not_signed("k", "a", "unknown")
    metrics.called("SignStatement", "OK", 0.1)
    metrics.refused("OVERLOADED")
    metrics.host_restarted("t", "lost")
    metrics.token_state("t", "locked")
    metrics.token_failed("t", "unknown", 1)
    metrics.token_seconds("t", 1, 0.1)
    metrics.reloaded("refused")
    metrics.watch_outbox("siem", lambda: 0.0)
    metrics.watch_outside("witness", "w")
    for name, labels in (("certificate_expiry_timestamp_seconds", 2), ("key_ready", 1), ("key_halted", 1)):
        metrics.state.watch(f"greatseald_{name}", lambda labels=labels: [(("x",) * labels, 1.0)])
    for name in ("breaker_open", "late_seconds"):
        metrics.state.watch(f"greatseald_token_{name}", lambda: [(("t",), 1.0)])
    series = {family.name + "_total": set() for family in metrics.registry.collect() if family.type == "counter"}
    series |= {family.name: set() for family in metrics.registry.collect()}
    for family in metrics.registry.collect():
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
    return series


@pytest.mark.parametrize("alert", RULES)
def test_an_alert_names_metrics_and_labels_that_exist_and_what_to_do(alert):
    rule, series = RULES[alert], exposed()
    named = set(re.findall(r"greatseald_\w+", rule["expr"]))
    assert named <= set(series)
    labels = set().union(TARGET_LABELS, *(series[name] for name in named))
    grouped = {
        part.strip() for group in re.findall(r"(?:by|on) \(([^)]*)\)", rule["expr"]) for part in group.split(",")
    }
    matched = set(re.findall(r"(\w+)=~?\"", rule["expr"]))
    shown = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    assert grouped | matched | shown <= labels
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["annotations"]["action"].endswith(".")
    assert rule["labels"]["severity"] in {"page", "ticket"}


def test_the_reasons_that_alerts_filter_by_are_reasons_of_the_api():
    reasons = {kind.reason for kind in vars(errors).values() if isinstance(getattr(kind, "reason", None), str)}
    asked = {each for rule in RULES.values() for each in re.findall(r"reason=~?\"([A-Z_|]+)\"", rule["expr"])}
    assert {reason for each in asked for reason in each.split("|")} <= reasons


def test_the_documentation_lists_the_same_alerts():
    text = (ROOT / "docs/user-guide/metrics.md").read_text()
    assert set(re.findall(r"^\| (Greatseal\w+) \|", text, re.MULTILINE)) == set(RULES)
