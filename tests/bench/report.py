"""docs/benchmarks.md: a run's lines as a page, with the machine that they are of. Never edited by hand."""

from __future__ import annotations

import os
import platform
import re
import ssl
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from result import aim_text, is_met

_HEAD = """\
# Benchmarks

Written by `make bench` from one run, on the machine described below; not edited by hand. Each measure is a
ratio to what the daemon stands on, measured in the same run in paired rounds (ours, bare, ours, bare ...):
the figure is the median of the rounds' ratios, the range their lowest and highest. Ratios carry over to other
machines far better than figures do. Differences below 15 % between runs are noise. An aim that was missed says so.

What each measure does stands in [`tests/bench`](../tests/bench); `make bench-quick` gives a rough idea in a minute.
"""


@dataclass(frozen=True)
class Machine:
    """What a figure depends on, read before the run."""

    facts: tuple[tuple[str, str], ...]

    @classmethod
    def now(cls) -> Machine:
        load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
        memory = _first(r"MemTotal:\s+(\d+)", Path("/proc/meminfo"))
        return cls(
            (
                ("date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
                ("CPU", _first(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo")) or platform.machine()),
                ("cores", str(os.cpu_count())),
                ("memory", f"{int(memory or 0) / (1 << 20):.1f} GiB"),
                ("kernel", f"{platform.system()} {platform.release()}"),
                ("file system", _file_system(Path(gettempdir()))),
                ("load before the run", f"{load} (1, 5, 15 minutes)"),
                ("Python", platform.python_version()),
                ("OpenSSL of Python", ssl.OPENSSL_VERSION),
                ("SoftHSM", _softhsm()),
                *((name, version(name)) for name in ("grpcio", "cryptography", "apsw", "greatseald")),
            )
        )


def page(lines: list[dict[str, Any]], machine: Machine) -> str:
    """The whole page."""
    rows = ["| measure | ours | against | its figure | ratio | range | aim | |", "|---|---|---|---|---|---|---|---|"]
    for line in lines:
        compared = f"+{line['difference']} ms" if "difference" in line else str(line["ratio"])
        cells = (
            f"`{line['measure']}`",
            f"{line['value']} {line['unit']}",
            line["against"],
            str(line["baseline"]),
            compared,
            f"{line['range'][0]} to {line['range'][1]}",
            aim_text(line),
            "met" if is_met(line) else "**missed**",
        )
        rows.append("| " + " | ".join(cells) + " |")
    spent = ["| measure | CPU µs an operation | parts, ms | checked | rounds |", "|---|---|---|---|---|"]
    for line in lines:
        cpu = ", ".join(f"{name} {value}" for name, value in line["cpu_us"].items())
        parts = ", ".join(f"{name} {value}" for name, value in line["parts_ms"].items())
        spent.append(f"| `{line['measure']}` | {cpu} | {parts} | {line['checked']} | {line['rounds']} |")
    facts = [f"- {name}: {value}" for name, value in machine.facts]
    sections = [
        _HEAD,
        "## Results",
        "",
        *rows,
        "",
        "## Where the time goes",
        "",
        *spent,
        "",
        "## The machine",
        "",
        *facts,
    ]
    return "\n".join(sections) + "\n"


def _first(pattern: str, file: Path) -> str:
    found = re.search(pattern, file.read_text())
    return found[1].strip() if found else ""


def _file_system(path: Path) -> str:
    """Type of the file system that holds `path`, where the installations of a run lie."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mounted, kind, *_ = line.split()
        if path.resolve().is_relative_to(mounted) and len(mounted) >= len(best[0]):
            best = (mounted, kind)
    return best[1]


def _softhsm() -> str:
    done = subprocess.run(["softhsm2-util", "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
