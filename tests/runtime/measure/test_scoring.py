"""Scores of every backend against slow computations with the whole-sequence eager model, and the sums over them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fastblt.models.blt import Blt
from fastblt.models.config import BltConfig
from fastblt.models.decoder import BlockRows
from fastblt.models.patcher import entropy
from fastblt.models.patching import closes_patch, find_patches
from fastblt.models.tokens import MASK_ID, encode
from fastblt.models.training.evaluation import count_accepted, draft_acceptance
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.backends.protocol import Backend, Ids
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.agreement import common_prefix
from fastblt.runtime.measure.scoring.comparison import BOUNDS, Bounds, compare
from fastblt.runtime.measure.scoring.figures import sum_up
from fastblt.runtime.measure.scoring.free_running import Generated, generate_all, type_token_ratio
from fastblt.runtime.measure.scoring.plan import SamplingPoint, ScoringPlan, ScoringRequest, make_scoring_plan
from fastblt.runtime.measure.scoring.scores import Scores, count_steps, score
from fastblt.runtime.measure.scoring.teacher_forced import (
    BlockOutcome,
    DraftOutcome,
    MaskedOutcome,
    WindowScore,
    score_window,
)
from fastblt.runtime.measure.scoring.windows import OVERALL, Text, anchors, cut_windows
from fastblt.runtime.methods import MethodError, parse_method
from fastblt.runtime.sequence.sampling import SamplingError
from fastblt.runtime.sequence.session import Latent

WINDOW = 300
"""Bytes; more than one decoder call takes, and than any attention window of the tiny models."""
ANCHORS = 7

ModelOf = Callable[[Backend], Blt]


def window(seed: int = 0) -> Ids:
    return encode(np.random.default_rng(seed).bytes(WINDOW))


def plan_of(
    *drafts: str, blocks: tuple[str, ...] = (), mask_size: int = 0, rates: tuple[float, ...] = ()
) -> ScoringPlan:
    return ScoringPlan(
        drafts=tuple(map(parse_method, drafts)),
        blocks=tuple(map(parse_method, blocks)),
        mask_size=mask_size,
        mask_rates=rates,
        anchors=ANCHORS,
        seed=5,
    )


def places(plan: ScoringPlan) -> list[int]:
    return anchors(WINDOW, plan.anchors, plan.longest_block)


def tensor(ids: Ids) -> torch.Tensor:
    return torch.from_numpy(ids).unsqueeze(0)


def greedy_bytes(model: Blt, prefix: Ids, count: int) -> list[int]:
    """The model's own continuation, every byte from a run over the whole sequence."""
    ids = prefix.tolist()
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
    return ids[len(prefix) :]


def guess_block(model: Blt, prefix: Ids, shown: list[int], latent: str) -> torch.Tensor:
    """Most likely bytes of a block after a prefix, from the whole-sequence model.

    Latents: ``closed``, of the last patch closed at the prefix's end; ``partial``, of the prefix's end as if a patch
    ended there; ``before``, of the last patch that is closed before the last byte is seen (that byte reads it too).
    """
    ids = tensor(prefix)
    closes = closes_patch(entropy(model.patcher(ids)), model.config.patching)
    index = find_patches(closes).latent_index
    if latent == "before":
        index = torch.cat([index[:, :-1], index[:, -2:-1]], dim=1)
    if latent == "partial":
        closes[:, -1] = True
    patches = find_patches(closes)
    read = patches.latent_index[:, -1:] if latent == "partial" else index[:, -1:]
    rows = BlockRows(torch.tensor([[shown]]), torch.tensor([[len(prefix)]]), read)
    return model(ids, patches, rows, index)[1][0].argmax(-1)


@pytest.fixture(scope="module", params=["eager", "onnxruntime"])
def block_backend(request: pytest.FixtureRequest, open_backend: Callable[[str, str, int], Backend]) -> Backend:
    """Each backend over the model that denoises blocks."""
    return open_backend(request.param, "embedding", WINDOW)


@pytest.mark.parametrize("seed", [0, 1])
def test_bits_and_patches_equal_whole_sequence_model(backend: Backend, model_of: ModelOf, seed: int) -> None:
    ids = window(seed)
    found = score_window(backend, ids, ScoringPlan(anchors=1))
    logits, _ = model_of(backend)(tensor(ids[:-1]))
    nats = torch.nn.functional.cross_entropy(logits[0].double(), torch.from_numpy(ids[1:]), reduction="sum")
    assert found.bytes == WINDOW
    assert found.nats == pytest.approx(float(nats), rel=1e-6)
    ends = model_of(backend).segment(tensor(ids[:-1])).closes[0].nonzero().flatten().tolist()
    assert ends[0] == 0, "BOS is a patch by itself, and no byte"
    assert (found.patches, found.patched_bytes) == (len(ends) - 1, ends[-1])
    assert found.patches > 10


