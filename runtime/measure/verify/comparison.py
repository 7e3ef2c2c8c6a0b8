"""Sums up the differences between two backends, for one output of one graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What a backend returned and what was expected, both fp64 [values].
Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass
class Comparison:
    """Sums up what was seen of one output over all calls."""

    graph: str
    output: str
    calls: int = 0
    values: int = 0
    max_error: float = 0.0
    """Largest difference, relative to the largest magnitude of the call's reference (at least 1)."""
    cosine: float = 1.0
    """Smallest one of all calls."""
    farthest: Pair | None = field(default=None, repr=False)
    """The call with the largest error; None before the first call."""
    least_alike: Pair | None = field(default=None, repr=False)
    """The call with the smallest cosine; None before the first call."""

    def add(self, found: NDArray[Any], expected: NDArray[Any]) -> None:
        """Count one call."""
        a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
        self.calls += 1
        self.values += b.size
        error, cosine = _differences(a, b)
        if self.farthest is None or error > self.max_error:
            self.max_error, self.farthest = error, (a, b)
        if self.least_alike is None or cosine < self.cosine:
            self.cosine, self.least_alike = cosine, (a, b)

    def figures(self) -> dict[str, Any]:
        """Return the figures as plain JSON types; an error that is not finite becomes None."""
        return {
            "graph": self.graph,
            "output": self.output,
            "calls": self.calls,
            "values": self.values,
            "max_error": self.max_error if self.max_error < float("inf") else None,
            "cosine": self.cosine,
        }


def _differences(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Return error and cosine of one call."""
    if a.size != b.size or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf"), -1.0
    error = float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    if length > 0:
        return error, min(1.0, float(a @ b) / length)
    return error, 0.0 if a.any() or b.any() else 1.0  # 0: one of them was never written
