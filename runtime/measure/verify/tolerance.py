"""Decides which differences rounding explains, with the comparison functions of NVIDIA's Polygraphy.

Polygraphy judges the worst call of each output; the other calls differ less, and would pass, too. It does not see all
calls: it needs some 20 ms for one, whatever its size, and a verification compares thousands.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastblt.runtime.measure.verify.comparison import Comparison, Pair


@dataclass(frozen=True)
class Tolerance:
    """Limits the differences that rounding explains."""

    max_error: float
    """Largest difference, relative to the largest magnitude of a call's reference (at least 1)."""
    cosine: float
    """Smallest cosine."""


#: By the type of a bundle; the patcher is fp32 in all of them. fp16 rounds to 2^-11, bf16 to 2^-8: eight times as far.
TOLERANCE = {
    "fp32": Tolerance(1e-3, 0.99999),
    "fp16": Tolerance(3e-2, 0.999),
    "bf16": Tolerance(2.4e-1, 0.99),
}


def tolerance_of(graph: str, dtype: str) -> Tolerance:
    """Return what is accepted of a graph's outputs, in a bundle of a type."""
    return TOLERANCE["fp32" if graph == "patcher" else dtype]


def require_polygraphy() -> None:
    """Import Polygraphy.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    for name in ("polygraphy", "polygraphy.comparator"):
        importlib.import_module(name)


def judge(comparisons: Sequence[Comparison], dtype: str) -> dict[tuple[str, str], bool]:
    """Return whether rounding explains the differences of each output, by graph and output.

    Args:
        comparisons: one for each graph and output, each of at least one call.
        dtype: of the bundle.

    Raises:
        ModuleNotFoundError: Polygraphy is not installed.
    """
    from polygraphy.comparator import CosineSimilarityCompareFunc, IterationResult, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    keys = {f"{each.graph}: {each.output}": (each.graph, each.output) for each in comparisons}
    limits = {name: tolerance_of(graph, dtype) for name, (graph, _) in keys.items()}
    farthest = dict(zip(keys, (each.farthest for each in comparisons), strict=True))
    least_alike = dict(zip(keys, (each.least_alike for each in comparisons), strict=True))

    def results(pairs: dict[str, Pair | None]) -> tuple[IterationResult, IterationResult]:
        known = {name: pair for name, pair in pairs.items() if pair is not None}
        found, expected = ({name: pair[side] for name, pair in known.items()} for side in (0, 1))
        return IterationResult(found, runner_name="candidate"), IterationResult(expected, runner_name="reference")

    # Of Polygraphy's tolerances only the absolute one bounds the largest difference; the relative one is for each
    # element, and would refuse rounding of elements that are nearly zero.
    absolute = {name: limits[name].max_error * _scale(pair) for name, pair in farthest.items()}
    largest = SimpleCompareFunc(check_error_stat="max", rtol=0.0, atol=absolute)
    cosine = CosineSimilarityCompareFunc({name: limit.cosine for name, limit in limits.items()})
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(invalid="ignore"):
        close, alike = largest(*results(farthest)), cosine(*results(least_alike))
    return {key: bool(close[name]) and bool(alike[name]) for name, key in keys.items()}


def _scale(pair: Pair | None) -> float:
    """Return the largest finite magnitude of what was expected, at least 1."""
    expected = np.zeros(0) if pair is None else pair[1]
    return float(np.abs(expected[np.isfinite(expected)]).max(initial=1.0))
