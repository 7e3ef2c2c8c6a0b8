"""Decides whether two backends score alike.

Bits per byte are compared as numbers. Everything else follows from choices (the most likely byte, a threshold passed),
and these are the same in both unless rounding decides a tie: each single outcome is compared, and a few may differ.
Counts of outcomes that may are rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastblt.runtime.measure.scoring.figures import Figures, outcomes, sum_up
from fastblt.runtime.measure.scoring.free_running import Generated
from fastblt.runtime.measure.scoring.scores import Scores
from fastblt.runtime.measure.scoring.teacher_forced import WindowScore


@dataclass(frozen=True)
class Bounds:
    """Limits how far two backends may differ."""

    bits_per_byte: float
    """Relative difference."""
    outcomes: float
    """Part of the outcomes after true text that ties may decide."""
    texts: float
    """Part of the generated texts that ties may change."""


#: By the type of the graphs. In half precision, eager PyTorch rounds elsewhere: a long generated text rarely survives.
BOUNDS = {
    "fp32": Bounds(1e-4, 0.005, 0.02),
    "fp16": Bounds(5e-3, 0.05, 1.0),
    "bf16": Bounds(3e-2, 0.25, 1.0),
}


@dataclass(frozen=True)
class Check:
    """Holds the comparison of one kind of figure."""

    figure: str
    """Field of `Figures`, or ``bits_per_byte`` or ``patches``."""
    compared: int
    """Bits per byte: texts; else single outcomes."""
    differing: int
    """Of those; bits per byte: beyond the bound."""
    allowed: int
    largest_difference: float
    """Of the summed-up figure: bits per byte relative, patches in bytes per patch, the others absolute."""

    @property
    def agree(self) -> bool:
        """Return whether no more differ than may."""
        return self.differing <= self.allowed


def compare(one: Scores, other: Scores, bounds: Bounds) -> list[Check]:
    """Compare the scores of one plan on two backends."""
    a, b = sum_up(one), sum_up(other)
    windows = [[w for each in scores.windows.values() for w in each] for scores in (one, other)]

    def forced(figure: str, read: Callable[[WindowScore], dict[Any, list[Any]]], value: str) -> Check:
        compared, differing = _count(windows, read)
        return _check(figure, compared, differing, bounds.outcomes, _largest(a, b, figure, value))

    checks = [
        _bits(a, b, bounds.bits_per_byte),
        _patches(windows, bounds.outcomes, _largest(a, b, "text", "bytes_per_patch")),
        forced("drafts", lambda window: window.drafts, "acceptance"),
        forced("masked", lambda window: window.masked, "accuracy"),
        forced("blocks", lambda window: window.blocks, "agreement"),
        _texts(
            "generation", one.greedy.values(), other.greedy.values(), bounds, _largest(a, b, "generation", "agreement")
        ),
        _texts("diversity", one.sampled, other.sampled, bounds, _largest(a, b, "diversity", "type_token_ratio")),
    ]
    return [check for check in checks if check.compared]


def _check(figure: str, compared: int, differing: int, part: float, largest: float) -> Check:
    return Check(figure, compared, differing, math.ceil(part * compared), largest)


def _bits(a: Figures, b: Figures, bound: float) -> Check:
    differences = [
        abs(x.bits_per_byte - y.bits_per_byte) / y.bits_per_byte for x, y in zip(a.text, b.text, strict=True)
    ]
    beyond = sum(not difference <= bound for difference in differences)
    return Check("bits_per_byte", len(differences), beyond, 0, max(differences))


def _patches(windows: Sequence[Sequence[WindowScore]], part: float, largest: float) -> Check:
    pairs = list(zip(*windows, strict=True))
    differing = sum((x.patches, x.patched_bytes) != (y.patches, y.patched_bytes) for x, y in pairs)
    return _check("patches", len(pairs), differing, part, largest)


def _count(
    windows: Sequence[Sequence[WindowScore]], read: Callable[[WindowScore], dict[Any, list[Any]]]
) -> tuple[int, int]:
    """Return the number of outcomes, and how many of them differ."""
    first, second = (outcomes(each, read) for each in windows)
    pairs = [pair for key in first for pair in zip(first[key], second[key], strict=True)]
    return len(pairs), sum(x != y for x, y in pairs)


def _texts(figure: str, one: Iterable[Generated], other: Iterable[Generated], bounds: Bounds, largest: float) -> Check:
    pairs = [pair for x, y in zip(one, other, strict=True) for pair in zip(x.texts, y.texts, strict=True)]
    return _check(figure, len(pairs), sum(x != y for x, y in pairs), bounds.texts, largest)


def _largest(a: Figures, b: Figures, figure: str, value: str) -> float:
    """Return the largest difference of one field of the rows of a kind; rows without a value are left out."""
    values = [
        (getattr(x, value), getattr(y, value)) for x, y in zip(getattr(a, figure), getattr(b, figure), strict=True)
    ]
    return max((abs(x - y) for x, y in values if x is not None and y is not None), default=0.0)
