"""Scores of a window on every backend against slow computations with the whole-sequence eager model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fastblt.models.blt import Blt
from fastblt.models.decoder import BlockRows
from fastblt.models.patcher import entropy
from fastblt.models.patching import closes_patch, find_patches
from fastblt.models.tokens import MASK_ID, encode
from fastblt.models.training.evaluation import count_accepted, draft_acceptance
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.backends.protocol import Backend, Ids
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.scoring.plan import ScoringPlan
from fastblt.runtime.measure.scoring.teacher_forced import (
    score_window,
)
from fastblt.runtime.measure.scoring.windows import anchors
from fastblt.runtime.methods import parse_method
from fastblt.runtime.sequence.session import Latent, Session

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
    found = score_window(Session(backend), ids, ScoringPlan(anchors=1))
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
    found = score_window(Session(backend), ids, plan).drafts
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
        for draft, anchor in zip(
            score_window(Session(block_backend), ids, plan).drafts[name], places(plan), strict=True
        ):
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
    found = score_window(Session(block_backend), ids, plan, index).masked
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
    found = score_window(Session(block_backend), ids, plan).blocks
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
    together = score_window(Session(backend), ids, plan)
    alone = dataclasses.replace(plan, anchors=1)
    for index, anchor in enumerate(places(plan)):
        single = score_window(Session(backend), ids[: anchor + plan.longest_block], alone)
        assert single.drafts == {name: [found[index]] for name, found in together.drafts.items()}
        assert single.blocks == {name: [found[index]] for name, found in together.blocks.items()}
