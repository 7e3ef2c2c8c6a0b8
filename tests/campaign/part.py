"""Defines what a part of the campaign is: something that makes tries, each of which must end in an allowed way.

A part is one module of `campaign.parts` with a class that implements `Part`, and one line of `campaign.registry`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Kind = Literal["crash", "hang", "traceback", "wrong bytes", "lost files", "other"]
#: What a try may do that it must not; columns of the report.
KINDS: tuple[Kind, ...] = ("crash", "hang", "traceback", "wrong bytes", "lost files", "other")

HOSTILE_GRAPH = "hostile graph"
"""Key of recipes with other nodes or weights in an ONNX graph: what ONNX Runtime does with those is no promise of this
package (SECURITY.md), so crashes and hangs inside of it are counted apart. Everything else about them is promised."""

Recipe = dict[str, Any]
"""Plain JSON that determines what a try does, given the fixtures."""


@dataclass(frozen=True)
class Failure:
    """Describes what went wrong in a try."""

    kind: Kind
    what: str
    """One line; equal lines are one finding."""
    detail: str = ""
    """A traceback, or the processes' last words."""


@dataclass
class Counts:
    """Counts what came out of one or more tries."""

    tries: int = 0
    ok: int = 0
    """Ended well, and what could be compared was right."""
    refused: int = 0
    """Ended in an error of a class and form that users expect."""
    failures: list[Failure] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    """Further figures for the report; the campaign adds them up, those named ``max ...`` excepted."""

    def add(self, other: Counts) -> None:
        """Add the counts of other tries."""
        self.tries += other.tries
        self.ok += other.ok
        self.refused += other.refused
        self.failures += other.failures
        for name, value in other.figures.items():
            mine = self.figures.get(name, 0)
            self.figures[name] = max(mine, value) if name.startswith("max ") else mine + value


def fine() -> Counts:
    """Return the counts of one try that ended well."""
    return Counts(tries=1, ok=1)


def refused() -> Counts:
    """Return the counts of one try that was refused in the way that it should be."""
    return Counts(tries=1, refused=1)


def failed(kind: Kind, what: str, detail: str = "") -> Counts:
    """Return the counts of one try that failed."""
    return Counts(tries=1, failures=[Failure(kind, " ".join(what.split())[:300], detail)])


@dataclass(frozen=True)
class Limits:
    """Holds what a call of `Part.attempt` may use before its process is ended and the try counted as a hang."""

    processor_seconds: float = 5.0
    """Of the worker's process, all threads, its child processes excepted."""
    wall_seconds: float = 60.0
    """Must be generous: the machine may be busy."""
    memory_bytes: int = 4 * 2**30
    """Address space beyond what the worker has when it starts."""


@dataclass(frozen=True)
class Place:
    """Holds what a try gets from the campaign."""

    fixtures: Path
    """Folder with what `campaign.fixtures` made, and every part's `Part.prepare`; tries only read it."""
    scratch: Path
    """An empty folder of this try's own; kept among the failures if the try fails."""
    announce: Callable[[Recipe], None]
    """To be called before the try does anything that may end its process: a crash is attributed to this recipe."""


class Part(Protocol):
    """Makes tries."""

    @property
    def name(self) -> str:
        """Return the word that selects the part: ``PARTS=name``."""
        ...

    @property
    def summary(self) -> str:
        """Return one line about what the part does."""
        ...

    @property
    def weight(self) -> float:
        """Return the part's share of the time, relative to the other parts."""
        ...

    @property
    def limits(self) -> Limits:
        """Return what one call of `attempt` may use."""
        ...

    @property
    def at_once(self) -> bool:
        """Return whether one call of `attempt` takes the part's whole share of the time (a soak)."""
        ...

    def prepare(self, fixtures: Path) -> None:
        """Make what every try needs, unless it is there; called once per campaign, in a process of its own."""
        ...

    def attempt(self, rng: random.Random, seconds: float, place: Place) -> Counts:
        """Make a try (or a few) and return what came out; an exception is counted as a traceback.

        Args:
            rng: determined by the campaign's seed, the part's name and the number of the try; nothing else may decide
                what is tried.
            seconds: that the part has left; only parts that are `at_once` need to look at it.
            place: where to read and write, and whom to inform.
        """
        ...
