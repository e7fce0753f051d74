"""One measure's rounds, and the line that is made of them."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Result:
    """One measure's rounds: ours and bare, paired.

    `difference` compares by subtraction instead of division; `at_most` says that less is better; `absolute`
    that the aim is one for the figure itself.
    """

    measure: str
    unit: str
    against: str
    aim: float
    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    checked: int = 0
    difference: bool = False
    at_most: bool = False
    absolute: bool = False
    parts: dict[str, list[float]] = field(default_factory=dict)

    def note_cpu(self, before: dict[str, float], after: dict[str, float], client: float, count: int) -> None:
        spent = {name: after[name] - before[name] for name in before} | {"client": client}
        for name, seconds in spent.items():
            self.cpu_us.setdefault(name, []).append(1e6 * seconds / count)

    def note(self, ours: float, bare: float) -> None:
        """Take one pair."""
        self.ours.append(ours)
        self.bare.append(bare)

    def line(self) -> dict[str, Any]:
        pairs = list(zip(self.ours, self.bare, strict=True))
        compared = [ours - bare if self.difference else ours / bare for ours, bare in pairs]
        if self.absolute:
            compared = self.ours
        answer: dict[str, Any] = {
            "measure": self.measure,
            "value": rounded(statistics.median(self.ours)),
            "unit": self.unit,
            "against": self.against,
            "baseline": rounded(statistics.median(self.bare)),
            "ratio": rounded(statistics.median(ours / bare for ours, bare in pairs)),
        }
        if self.difference:
            answer["difference"] = rounded(statistics.median(compared))
        if self.at_most:
            answer["at_most"] = True
        if self.absolute:
            answer["absolute"] = True
        return answer | {
            "range": [rounded(min(compared)), rounded(max(compared))],
            "aim": self.aim,
            "rounds": len(pairs),
            "cores": os.cpu_count(),
            "cpu_us": {name: round(statistics.median(values), 1) for name, values in self.cpu_us.items()},
            "parts_ms": {name: rounded(statistics.median(values)) for name, values in self.parts.items()},
            "checked": self.checked,
        }


def is_met(line: dict[str, Any]) -> bool:
    """Whether a line's aim is reached."""
    if "difference" in line:
        return bool(line["difference"] <= line["aim"])
    if line.get("absolute"):
        return bool(line["value"] >= line["aim"])
    return bool(line["ratio"] <= line["aim"] if line.get("at_most") else line["ratio"] >= line["aim"])


def aim_text(line: dict[str, Any]) -> str:
    """An aim as people write it."""
    if "difference" in line:
        return f"≤ +{line['aim']} ms"
    if line.get("absolute"):
        return f"≥ {line['aim']:,} {line['unit']}"
    return f"{'<' if line.get('at_most') else '≥'} {line['aim']}"


def rounded(value: float) -> float:
    return round(value, 1) if abs(value) >= 100 else round(value, 3)
