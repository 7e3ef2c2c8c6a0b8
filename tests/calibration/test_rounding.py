from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fastblt.calibration.gptq import gptq
from fastblt.calibration.precision import CalibrationError, Precision, parse_scheme
from fastblt.calibration.rounding import round_to_nearest

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((96, 40)).astype(np.float32)
INTEGERS = [Precision("int8"), Precision("int8", 32), Precision("int4", 32), Precision("int4", 16)]
FLOAT = np.dtype(np.float32)


@pytest.mark.parametrize("precision", INTEGERS, ids=lambda p: p.label)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_weight_is_within_half_a_step(precision: Precision, dtype: type) -> None:
    found = round_to_nearest(WEIGHT, precision, np.dtype(dtype))
    steps = (
        np.repeat(found.scales.astype(np.float32), precision.block or 1, axis=0) if precision.block else found.scales
    )
    assert found.scales.dtype == dtype
    # The scale is rounded, too: what it no longer reaches is clipped.
    unit = float(ml_dtypes.finfo(dtype).eps)
    allowed = steps.astype(np.float32) * 0.5 + np.abs(WEIGHT).max() * unit
    assert (np.abs(found.dequantized() - WEIGHT) <= allowed).all()


def test_weights_are_within_a_sixteenth_of_their_size_when_e4m3() -> None:
    found = round_to_nearest(WEIGHT, Precision("fp8"), FLOAT)
    error = np.abs(found.dequantized() - WEIGHT)
    # Three bits after the leading one; below the smallest normal number, half of the smallest step.
    assert (error <= np.maximum(np.abs(WEIGHT) / 16 * 1.001, found.scales * 2.0**-10)).all()


@pytest.mark.parametrize("precision", INTEGERS, ids=lambda p: p.label)
def test_size_is_that_of_packed_values_and_scales(precision: Precision) -> None:
    found = round_to_nearest(WEIGHT, precision, FLOAT)
    blocks = 96 // precision.block if precision.block else 1
    assert found.nbytes == 96 * 40 * precision.bits // 8 + blocks * 40 * 4


def test_columns_of_zeros_stay_zeros() -> None:
    weight = WEIGHT.copy()
    weight[:, 3] = 0
    for precision in (*INTEGERS, Precision("fp8")):
        assert not round_to_nearest(weight, precision, np.dtype(np.float16)).dequantized()[:, 3].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(bad: float) -> None:
    weight = WEIGHT.copy()
    weight[5, 5] = bad
    with pytest.raises(CalibrationError, match=rf"layers\.0\.wo: found {bad} among the weights, expected finite"):
        round_to_nearest(weight, Precision("int8"), FLOAT, "layers.0.wo")


@pytest.mark.parametrize("precision", INTEGERS, ids=lambda p: p.label)
def test_outputs_change_less_with_gptq_than_by_rounding_to_nearest(precision: Precision) -> None:
    mixing = RANDOM.standard_normal((96, 96)) * np.geomspace(1, 0.02, 96)
    rows = (RANDOM.standard_normal((2000, 96)) @ mixing.T).astype(np.float32)
    moments = rows.T @ rows / len(rows)

    def error(weight: np.ndarray) -> float:
        return float(np.square(rows @ (weight - WEIGHT)).mean())

    nearest = error(round_to_nearest(WEIGHT, precision, FLOAT).dequantized())
    assert error(gptq(WEIGHT, moments, precision, FLOAT).dequantized()) < 0.6 * nearest


def test_gptq_is_rounding_to_nearest_when_inputs_do_not_go_together() -> None:
    precision = Precision("int4", 32)
    found = gptq(WEIGHT, np.eye(96, dtype=np.float32), precision, FLOAT)
    np.testing.assert_array_equal(found.dequantized(), round_to_nearest(WEIGHT, precision, FLOAT).dequantized())


def test_inputs_that_were_never_seen_are_rounded_to_nearest() -> None:
    rows = RANDOM.standard_normal((200, 96)).astype(np.float32)
    rows[:, 10:20] = 0
    found = gptq(WEIGHT, rows.T @ rows / 200, Precision("int8"), FLOAT).dequantized()
    nearest = round_to_nearest(WEIGHT, Precision("int8"), FLOAT).dequantized()
    np.testing.assert_array_equal(found[10:20], nearest[10:20])


def test_moments_that_are_not_finite_are_named() -> None:
    with pytest.raises(CalibrationError, match="wo: found second moments that are not finite"):
        gptq(WEIGHT, np.full((96, 96), np.nan, dtype=np.float32), Precision("int8"), FLOAT, "wo")


@pytest.mark.parametrize(
    ("inputs", "asked", "fitted"),
    [
        *((1024, "w4/128", "w4/128"), (576, "w4/128", "w4/64"), (288, "w4/32", "w4/32"), (792, "w4/32", "w8")),
        *((1584, "w4/32", "w4/16"), (792, "w8/128", "w8"), (792, "w8", "w8")),
    ],
)
def test_blocks_are_whole(inputs: int, asked: str, fitted: str) -> None:
    kind, _, block = asked.partition("/")
    precision = Precision({"w4": "int4", "w8": "int8"}[kind], int(block or 0))
    assert precision.label == asked
    assert precision.fitted(inputs).label == fitted


@pytest.mark.parametrize(
    ("name", "block", "message"),
    [
        ("w2", None, "--scheme: found 'w2', expected one of w8, w4, int8, fp8"),
        ("w4", 0, "--block: found 0, expected 32 or 64 or 128 with scheme w4"),
        ("int8", 32, "--block: found 32, expected 0 with scheme int8"),
    ],
)
def test_schemes_that_do_not_exist_are_named(name: str, block: int | None, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        parse_scheme(name, block)
