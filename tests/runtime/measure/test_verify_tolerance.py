"""Polygraphy's comparison functions give the verdicts of the figures that a report contains."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fastblt.runtime.measure.verify.comparison import Comparison
from fastblt.runtime.measure.verify.tolerance import TOLERANCE, judge, tolerance_of

Floats = NDArray[np.floating]


def cases() -> dict[str, list[tuple[Floats, Floats]]]:
    """Calls of one output by name: what was found, what was expected."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 50)).astype(np.float32)
    huge, one = np.float16(65504), np.ones(3, np.float32)
    off = [(x, x), (x, x + 1), (x, x)]
    return {
        "equal": [(x, x), (2 * x, 2 * x)],
        "within": [(x + 5e-4, x)],
        "beyond": [(x + 2e-3, x)],
        "beyond one, relative to the largest": [(100 * x + 0.05, 100 * x)],
        "near zero": [(np.array([1e-9, 1.0]), np.array([0.0, 1.0]))],
        "one call of three": off,
        "small and turned around": [(-x * 1e-5, x * 1e-5)],
        "never written": [(np.zeros(3), np.full(3, 1e-6))],
        "both zero": [(np.zeros(3), np.zeros(3))],
        "NaN": [(np.array([np.nan, 1]), np.array([np.nan, 1]))],
        "infinite": [(one * np.inf, one), (one, one)],
        "infinite reference": [(one, one), (one, one * np.inf)],
        "infinite in both": [(one * np.inf, one * np.inf)],
        "another size": [(np.ones(3), np.ones(4))],
        "fp16, as far apart as it goes": [(np.full(2, huge), np.full(2, -huge))],
        "whole numbers": [(np.array([260, 1]), np.array([260, 1]))],
    }


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_verdicts_are_those_of_the_figures(dtype: str) -> None:
    comparisons = []
    for number, (name, calls) in enumerate(cases().items()):
        comparisons.append(Comparison("patcher" if number % 2 else "decoder", name))
        for found, expected in calls:
            comparisons[-1].add(found, expected)
    verdicts = judge(comparisons, dtype)
    for each in comparisons:
        limit = tolerance_of(each.graph, dtype)
        expected = each.max_error <= limit.max_error and each.cosine >= limit.cosine
        assert verdicts[each.graph, each.output] is expected, each
    passed = {name for (_, name), verdict in verdicts.items() if verdict}
    assert {"equal", "within", "near zero", "both zero", "whole numbers"} <= passed
    assert not passed & {"NaN", "infinite", "infinite reference", "infinite in both", "another size", "never written"}
