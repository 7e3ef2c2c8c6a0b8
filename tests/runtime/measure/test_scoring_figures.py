"""The figures of scores that are known: sums over outcomes, and the comparison of two models."""

from __future__ import annotations

import dataclasses
import math

import pytest

from fastblt.runtime.measure.scoring.comparison import Bounds, compare
from fastblt.runtime.measure.scoring.figures import sum_up
from fastblt.runtime.measure.scoring.free_running import Generated
from fastblt.runtime.measure.scoring.scores import Scores
from fastblt.runtime.measure.scoring.teacher_forced import (
    BlockOutcome,
    DraftOutcome,
    MaskedOutcome,
    WindowScore,
)
from fastblt.runtime.measure.scoring.windows import OVERALL


def scores(**changes: object) -> Scores:
    """Two texts with a window each; all figures are known."""
    one = WindowScore(
        100, 100 * math.log(2), 90, 30,
        drafts={"s:4": [DraftOutcome(4, 3), DraftOutcome(4, 0)]},
        masked={(0.5, "closed"): [MaskedOutcome(2, 1), MaskedOutcome(0, 0)]},
        blocks={"d:8@one": [BlockOutcome(8, 4, 2), BlockOutcome(8, 8, 8)]},
    )  # fmt: skip
    two = WindowScore(
        300, 900 * math.log(2), 280, 70,
        drafts={"s:4": [DraftOutcome(4, 4), DraftOutcome(4, 4)]},
        masked={(0.5, "closed"): [MaskedOutcome(4, 4), MaskedOutcome(4, 0)]},
        blocks={"d:8@one": [BlockOutcome(8, 0, 0), BlockOutcome(8, 1, 0)]},
    )  # fmt: skip
    found = Scores("onnxruntime", "cpu", {"a": [one], "b": [two]})
    found.greedy = {
        "ar": Generated("ar", (b"abcd", b"abc"), 7),
        "d:8@one": Generated("d:8@one", (b"abXd", b"abcde"), 3),
    }
    found.sampled = [
        Generated("ar", (b"a a b", b" "), 12, 0.5),
        Generated("d:8@eb1.0", (b"a b c", b"d d"), 4, 0.5, 1.0, nats=16 * math.log(2)),
    ]
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


def test_figures_are_sums_over_outcomes() -> None:
    figures = sum_up(scores())
    assert [row.data for row in figures.text] == [OVERALL, "a", "b"]
    assert [row.bits_per_byte for row in figures.text] == pytest.approx([1000 / 400, 1.0, 3.0])
    assert [row.bytes_per_patch for row in figures.text] == pytest.approx([3.7, 3.0, 4.0])
    assert [(row.anchors, row.drafted, row.accepted) for row in figures.drafts] == [(4, 16, 11), (2, 8, 3), (2, 8, 8)]
    assert [row.acceptance for row in figures.drafts] == pytest.approx([11 / 16, 3 / 8, 1.0])
    assert [(row.hidden, row.right) for row in figures.masked] == [(10, 5), (2, 1), (8, 4)]
    assert {(row.t, row.latent) for row in figures.masked} == {(0.5, "closed")}
    assert [row.accuracy for row in figures.masked] == pytest.approx([0.5] * 3)
    assert [row.agreement for row in figures.blocks] == pytest.approx([13 / 32, 12 / 16, 1 / 16])
    assert [row.common_prefix for row in figures.blocks] == pytest.approx([10 / 4, 5.0, 0.0])


def test_generation_is_compared_with_autoregression() -> None:
    figures = sum_up(scores())
    (row,) = figures.generation
    assert (row.method, row.texts, row.bytes, row.equal) == ("d:8@one", 2, 4 + 5, 3 + 3)
    assert row.agreement == pytest.approx(6 / 9)
    assert row.common_prefix == pytest.approx((2 + 3) / 2)
    assert row.decoder_nfe_per_byte == pytest.approx(3 / 9)
    ar, block = figures.diversity
    assert (ar.method, ar.top_p, ar.gamma, ar.texts, ar.bytes) == ("ar", 0.5, None, 2, 6)
    assert ar.type_token_ratio == pytest.approx(2 / 3), "a text without words does not count"
    assert block.type_token_ratio == pytest.approx((1 + 0.5) / 2)
    assert block.decoder_nfe_per_byte == pytest.approx(4 / 8)
    assert block.gamma == 1.0
    assert (ar.words, block.words) == (3 / 2, 5 / 2)
    assert ar.bits_per_byte is None
    assert block.bits_per_byte == pytest.approx(16 / 8)


def test_one_text_is_not_given_twice() -> None:
    alone = scores(windows={"a": scores().windows["a"]})
    assert [row.data for row in sum_up(alone).text] == [OVERALL]


def test_equal_scores_agree() -> None:
    checks = compare(scores(), scores(), Bounds(0.0, 0.0, 0.0))
    names = ["bits_per_byte", "patches", "drafts", "masked", "blocks", "generation", "diversity"]
    assert [check.figure for check in checks] == names
    assert [check.compared for check in checks] == [3, 2, 4, 4, 4, 4, 4]
    assert all(check.agree and check.differing == 0 and check.largest_difference == 0 for check in checks)


def differing(other: Scores, bounds: Bounds) -> dict[str, int]:
    return {check.figure: check.differing for check in compare(scores(), other, bounds) if not check.agree}


def test_every_kind_of_difference_is_found() -> None:
    strict = Bounds(1e-4, 0.0, 0.0)
    other = scores()
    other.windows["b"][0].nats *= 1.0005
    assert differing(other, strict) == {"bits_per_byte": 2}, "b, and both together"
    other.windows["b"][0].nats = math.nan
    assert differing(other, strict) == {"bits_per_byte": 2}
    other = scores()
    other.windows["a"][0].patches += 1
    assert differing(other, strict) == {"patches": 1}
    other = scores()
    # The sums stay what they are: single outcomes are compared.
    other.windows["a"][0].drafts["s:4"].reverse()
    assert differing(other, strict) == {"drafts": 2}
    other.windows["a"][0].masked[0.5, "closed"].reverse()
    other.windows["b"][0].blocks["d:8@one"].reverse()
    assert differing(other, strict) == {"drafts": 2, "masked": 2, "blocks": 2}
    greedy = {**scores().greedy, "ar": Generated("ar", (b"abcd", b"abX"), 7)}
    sampled = [scores().sampled[0], Generated("d:8@eb1.0", (b"x y c", b"e e"), 4, 0.5, 1.0)]
    assert differing(scores(greedy=greedy, sampled=sampled), strict) == {"generation": 1, "diversity": 2}


def test_ties_are_allowed_up_to_the_bound() -> None:
    other = scores()
    other.windows["a"][0].drafts["s:4"].reverse()
    assert differing(other, Bounds(0.0, 0.5, 0.0)) == {}
    assert differing(other, Bounds(0.0, 0.25, 0.0)) == {"drafts": 2}
    check = next(check for check in compare(scores(), other, Bounds(0.0, 0.3, 0.0)) if check.figure == "drafts")
    assert check.allowed == 2, "rounded up"
    assert check.largest_difference == 0.0