def test_self_speculation_equals_training_evaluation(backend: Backend, model_of: ModelOf) -> None:
    ids = window()
    plan = plan_of("s:4", "s:8")
    found = score_window(backend, ids, plan).drafts
    expected = [draft_acceptance(model_of(backend), tensor(ids[:anchor]), 8) for anchor in places(plan)]
    for k in (4, 8):
        drafts = found[f"s:{k}"]
        assert [draft.drafted for draft in drafts] == [k] * ANCHORS
        assert [draft.accepted / k for draft in drafts] == [rates[f"acceptance_s{k}"] for rates in expected]
    assert 0 < sum(draft.accepted for draft in found["s:8"]) < 8 * ANCHORS, "or the test proves little"


@pytest.mark.parametrize(("option", "latent"), [("closed", "before"), ("partial", "partial")])
def test_one_step_block_drafts_equal_whole_sequence_model(
    block_backend: Backend, model_of: ModelOf, option: str, latent: str
) -> None:
    block_size = block_backend.config.block_size
    model, name = model_of(block_backend), f"dv:{block_size}@one+{option}+block"
    accepted = []
    for seed in range(4):
        ids, plan = window(seed), plan_of(name)
        for draft, anchor in zip(score_window(block_backend, ids, plan).drafts[name], places(plan), strict=True):
            block = guess_block(model, ids[:anchor], [MASK_ID] * block_size, latent)
            expected = int(count_accepted(model, torch.cat([tensor(ids[:anchor]), block.unsqueeze(0)], 1), anchor)[0])
            assert (draft.drafted, draft.accepted) == (block_size, expected)
            accepted.append(expected)
    assert max(accepted) > 0, "or the test proves little"


@pytest.mark.parametrize("latent", ["closed", "partial"])
def test_masked_bytes_equal_whole_sequence_model(block_backend: Backend, model_of: ModelOf, latent: Latent) -> None:
    block_size = block_backend.config.block_size
    model, index, plan = model_of(block_backend), 3, plan_of(mask_size=block_size, rates=(0.5, 1.0))
    for anchor in places(plan):
        assert anchor + block_size <= WINDOW + 1, "the whole block is true text"
    # Text that the model itself writes: a random model restores next to nothing of any other.
    start = window()[:40]
    ids = np.concatenate([start, np.array(list(own_text(model, start, WINDOW + 1 - 40)))])
    found = score_window(block_backend, ids, plan, index).masked
    random = np.random.default_rng([plan.seed, index])
    expected: dict[float, list[tuple[int, int]]] = {0.5: [], 1.0: []}
    for anchor in places(plan):
        draws, true = random.random(block_size), ids[anchor : anchor + block_size]
        for rate, rows in expected.items():
            hidden = draws < rate
            guess = guess_block(model, ids[:anchor], np.where(hidden, MASK_ID, true).tolist(), latent).numpy()
            rows.append((int(hidden.sum()), int((guess == true)[hidden].sum())))
    assert {rate: found[rate, latent] for rate in expected} == expected
    assert sum(hidden for hidden, _ in expected[1.0]) == block_size * ANCHORS
    assert 0 < sum(hidden for hidden, _ in expected[0.5]) < block_size * ANCHORS
    assert any(right for _, right in expected[1.0]), "or the test proves little"


def own_text(model: Blt, start: Ids, count: int) -> list[int]:
    """Greedy text, over the incremental eager path, whose equality with the whole sequence other tests prove."""
    text = BltRuntime(EagerBackend(model, WINDOW)).generate(
        bytes((start[1:] - 4).tolist()), count, method="ar", stop_at_eos=False
    )
    return encode(text.data.ljust(count, b"."), bos=False).tolist()


def test_blocks_equal_whole_sequence_model(block_backend: Backend, model_of: ModelOf) -> None:
    block_size = block_backend.config.block_size
    model, ids = model_of(block_backend), window(2)
    pure, mixed = f"d:{block_size}@one+block", f"d:{block_size}@one"
    plan = plan_of(blocks=(pure, mixed))
    found = score_window(block_backend, ids, plan).blocks
    for anchor, outcome, first in zip(places(plan), found[pure], found[mixed], strict=True):
        own = greedy_bytes(model, ids[:anchor], block_size)
        block = guess_block(model, ids[:anchor], [MASK_ID] * block_size, "partial").tolist()
        equal = sum(x == y for x, y in zip(block, own, strict=True))
        assert outcome == (block_size, equal, prefix_of(block, own))
        mixed_block = [own[0], *block[1:]]
        equal = sum(x == y for x, y in zip(mixed_block, own, strict=True))
        assert first == (block_size, equal, prefix_of(mixed_block, own))
        assert first.common_prefix >= 1


def prefix_of(a: list[int], b: list[int]) -> int:
    count = 0
    while count < len(a) and a[count] == b[count]:
        count += 1
    return count


