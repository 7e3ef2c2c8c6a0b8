from __future__ import annotations

from pathlib import Path

import pytest

from fastblt.calibration.bundle_quantizer import layers_of
from fastblt.calibration.precision import CalibrationError, parse_scheme
from fastblt.calibration.quality import Quality, exceeded, parse_budget
from fastblt.calibration.sensitivity import Group, Sensitivity, choices, first_that_fits, groups_of


def group(name: str) -> Group:
    return Group("decoder", name, (name,), {name: 64}, 4000, 500)


def test_the_group_that_loses_most_for_its_bytes_is_raised_first() -> None:
    scheme = parse_scheme("w4")
    groups = [group("a"), group("b"), group("c")]
    losses = [Sensitivity("decoder", name, saved, 0.0, loss) for name, saved, loss in
              (("*", 9, 9.0), ("a", 1000, 0.1), ("b", 1000, 0.3), ("c", 10, 0.2))]  # fmt: skip
    found = choices(groups, scheme, losses)
    w4, w8 = scheme.precision, scheme.fallback
    assert found == [
        [w4, w4, w4],
        [w4, w4, w8],
        [w4, w8, w8],
        [w8, w8, w8],
        [w8, w8, None],
        [w8, None, None],
        [None, None, None],
    ]


@pytest.mark.parametrize("first", range(8))
def test_first_that_fits_is_found_with_few_tries(first: int) -> None:
    tried: list[int] = []

    def fits(index: int) -> bool:
        tried.append(index)
        return index >= first

    assert first_that_fits(7, fits) == (first if first < 7 else None)
    assert len(tried) == len(set(tried)) <= 3


def test_every_layer_is_in_one_group(tiny_bundle: Path) -> None:
    parts = ("encoder", "global", "decoder")
    layers = list(layers_of(tiny_bundle, parts))
    groups = groups_of(layers, parse_scheme("w4"))
    assert sorted(name for g in groups for name in g.layers) == sorted(layer.name for _, layer in layers)
    block = next(g for g in groups if g.name == "global_transformer.layers.0")
    assert {name.rsplit(".", 1)[1] for name in block.layers} == {"wqkv", "wo", "w13", "w2"}
    assert block.bytes == 4 * (64 * 192 + 64 * 64 + 64 * 192 + 96 * 64)
    assert block.smaller == block.bytes // 8


def test_budget_is_read() -> None:
    assert parse_budget("bpb=0.5%, acceptance=1%") == pytest.approx({"bpb": 0.005, "acceptance": 0.01})


@pytest.mark.parametrize("text", ["", "bpb", "bpb=1", "bpb=x%", "bpb=-1%", "bpb=nan%", "speed=1%", "bpb=1%,"])
def test_budgets_that_are_none_are_named(text: str) -> None:
    with pytest.raises(CalibrationError, match=r"--budget: found .* expected NAME=PERCENT%"):
        parse_budget(text)


def test_losses_are_by_how_much_the_bundle_is_worse() -> None:
    before = Quality(2.0, 1.0, 1.0, 0.5, {"s:4": 0.8, "s:8": 0.6})
    after = Quality(2.1, 0.97, 0.99, 0.52, {"s:4": 0.85, "s:8": 0.57})
    losses = after.losses(before)
    assert losses == pytest.approx(
        {"bpb": 0.05, "agreement": 0.03, "boundaries": 0.01, "masked": -0.02, "acceptance": 0.03}
    )
    assert list(exceeded(losses, {"bpb": 0.04, "acceptance": 0.03 + 1e-9, "masked": 0.0})) == ["bpb"]
