"""The plan of scores: windows, anchors, and what a model can be scored on."""

from __future__ import annotations

import pytest

from fastblt.models.config import BltConfig
from fastblt.models.tokens import encode
from fastblt.runtime.measure.scoring.plan import ScoringRequest, make_scoring_plan
from fastblt.runtime.measure.scoring.windows import Text, anchors, cut_windows
from fastblt.runtime.methods import MethodError
from fastblt.runtime.sequence.sampling import SamplingError


def test_windows_are_even_and_disjoint() -> None:
    text = Text("text", bytes(range(100)))
    cuts = cut_windows(text, 3, 30)
    assert [cut[:2].tolist() for cut in cuts] == [[1, 4], [1, 4 + 33], [1, 4 + 66]]
    assert all(len(cut) == 31 for cut in cuts)
    assert len(cut_windows(text, 9, 30)) == 3, "no more than fit"
    assert cut_windows(text, 1, 100)[0].tolist() == encode(text.data).tolist()
    with pytest.raises(ValueError, match="text: found 100 bytes, expected at least one window of 101"):
        cut_windows(text, 1, 101)


def test_anchors_leave_room_for_blocks_and_are_even() -> None:
    assert anchors(100, 4, 20) == [81, 61, 41, 21]
    assert anchors(28, 4, 20) == [9, 7, 5, 3]
    with pytest.raises(ValueError, match="found 27 bytes, expected at least 28 for 4 anchors"):
        anchors(27, 4, 20)


def test_plan_fits_request_to_model(tiny_config: BltConfig, tiny_encoder_config: BltConfig) -> None:
    size = tiny_config.block_size
    plan = make_scoring_plan(
        ScoringRequest(k=(4,), draft_rules=("one",), rules=("0.7",), top_p=(0.5,), gamma=("1.0",)), tiny_config
    )
    assert [method.name for method in plan.drafts] == ["s:4", f"dv:{size // 2}@one", f"dv:{size}@one"]
    assert [method.name for method in plan.blocks] == [f"d:{size}@0.7"]
    points = [(point.method.name, point.top_p, point.gamma) for point in plan.sampling]
    assert points == [("ar", 0.5, None), (f"d:{size}@eb1.0", 0.5, 1.0)]
    assert (plan.mask_size, plan.left_out) == (size, ())
    without = make_scoring_plan(ScoringRequest(), tiny_encoder_config)
    assert [method.name for method in without.drafts] == ["s:4", "s:8", "s:16"]
    assert (without.blocks, without.mask_size) == ((), 0)
    assert {point.method.name for point in without.sampling} == {"ar"}
    assert len(without.left_out) == 1
    assert make_scoring_plan(ScoringRequest(mask_rates=()), tiny_config).mask_size == 0


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (ScoringRequest(k=(64,)), MethodError, "expected 1..63"),
        (ScoringRequest(blocks=(400,)), MethodError, "expected at most"),
        (ScoringRequest(rules=("2.0",)), MethodError, "unmasking rule '2.0'"),
        (ScoringRequest(draft_rules=("two",)), MethodError, "unmasking rule 'two'"),
        (ScoringRequest(gamma=("x",)), MethodError, "unmasking rule 'ebx'"),
        (ScoringRequest(top_p=(1.5,)), SamplingError, "top_p: found 1.5"),
        (ScoringRequest(mask_rates=(1.5,)), ValueError, "mask rate: found 1.5"),
    ],
)
def test_plan_refuses(tiny_config: BltConfig, request_: ScoringRequest, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_scoring_plan(request_, tiny_config)


def test_blocks_are_refused_where_the_model_has_none(tiny_encoder_config: BltConfig) -> None:
    with pytest.raises(MethodError, match="no \\[MASK\\] row"):
        make_scoring_plan(ScoringRequest(blocks=(4,)), tiny_encoder_config)
