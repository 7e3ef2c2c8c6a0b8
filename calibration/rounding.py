"""Represents a matrix as small integers (or E4M3 numbers) and scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from fastblt.calibration.precision import LARGEST, CalibrationError, Precision

Floats = NDArray[np.float32]
NUMPY_TYPES = {"int8": np.dtype(np.int8), "int4": np.dtype(ml_dtypes.int4), "fp8": np.dtype(ml_dtypes.float8_e4m3fn)}


@dataclass(frozen=True)
class QuantizedMatrix:
    """Holds a quantized matrix [in, out] and its scales."""

    values: NDArray[Any]
    """int8, int4 or float8_e4m3fn [in, out]."""
    scales: NDArray[Any]
    """[in / block, out], or [out]: in the matrix's original type."""
    precision: Precision

    def dequantized(self) -> Floats:
        """Return the matrix that it represents, float32 [in, out]."""
        values = self.values.astype(np.float32)
        scales = self.scales.astype(np.float32)
        return values * (np.repeat(scales, self.precision.block, axis=0) if self.precision.block else scales)

    @property
    def nbytes(self) -> int:
        """Return the bytes of numbers and scales."""
        return int(self.values.size) * self.precision.bits // 8 + self.scales.nbytes


def scales_of(weight: Floats, precision: Precision, dtype: np.dtype[Any], name: str = "weight") -> NDArray[Any]:
    """Return scales that map the largest weight of each block (or channel) to the largest number of the type.

    Args:
        weight: float32 [in, out].
        precision: of the quantized matrix.
        dtype: of the scales; they are rounded to it, never to 0.
        name: of the weight, for errors.

    Raises:
        CalibrationError: a weight is not finite.
    """
    if not np.isfinite(weight).all():
        found = weight[~np.isfinite(weight)].flat[0]
        raise CalibrationError(f"{name}: found {found} among the weights, expected finite numbers")
    columns = weight.shape[1]
    blocks = np.abs(weight).reshape(-1, precision.block, columns) if precision.block else np.abs(weight)[None]
    largest = blocks.max(axis=1) / LARGEST[precision.weights]
    scales: NDArray[Any] = np.maximum(largest, _smallest(dtype)).astype(dtype)
    return scales if precision.block else np.asarray(scales[0])


def _smallest(dtype: np.dtype[Any]) -> float:
    """Return the smallest normal number of a type."""
    return float(ml_dtypes.finfo(dtype).smallest_normal)  # type: ignore[no-untyped-call]


def round_to_nearest(
    weight: Floats, precision: Precision, dtype: np.dtype[Any], name: str = "weight"
) -> QuantizedMatrix:
    """Round every weight to the nearest number that its scale allows; arguments and errors: see `scales_of`."""
    scales = scales_of(weight, precision, dtype, name)
    wide = scales.astype(np.float32)
    divisors = np.repeat(wide, precision.block, axis=0) if precision.block else wide
    return QuantizedMatrix(to_grid(weight / divisors, precision.weights), scales, precision)


def to_grid(values: Floats, kind: str) -> NDArray[Any]:
    """Convert numbers in units of their scale to a type; larger ones become its largest."""
    limited = np.clip(values, -LARGEST[kind], LARGEST[kind])
    return (limited if kind == "fp8" else np.rint(limited)).astype(NUMPY_TYPES[kind])