def test_what_is_tried_at_one_anchor_does_not_change_another(backend: Backend) -> None:
    """Caches are overwritten all the time; every anchor in a session of its own gives the same outcomes."""
    size = backend.config.block_size
    blocks = (f"d:{size}@0.1",) if size else ()
    plan = plan_of("s:3", *((f"dv:{size}@eb4.0+partial",) if size else ()), blocks=blocks)
    ids = window(4)
    together = score_window(backend, ids, plan)
    alone = dataclasses.replace(plan, anchors=1)
    for index, anchor in enumerate(places(plan)):
        single = score_window(backend, ids[: anchor + plan.longest_block], alone)
        assert single.drafts == {name: [found[index]] for name, found in together.drafts.items()}
        assert single.blocks == {name: [found[index]] for name, found in together.blocks.items()}


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


def test_type_token_ratio_is_of_words_between_white_space() -> None:
    assert type_token_ratio(b"a b\na\t a, b") == pytest.approx(3 / 5)
    assert type_token_ratio(b" \n") is None


def test_common_prefix() -> None:
    assert common_prefix(b"abcd", b"abXd") == 2
    assert common_prefix(b"ab", b"abc") == common_prefix(b"abc", b"ab") == 2


def test_generated_texts_are_those_of_the_runtime(tiny_model: Blt) -> None:
    runtime, prompts = BltRuntime(EagerBackend(tiny_model, 100)), [b"one", b"two"]
    found = generate_all(runtime, prompts, 30, "d:4@eb1.0", top_p=0.8, gamma=1.0, seed=7)
    single = [
        runtime.generate(prompt, 30, method="d:4@eb1.0", temperature=1.0, top_p=0.8, seed=7 + i)
        for i, prompt in enumerate(prompts)
    ]
    assert found.texts == tuple(generation.data for generation in single)
    assert found.decoder_calls == sum(generation.stats.nfe["decoder"] for generation in single)
    greedy = generate_all(runtime, prompts, 30, "ar")
    assert greedy.texts == tuple(runtime.generate(prompt, 30, method="ar").data for prompt in prompts)
    assert found.texts != greedy.texts


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
        Generated("d:8@eb1.0", (b"a b c", b"d d"), 4, 0.5, 1.0),
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


@pytest.fixture(scope="module")
def small() -> ScoringPlan:
    return ScoringPlan(
        drafts=(parse_method("s:4"), parse_method("dv:4@one")),
        blocks=(parse_method("d:4@0.5"),),
        mask_size=4,
        mask_rates=(0.5, 1.0),
        sampling=(SamplingPoint(parse_method("ar"), 0.9, None), SamplingPoint(parse_method("d:4@eb1.0"), 0.9, 1.0)),
        new_bytes=24,
    )


def test_graphs_agree_with_eager_and_another_model_does_not(
    open_backend: Callable[[str, str, int], Backend],
    make_model: Callable[..., Blt],
    tiny_config: BltConfig,
    small: ScoringPlan,
) -> None:
    runtimes = {
        "onnxruntime": BltRuntime(open_backend("onnxruntime", "embedding", 128)),
        "eager": BltRuntime(open_backend("eager", "embedding", 128)),
        "other": BltRuntime(EagerBackend(make_model(tiny_config, seed=1), 128)),
    }
    texts = {name: [encode(np.random.default_rng(seed).bytes(64))] for name, seed in (("a", 0), ("b", 1))}
    told: list[int] = []
    found = {
        name: score(runtime, texts, [b"In the", b"def "], small, lambda *each: told.append(each))
        for name, runtime in runtimes.items()
    }
    steps = count_steps(texts, small)
    assert [each[:2] for each in told] == 3 * [(done, steps) for done in range(steps + 1)]
    checks = compare(found["onnxruntime"], found["eager"], BOUNDS["fp32"])
    assert all(check.agree for check in checks), checks
    assert {check.figure: check.compared for check in checks} == {
        "bits_per_byte": 3, "patches": 2, "drafts": 2 * 4 * 2, "masked": 2 * 4 * 4, "blocks": 2 * 4,
        "generation": 4, "diversity": 4,
    }  # fmt: skip
    wrong = {check.figure for check in compare(found["other"], found["eager"], BOUNDS["fp32"]) if not check.agree}
    assert wrong >= {"bits_per_byte", "patches", "generation", "diversity"}


def test_scores_are_the_same_at_every_call(tiny_model: Blt, small: ScoringPlan) -> None:
    runtime = BltRuntime(EagerBackend(tiny_model, 128))
    texts = {"a": [encode(bytes(range(60, 124)))]}
    one, two = (score(runtime, texts, [b"a"], small) for _ in range(2))
    assert sum_up(one) == sum_up(two)
    other = score(runtime, texts, [b"a"], dataclasses.replace(small, seed=1))
    assert other.windows["a"][0].nats == one.windows["a"][0].nats
    assert other.windows["a"][0].masked != one.windows["a"][0].masked
    assert other.sampled != one.sampled
