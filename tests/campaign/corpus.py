"""Replays what failed before: each file of the corpus is one recipe, and a line about what it once broke.

==========  =======================================================================
part        name of the part that runs it
broke       what it did to which version of the program, in one sentence
recipe      the recipe
expected    ``refused`` or ``ok``: what must come out; missing: either
==========  =======================================================================
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from campaign.part import Counts, Limits, Place, failed
from campaign.recipes import RecipePart
from campaign.schedule import Campaign

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class CorpusEntry:
    """Is a part of the campaign that makes one try: the recipe of one file."""

    name: str
    part: RecipePart
    data: dict[str, Any]
    weight: float = 1.0
    at_once: bool = True

    @property
    def summary(self) -> str:
        """Return what the recipe broke."""
        return str(self.data["broke"])

    @property
    def limits(self) -> Limits:
        """Return the part's limits; what waits for nothing is ended soon."""
        return replace(self.part.limits, wall_seconds=20.0)

    def prepare(self, fixtures: Path) -> None:
        """Implement `Part.prepare`: the part has done it."""

    def attempt(self, rng: random.Random, seconds: float, place: Place) -> Counts:
        """Implement `Part.attempt`."""
        place.announce(self.data["recipe"])
        counts = self.part.run(self.data["recipe"], place)
        expected = self.data.get("expected")
        if not counts.failures and expected is not None and getattr(counts, expected) == 0:
            return failed("other", f"found {'ok' if counts.ok else 'refused'}, expected {expected}")
        return counts


def corpus_entries(parts: dict[str, Any]) -> list[CorpusEntry]:
    """Return the entries that belong to some of these parts, sorted by name."""
    found = []
    for path in sorted(CORPUS.glob("*/*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["part"] in parts:
            found.append(CorpusEntry(f"{path.parent.name}/{path.stem}", parts[data["part"]], data))
    return found


def parts_of_corpus(parts: list[Any]) -> list[Any]:
    """Return those of some parts that the corpus has entries of: the others need nothing prepared."""
    wanted = {entry.part.name for entry in corpus_entries({part.name: part for part in parts})}
    return [part for part in parts if part.name in wanted]


def replay_corpus(parts: list[Any], fixtures: Path, folder: Path) -> dict[str, list[str]]:
    """Replay every entry once, in worker processes; return the failures of each, one line each."""
    entries = corpus_entries({part.name: part for part in parts})
    campaign = Campaign(list(entries), fixtures, folder, 0, 1, lambda line: None)
    reports = campaign.run(3600.0) if entries else []
    return {
        report.name: [f"{found.failure.kind}: {found.failure.what}\n{found.failure.detail}" for found in report.found]
        for report in reports
    }
