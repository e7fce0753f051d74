"""The documentation names what exists: every setting, every metric, every command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

import greatseal.cli
import greatseald.cli
from greatseald.adapters.metrics import PrometheusMetrics
from greatseald.config import log_tables, settings

DOCS = Path(__file__).resolve().parents[2] / "docs"

TABLES = {
    "[server]": settings.ServerSettings,
    "[store]": settings.StoreSettings,
    "[log]": log_tables.LogSettings,
    "[[log.witnesses]]": log_tables.WitnessTable,
    "[[log.timestamps]]": log_tables.TimestampTable,
    "[[log.peers]]": log_tables.PeerTable,
    "[log.tiles]": log_tables.TilesSettings,
    "[[tokens]]": settings.TokenTable,
    '[[tokens]] type = "yubikey-piv"': settings.YubiKeyTable,
    "[[keys]]": settings.KeyTable,
    "[[allow]]": settings.AllowTable,
    "[[deny]]": settings.DenyTable,
    "[[outbox]]": settings.OutboxTable,
}


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## `(.+)`$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("table", TABLES)
def test_every_key_of_a_table_is_described_and_none_that_does_not_exist(table):
    section = sections((DOCS / "user-guide/configuration.md").read_text())[table]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    described = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert described == set(TABLES[table].model_fields)


def test_every_metric_is_described_and_none_that_does_not_exist():
    registry = PrometheusMetrics("0").registry
    exist = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in registry.collect()
        if family.name.startswith("greatseald_")
    }
    text = (DOCS / "user-guide/metrics.md").read_text()
    assert set(re.findall(r"^\| `(greatseald_\w+)` \| (?:gauge|counter|histogram) ", text, re.MULTILINE)) == exist
    assert {name for name in re.findall(r"greatseald_\w+", text) if name not in exist} == set()


@pytest.mark.parametrize("tool", ["greatseald", "greatseal"])
def test_every_command_is_described_and_none_that_does_not_exist(tool):
    app = {"greatseald": greatseald.cli.app, "greatseal": greatseal.cli.app}[tool]
    commands = set()

    def walk(command, path: str) -> None:
        children = getattr(command, "commands", None)
        if children is None:
            commands.add(path)
        else:
            for name, child in children.items():
                walk(child, f"{path} {name}")

    walk(typer.main.get_command(app), tool)
    cells = re.findall(rf"^\| `({tool} [^`]+)` \|", (DOCS / "user-guide/cli.md").read_text(), re.MULTILINE)
    described = {re.match(r"[a-z-]+(?: [a-z-]+)*(?= |$)", cell)[0].removesuffix(" ") for cell in cells}
    assert {re.sub(r" --.*", "", each) for each in described} == commands
