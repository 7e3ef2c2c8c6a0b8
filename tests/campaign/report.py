"""Writes what came out of a campaign: a table, a JSON file, and one file for each failure."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from campaign.part import KINDS, Counts, Failure, Recipe


@dataclass(frozen=True)
class FoundFailure:
    """Is a failure, and how to see it again."""

    replay: str
    """``PART:SEED:NUMBER``."""
    failure: Failure
    recipe: Recipe


@dataclass
class PartReport:
    """Holds what came out of one part."""

    name: str
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    found: list[FoundFailure] = field(default_factory=list)

    def kinds(self) -> Counter[str]:
        """Return the number of failures by kind."""
        return Counter(each.failure.kind for each in self.found)

    def findings(self) -> Counter[tuple[str, str]]:
        """Return how often each kind and line occurred: equal ones are one finding."""
        return Counter((each.failure.kind, each.failure.what) for each in self.found)

    def line(self) -> str:
        """Return the state in one line."""
        counts = self.counts
        return (
            f"{self.name}: {counts.tries} tries in {self.seconds:.0f} s, {counts.ok} ok, {counts.refused} refused, "
            f"{len(self.found)} failed ({len(self.findings())} different)"
        )


def table(reports: list[PartReport]) -> str:
    """Return a table with one row for each part, and one line for each finding below."""
    headings = ("part", "tries", "ok", "refused", *KINDS, "seconds")
    rows = [headings]
    for report in reports:
        kinds = report.kinds()
        counts = report.counts
        figures = (counts.tries, counts.ok, counts.refused, *(kinds[kind] for kind in KINDS), round(report.seconds))
        rows.append((report.name, *map(str, figures)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(headings))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    for report in reports:
        for name, value in sorted(report.counts.figures.items()):
            lines.append(f"{report.name}: {name} {value:,.6g}")
        for (kind, what), count in report.findings().most_common():
            first = next(each for each in report.found if (each.failure.kind, each.failure.what) == (kind, what))
            lines.append(f"{report.name}: {kind}: {what} ({count} times, replay {first.replay})")
    return "\n".join(lines)


def as_json(reports: list[PartReport], seed: int, minutes: float, jobs: int) -> dict[str, Any]:
    """Return everything but the recipes in plain JSON types."""
    return {
        "seed": seed,
        "minutes": minutes,
        "jobs": jobs,
        "parts": {
            report.name: {
                "tries": report.counts.tries,
                "ok": report.counts.ok,
                "refused": report.counts.refused,
                "failures": dict(report.kinds()),
                "figures": report.counts.figures,
                "seconds": round(report.seconds, 1),
                "findings": [
                    {"kind": kind, "what": what, "times": count}
                    for (kind, what), count in report.findings().most_common()
                ],
            }
            for report in reports
        },
    }


def write_failures(folder: Path, reports: list[PartReport]) -> None:
    """Write each failure with its recipe, and how to make the try again."""
    folder.mkdir(parents=True, exist_ok=True)
    for report in reports:
        for found in report.found:
            data = {**asdict(found), "command": f"python -m campaign --replay {found.replay}"}
            name = found.replay.replace(":", "-")
            (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
