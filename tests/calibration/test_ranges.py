from __future__ import annotations

import numpy as np
import pytest

from fastblt.calibration.activation_ranges import activation_scale
from fastblt.calibration.layer_inputs import BINS, LayerInputs
from fastblt.calibration.precision import RANGES, CalibrationError

ROWS = np.random.default_rng(0).standard_normal((4000, 8)).astype(np.float32)


def inputs_of(rows: np.ndarray) -> LayerInputs:
    largest = np.abs(rows).max(axis=0)
    histogram = np.histogram(np.abs(rows), BINS, (0.0, float(largest.max())))[0]
    return LayerInputs(len(rows), largest, histogram)


def error(rows: np.ndarray, scale: float) -> float:
    rounded = np.clip(np.rint(rows / scale), -127, 127) * scale
    return float(np.square(rows - rounded).mean())


def test_the_largest_is_kept_with_minmax() -> None:
    assert activation_scale(inputs_of(ROWS), "int8", "minmax", "x") == pytest.approx(np.abs(ROWS).max() / 127)


def test_one_in_ten_thousand_is_clipped_with_percentile() -> None:
    rows = ROWS.copy()
    rows[0, 0] = 1000.0
    scale = activation_scale(inputs_of(rows), "int8", "percentile", "x")
    assert scale * 127 < 10


def test_no_range_has_a_smaller_squared_error_than_that_of_mse() -> None:
    rows = np.random.default_rng(1).laplace(size=(4000, 8)).astype(np.float32) ** 3
    errors = {name: error(rows, activation_scale(inputs_of(rows), "int8", name, "x")) for name in RANGES}
    assert errors["mse"] == pytest.approx(min(errors.values()), rel=0.02)
    assert errors["mse"] < errors["minmax"]


def test_entropy_clips_a_lonely_outlier() -> None:
    rows = ROWS.copy()
    rows[0, 0] = 100.0
    assert activation_scale(inputs_of(rows), "int8", "entropy", "x") * 127 < 50


def test_e4m3_keeps_the_largest() -> None:
    assert activation_scale(inputs_of(ROWS), "fp8", "mse", "x") == pytest.approx(np.abs(ROWS).max() / 448)


@pytest.mark.parametrize("largest", [0.0, np.inf, np.nan])
def test_ranges_that_are_no_ranges_are_named(largest: float) -> None:
    inputs = LayerInputs(100, np.array([largest], dtype=np.float32))
    with pytest.raises(CalibrationError, match=r"layer decoder\.output: found a range of inputs up to .* above 0"):
        activation_scale(inputs, "int8", "minmax", "decoder.output")


def test_ways_that_do_not_exist_are_named() -> None:
    with pytest.raises(CalibrationError, match="--range: found 'widest', expected one of minmax"):
        activation_scale(inputs_of(ROWS), "int8", "widest", "x")
