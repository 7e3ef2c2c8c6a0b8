"""Rounds weights with GPTQ (Frantar et al., arXiv 2210.17323): row by row, later rows compensate for each rounding.

Given the second moments H of a layer's inputs, the error of row i is spread over the rows behind it such that the
layer's output changes least on such inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.calibration.precision import CalibrationError, Precision
from fastblt.calibration.rounding import Floats, QuantizedMatrix, scales_of, to_grid

#: Part of the mean of H's diagonal that is added to it, so that it can be inverted.
DAMPING = 0.01
_BATCH = 128


def gptq(
    weight: Floats, moments: Floats, precision: Precision, dtype: np.dtype[Any], name: str = "weight"
) -> QuantizedMatrix:
    """Quantize a matrix.

    Args:
        weight: float32 [in, out].
        moments: [in, in], mean of x x^T over the layer's inputs.
        precision: of the weights.
        dtype: of the scales.
        name: of the weight, for errors.

    Raises:
        CalibrationError: weights or moments are not finite.
    """
    if not np.isfinite(moments).all():
        raise CalibrationError(f"{name}: found second moments that are not finite, expected finite numbers")
    left = weight.astype(np.float64)
    factor = _inverse_factor(moments.astype(np.float64))
    rows, block = len(left), precision.block
    scales = (
        np.empty((rows // block, left.shape[1]), dtype=dtype) if block else scales_of(weight, precision, dtype, name)
    )
    values = np.empty_like(weight)
    for start in range(0, rows, _BATCH):
        end = min(start + _BATCH, rows)
        errors = np.empty((end - start, left.shape[1]))
        for row in range(start, end):
            if block and row % block == 0:
                part = left[row : row + block].astype(np.float32)
                scales[row // block] = scales_of(part, precision, dtype, name)[0]
            scale = (scales[row // block] if block else scales).astype(np.float64)
            grid = to_grid((left[row] / scale).astype(np.float32), precision.weights).astype(np.float32)
            values[row] = grid
            error = errors[row - start] = (left[row] - grid * scale) / factor[row, row]
            left[row + 1 : end] -= np.outer(factor[row, row + 1 : end], error)
        left[end:] -= factor[start:end, end:].T @ errors
    return QuantizedMatrix(to_grid(values, precision.weights), scales, precision)


def _inverse_factor(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the upper Cholesky factor of the inverse of damped H; inputs that are always 0 are decoupled."""
    diagonal = np.diag_indices(len(moments))
    unseen = moments[diagonal] == 0
    moments[unseen, unseen] = 1.0
    moments[diagonal] += DAMPING * moments[diagonal].mean()
    factor: NDArray[np.float64] = np.linalg.cholesky(np.linalg.inv(moments)).T
    return factor
