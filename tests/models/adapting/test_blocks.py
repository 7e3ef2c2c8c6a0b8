"""Blocks of a step: what they read, what they contain, and what their bytes weigh."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from fastblt.models.adapting.blocks import FIRST_START, Draws, draft_loss, draw, hide, place
from fastblt.models.adapting.drafts import own_drafts
from fastblt.models.adapting.frozen import mean_states, run_frozen
from fastblt.models.adapting.recipe import AdaptConfig
from fastblt.models.blt import Blt
from fastblt.models.tokens import BOS_ID, EOS_ID, MASK_ID
from fastblt.models.training.batches import IGNORE

CONFIG = AdaptConfig(batch=3, window=48, block_size=4, blocks=64, position_decay=2.0)


def windows() -> tuple[Tensor, Tensor]:
    ids = torch.randint(4, 260, (3, 49), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = BOS_ID
    ids[2, 30] = EOS_ID
    targets = ids[:, 1:].clone()
    ids[2, 31:], targets[2, 30:] = 0, IGNORE
    return ids[:, :48], targets


def draws(config: AdaptConfig = CONFIG) -> Draws:
    return draw(config, [np.random.default_rng([1, window]) for window in range(3)])


def test_windows_draw_what_they_draw_alone() -> None:
    alone = draw(CONFIG, [np.random.default_rng([1, 2])])
    for field in dataclasses.fields(Draws):
        assert torch.equal(getattr(draws(), field.name)[2:], getattr(alone, field.name))


def test_blocks_read_the_latent_that_is_known_where_they_are_drafted(tiny_encoder_model: Blt) -> None:
    ids, targets = windows()
    patches = tiny_encoder_model.segment(ids)
    found = draws()
    sites = place(found, targets, patches, 4)
    assert int(sites.starts.min()) >= FIRST_START
    for row in range(3):
        for block, start in enumerate(sites.starts[row].tolist()):
            known = start - 1 if found.anchored[row, block] else start
            closed = int(patches.closes[row, :known].sum())
            assert int(sites.latent_index[row, block]) == closed - 1
            assert sites.content[row, block].tolist() == targets[row, start - 1 : start + 3].tolist()
            if not found.mid_patch[row, block]:
                assert bool(patches.closes[row, start - 1]) or start in (FIRST_START, 44)


def test_bytes_are_hidden_and_weighed(tiny_encoder_model: Blt) -> None:
    ids, targets = windows()
    found = draws()
    sites = place(found, targets, tiny_encoder_model.segment(ids), 4)
    hidden = hide(found, sites, ids, 2.0)
    masked, true = found.hidden, sites.content
    assert torch.equal(hidden.blocks.ids == MASK_ID, masked | (true == IGNORE))
    assert torch.equal(hidden.targets[..., 1:], torch.where(masked, true, IGNORE))
    assert torch.equal(hidden.targets[..., 0] == IGNORE, ~found.anchored | (true[..., 0] == IGNORE))
    assert torch.equal(hidden.anchors.ids, ids.gather(1, sites.starts - 1))
    decay = torch.exp(-torch.arange(4) / 2.0) / torch.exp(-torch.arange(4) / 2.0).sum()
    torch.testing.assert_close(hidden.weights[..., 1:] * found.rate.unsqueeze(-1), decay.expand(3, 12, 4))
    # The logits of one byte certain and the others impossible: the loss counts the wrong ones by their weights.
    logits = torch.zeros(3, 12, 5, 260)
    uniform = draft_loss(logits, hidden.targets, hidden.weights)
    expected = np.log(260) * float(hidden.weights[hidden.targets != IGNORE].sum()) / 36
    assert float(uniform) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("document_masks", [False, True])
def test_own_drafts_are_those_of_the_model(tiny_encoder_model: Blt, document_masks: bool) -> None:
    """Step by step over whole sequences: every drafted byte is encoded, and all read the block's latent."""
    model = Blt(dataclasses.replace(tiny_encoder_model.config, document_masks=document_masks)).eval()
    model.load_state_dict(tiny_encoder_model.state_dict())
    ids, targets = windows()
    patches = model.segment(ids)
    sites = place(draws(), targets, patches, 4)
    found = own_drafts(model, run_frozen(model, ids), sites)
    for row, block in ((0, 0), (0, 5), (1, 3), (1, 11), (2, 7)):
        start, latent = int(sites.starts[row, block]), int(sites.latent_index[row, block])
        if start > 30 and row == 2:
            continue  # past the end of the document
        tokens = ids[row : row + 1, :start]
        latents = model.encode(ids, patches)[1][row : row + 1]
        index = patches.latent_index[row : row + 1, : start - 1]
        for step in range(4):
            reads = torch.cat([index, torch.full((1, 1 + step), latent)], dim=1)
            seen = torch.zeros_like(tokens)
            states = model.encoder.states(tokens, seen if document_masks else None)
            logits, _ = model.decoder(states, latents, reads, None, seen if document_masks else None)
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
        assert found[row, block].tolist() == tokens[0, start:].tolist()


def test_rows_begin_as_what_the_decoder_reads_on_average(tiny_encoder_model: Blt) -> None:
    ids, _ = windows()
    before = tiny_encoder_model.encoder.tok_embeddings.weight
    frozen = run_frozen(tiny_encoder_model, ids)
    found = mean_states(frozen, 260, before)
    torch.testing.assert_close(found[BOS_ID], frozen.states[:, 0].mean(0))
    absent = next(i for i in range(260) if i not in ids)
    assert torch.equal(found[absent], before[absent])
