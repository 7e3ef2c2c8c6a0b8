from __future__ import annotations

import dataclasses
import math

import pytest

from fastblt.models.config import BltConfig, PatchingConfig
from fastblt.models.parameters import count_parameters
from fastblt.models.presets import preset
from fastblt.runtime.measure.replay.paper import (
    POINT_BYTES,
    POINT_PATCH,
    POINTS,
    SHORT_LIST,
    OperatingPoint,
    estimates,
    operating_point,
)
from fastblt.runtime.measure.replay.rates import ReplayRates
from fastblt.runtime.methods import parse_method
from fastblt.runtime.sequence.stats import RunStats


@pytest.fixture(scope="module")
def config() -> BltConfig:
    return preset("blt-1b")


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.method)
def test_points_are_consistent(point: OperatingPoint) -> None:
    """Bytes and calls per round lead to the paper's totals; its encoder calls are two per round with verification."""
    assert parse_method(point.method).name == point.method
    rounds = POINT_BYTES / point.round_bytes
    assert rounds * point.round_decoder_calls == pytest.approx(point.decoder_calls, rel=0.05)
    per_round = 1 if point.acceptance is None else 2
    if point.method == "ar":
        assert pytest.approx(point.patch_calls, rel=0.01) == POINT_BYTES / POINT_PATCH
    else:
        assert per_round * rounds == pytest.approx(point.patch_calls, rel=0.05)


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.method)
def test_points_follow_the_papers_formula(point: OperatingPoint) -> None:
    """Parameters of the 1B model: 1.28e9 global, 19e6 encoder, 160e6 decoder; 16 bits each."""
    gb = 2 * (point.decoder_calls * 160e6 + point.patch_calls * (1.28e9 + 19e6)) / 1e9
    assert gb == pytest.approx(point.gb, rel=0.01)


def test_estimates_assume_one_operating_point_and_the_calls_of_this_runtime(config: BltConfig) -> None:
    diffusion = dataclasses.replace(config, decoder_input="embedding", block_size=16)
    found = {each.point.method: each for each in estimates(diffusion)}
    assert tuple(found) == SHORT_LIST
    assert found["ar"].calls == {"decoder": 512, "encoder": 250, "global": 250}
    rounds = math.ceil(512 / (8 * 0.9114 + 1))
    assert found["s:8"].calls == {"decoder": math.ceil(9 * 512 / (8 * 0.9114 + 1)), "encoder": rounds, "global": rounds}
    assert found["d:8@0.7"].calls == {"decoder": 187, "encoder": 64, "global": 64}
    assert found["dv:8@one"].calls == {"decoder": 138, "encoder": 69, "global": 69}
    for each in found.values():
        assert each.gb == RunStats(nfe=each.calls).estimated_gb(diffusion)
    assert 1 - found["s:8"].gb / found["ar"].gb > 1 - 504.08 / 814.95, "one encoder and global call per round"


def test_estimates_leave_out_what_a_model_cannot_run_and_encode_every_byte_where_states_are_read(
    config: BltConfig,
) -> None:
    plain = dataclasses.replace(config, decoder_input="encoder", block_size=0)
    assert [each.point.method for each in estimates(plain)] == ["ar", "s:8"]
    for each in estimates(plain):
        assert each.calls["encoder"] == each.calls["decoder"] > each.calls["global"]
    with pytest.raises(ValueError, match=r"found method 's:5', expected one of ar, s:4"):
        estimates(plain, ["s:5"])


def test_estimates_count_the_steps_of_a_draft_decoder_at_its_full_size(config: BltConfig) -> None:
    drafting = dataclasses.replace(config, decoder_input="mixed", block_size=16, draft_rank=8)
    found = {each.point.method: each for each in estimates(drafting)}
    assert tuple(found) == SHORT_LIST
    assert found["d:8@0.7"].calls == {"decoder": 64, "encoder": 64, "draft": 187, "global": 64}
    assert found["dv:8@one"].calls == {"decoder": 69, "encoder": 69, "draft": 69, "global": 69}
    full = {each.point.method: each.gb for each in estimates(dataclasses.replace(drafting, draft_rank=None))}
    assert {method: each.gb for method, each in found.items()} == full


def test_estimates_use_the_patches_that_a_model_can_have(config: BltConfig) -> None:
    bytewise = dataclasses.replace(config, patcher=None, patching=PatchingConfig(mode="static", max_patch_length=1))
    assert estimates(bytewise, ["ar"])[0].calls["global"] == 512
    fours = dataclasses.replace(config, patcher=None, patching=PatchingConfig(mode="static", max_patch_length=4))
    assert estimates(fours, ["ar"])[0].calls["global"] == 128


def test_estimates_are_calls_times_weights() -> None:
    config = preset("blt-d-1b")
    counts = count_parameters(config)
    ar, s8 = estimates(config, ["ar", "s:8"])
    expected = 2 * (512 * counts.decoder + 250 * (counts.encoder + counts.global_transformer)) / 1e9
    assert ar.gb == pytest.approx(expected)
    rounds = 512 / (8 * 0.9114 + 1)
    calls = 2 * (rounds * 9 * counts.decoder + rounds * (counts.encoder + counts.global_transformer)) / 1e9
    assert s8.gb == pytest.approx(calls, rel=0.02)
    plain = preset("blt-1b")
    counts = count_parameters(plain)
    expected = 2 * (512 * (counts.decoder + counts.encoder) + 250 * counts.global_transformer) / 1e9
    assert estimates(plain, ["ar"])[0].gb == pytest.approx(expected)


def test_replays_read_the_same_points() -> None:
    names = [point.method for point in POINTS]
    rates = ReplayRates.parse("paper", names)
    assert rates.patch == POINT_PATCH
    for point in POINTS:
        assert rates.value(point.method, "acceptance") == point.acceptance
        assert rates.value(point.method, "steps") == point.steps
    assert operating_point("dv:8@one+partial") == operating_point("dv:8@one")
    assert operating_point("s:5") is None
