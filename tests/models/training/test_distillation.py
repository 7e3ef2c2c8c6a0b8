"""The model's own drafts, against step-by-step decoding of whole sequences with a latent that grows stale."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.models.decoder import CleanRows
from fastblt.models.tokens import BOS_ID
from fastblt.models.training.batches import IGNORE, BlockSites, place_blocks
from fastblt.models.training.distillation import distill, own_drafts
from fastblt.models.training.recipe import TrainConfig

LENGTH = 48
"""Twice the decoder's window."""
SIZE = 4
RECIPE = TrainConfig("tiny", budget_seconds=1, patcher_seconds=1, blocks=48)


def windows(seed: int = 0) -> Tensor:
    ids = torch.randint(4, 260, (2, LENGTH), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = BOS_ID
    return ids


def sites_of(model: Blt, ids: Tensor) -> BlockSites:
    targets = torch.cat([ids[:, 1:], torch.full((2, 1), 50)], dim=1)
    return place_blocks(targets, model.segment(ids), SIZE, RECIPE, np.random.default_rng(3))


def clean_rows(model: Blt, ids: Tensor) -> CleanRows:
    decoder, patches = model.decoder, model.segment(ids)
    states, latents = model.encode(ids, patches)
    return decoder.run_clean(decoder.rows(ids, states), decoder.latent_kv(latents), patches.latent_index)[1]


def drafts(model: Blt, ids: Tensor, sites: BlockSites) -> Tensor:
    return own_drafts(model.decoder, ids, clean_rows(model, ids), sites)


@torch.no_grad()
def greedy(model: Blt, prefix: list[int], latent: int) -> list[int]:
    """``SIZE`` bytes; the last byte of the prefix and all drafted ones read one latent."""
    tokens = list(prefix)
    index = model.segment(torch.tensor([prefix])).latent_index[0, :-1].tolist()
    for _ in range(SIZE):
        stale = [*index, *[latent] * (len(tokens) - len(index))]
        logits = model(torch.tensor([tokens]), latent_index=torch.tensor([stale]))[0]
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[-SIZE:]


def test_drafts_equal_decoding_whole_sequences_step_by_step(tiny_model: Blt) -> None:
    ids = windows()
    sites = sites_of(tiny_model, ids)
    found = drafts(tiny_model, ids, sites)
    assert found.shape == sites.content.shape == (2, 9, SIZE)
    for row in range(2):
        for block, start in enumerate(sites.starts[row].tolist()):
            expected = greedy(tiny_model, ids[row, :start].tolist(), int(sites.latent_index[row, block]))
            assert found[row, block].tolist() == expected, (row, block)
    starts = sites.starts.flatten().tolist()
    assert min(starts) < 12, "a block whose window reaches to the beginning"
    assert max(starts) > 30, "a block whose window does not"
    assert len({tuple(block) for block in found.flatten(0, 1).tolist()}) > 9, "not all the same"
    # Drafts are not the text, or nothing would be distilled.
    assert float((found == sites.content).float().mean()) < 0.5


def test_drafts_do_not_know_the_text_from_the_block_on(tiny_model: Blt) -> None:
    ids = windows()
    sites = sites_of(tiny_model, ids)
    before = drafts(tiny_model, ids, sites)
    for block in range(sites.starts.shape[1]):
        other = windows(seed=1)
        for row in range(2):
            start = int(sites.starts[row, block])
            other[row, :start] = ids[row, :start]
            # The latent that is closed before the block is the same one, whatever follows.
            assert int(tiny_model.segment(other).latent_index[row, start - 1]) == int(sites.latent_index[row, block])
        assert torch.equal(drafts(tiny_model, other, sites)[:, block], before[:, block])


def test_drafts_know_the_text_before_the_block(tiny_model: Blt) -> None:
    ids = windows()
    sites = sites_of(tiny_model, ids)
    before = drafts(tiny_model, ids, sites)
    assert not torch.equal(drafts(tiny_model, windows(seed=1), sites), before)


@pytest.fixture
def setting(tiny_model: Blt) -> tuple[Tensor, CleanRows, BlockSites]:
    """Clean text, its rows, and blocks: the first of each row begins past the end of its document, the second runs
    past it."""
    ids = windows()
    sites = sites_of(tiny_model, ids)
    content = sites.content.clone()
    content[:, 0] = IGNORE
    content[:, 1, 2:] = IGNORE
    return ids, clean_rows(tiny_model, ids), dataclasses.replace(sites, content=content)


def test_no_block_is_distilled_when_the_part_is_zero(
    tiny_model: Blt, setting: tuple[Tensor, CleanRows, BlockSites]
) -> None:
    found = distill(tiny_model.decoder, *setting, 0.0, np.random.default_rng(0))
    assert torch.equal(found.content, setting[2].content)


def test_every_block_within_a_document_is_distilled_when_the_part_is_one(
    tiny_model: Blt, setting: tuple[Tensor, CleanRows, BlockSites]
) -> None:
    sites = setting[2]
    found = distill(tiny_model.decoder, *setting, 1.0, np.random.default_rng(0))
    own = own_drafts(tiny_model.decoder, *setting)
    assert (found.content[:, 0] == IGNORE).all()
    assert torch.equal(found.content[:, 1:], own[:, 1:])
    assert torch.equal(found.starts, sites.starts)
    assert torch.equal(found.latent_index, sites.latent_index)


def test_blocks_are_distilled_whole_in_the_given_proportion(
    tiny_model: Blt, setting: tuple[Tensor, CleanRows, BlockSites]
) -> None:
    sites = setting[2]
    own = own_drafts(tiny_model.decoder, *setting)
    random, taken = np.random.default_rng(0), []
    for _ in range(30):
        content = distill(tiny_model.decoder, *setting, 0.3, random).content[:, 1:]
        is_own = (content == own[:, 1:]).all(-1)
        assert (is_own | (content == sites.content[:, 1:]).all(-1)).all()
        taken.append(float(is_own.float().mean()))
    assert sum(taken) / 30 == pytest.approx(0.3, abs=0.07)
    assert min(taken) < max(taken)


def test_no_gradient_flows_through_drafts(tiny_model: Blt, setting: tuple[Tensor, CleanRows, BlockSites]) -> None:
    ids, clean, sites = setting
    learning = [(keys.clone().requires_grad_(), values.clone().requires_grad_()) for keys, values in clean.keys_values]
    clean = CleanRows(clean.latent_kv.clone().requires_grad_(), learning, None)
    assert not own_drafts(tiny_model.decoder, ids, clean, sites).requires_grad
