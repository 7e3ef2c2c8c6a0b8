"""Computes the scale of a layer's quantized inputs from the distribution of their magnitudes.

``minmax`` represents the largest exactly; the others clip: ``percentile`` the largest one in ten thousand, ``mse`` at
the least squared error, ``entropy`` where the distribution changes least (Kullback-Leibler, as in TensorRT's
calibrator).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastblt.calibration.layer_inputs import BINS, LayerInputs
from fastblt.calibration.precision import LARGEST, RANGES, CalibrationError

PERCENTILE = 99.99
#: Distance of the thresholds that are tried, in bins.
_STEP = 16


def activation_scale(inputs: LayerInputs, kind: str, method: str, name: str) -> float:
    """Return the scale of one layer's inputs.

    Args:
        inputs: their statistics.
        kind: ``int8`` or ``fp8``.
        method: one of `RANGES`; fp8 has a wide range and always takes ``minmax``.
        name: of the layer, for errors.

    Raises:
        CalibrationError: the method is unknown, or the range is not a finite number greater than 0.
    """
    if method not in RANGES:
        raise CalibrationError(f"--range: found {method!r}, expected one of {', '.join(RANGES)}")
    largest = inputs.largest
    if not (np.isfinite(largest) and largest > 0):
        raise CalibrationError(f"layer {name}: found a range of inputs up to {largest}, expected a finite one above 0")
    edge = BINS if kind == "fp8" else _EDGES[method](inputs.histogram)
    return largest * edge / BINS / LARGEST[kind]


def _all(histogram: NDArray[np.int64]) -> int:
    return BINS


def _percentile(histogram: NDArray[np.int64]) -> int:
    below = np.cumsum(histogram) >= histogram.sum() * PERCENTILE / 100
    return int(np.argmax(below)) + 1


def _least_squares(histogram: NDArray[np.int64]) -> int:
    """Return the number of bins below the threshold with the least squared error of clipping and rounding."""
    centers = np.arange(BINS) + 0.5

    def error(edge: int) -> float:
        step = edge / LARGEST["int8"]
        rounded = np.minimum(np.rint(centers / step), LARGEST["int8"]) * step
        return float((histogram * (centers - rounded) ** 2).sum())

    return min(range(_STEP, BINS + 1, _STEP), key=error)


def _least_divergence(histogram: NDArray[np.int64]) -> int:
    """Return the number of bins below the threshold whose quantized distribution is nearest to the true one."""
    levels = int(LARGEST["int8"]) + 1

    def divergence(edge: int) -> float:
        true = histogram[:edge].astype(np.float64)
        true[-1] += histogram[edge:].sum()
        level = np.arange(edge) * levels // edge
        present = histogram[:edge] > 0
        counts = np.bincount(level, weights=histogram[:edge], minlength=levels)
        members = np.bincount(level, weights=present, minlength=levels)
        seen = np.where(present, (counts / np.maximum(members, 1))[level], 0.0)
        p, q = true / true.sum(), seen / max(seen.sum(), 1)
        both = p > 0
        return float((p[both] * np.log(p[both] / np.maximum(q[both], 1e-12))).sum())

    return min(range(levels, BINS + 1, _STEP), key=divergence)


_EDGES = {"minmax": _all, "percentile": _percentile, "entropy": _least_divergence, "mse": _least_squares}
