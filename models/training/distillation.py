"""Fills blocks with the model's own greedy draft: distills the causal rows into the block rows, by sequence.

A block is denoised without knowing which of several likely continuations was meant, so a model trained on *text*
blurs them in one step. Verification, however, compares with the model's own greedy bytes, which are one definite
continuation. Trained on those (as Kim and Rush, 2016, do for translation models that are not autoregressive), block
rows agree with the causal rows more often. The draft is BLT-S's: causal decoder rows that all read the block's
latent.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from fastblt.models.decoder import CleanRows, Decoder
from fastblt.models.layers import Attend, attention, rope_table
from fastblt.models.training.batches import IGNORE, BlockSites


def distill(
    decoder: Decoder,
    ids: Tensor,
    clean: CleanRows,
    sites: BlockSites,
    part: float,
    rng: np.random.Generator,
) -> BlockSites:
    """Replace the bytes of a random part of the blocks by the model's own draft.

    Args:
        decoder: with an embedding of its own (BLT-D).
        ids: int64 [batch, length], clean text.
        clean: what the decoder's clean rows of this text have left; no gradient flows back through it.
        sites: blocks of the text; those that begin past the end of a document are left unchanged.
        part: share of the blocks, in [0, 1].
        rng: source of randomness.
    """
    own = own_drafts(decoder, ids, clean, sites).to(sites.content.device)
    chosen = torch.from_numpy(rng.random(sites.starts.shape) < part) & (sites.content[..., 0] != IGNORE)
    return dataclasses.replace(sites, content=torch.where(chosen.unsqueeze(-1), own, sites.content))


@torch.no_grad()
def own_drafts(decoder: Decoder, ids: Tensor, clean: CleanRows, sites: BlockSites) -> Tensor:
    """Return the greedy bytes from the first position of every block on, int64 [batch, blocks, size]."""
    starts = sites.starts.to(ids.device)
    index = sites.latent_index.to(ids.device)
    layers = [Rollout(keys, values) for keys, values in clean.keys_values]
    # The row before a block runs again as the first row of its rollout: rollouts see the clean bytes before it.
    token = ids.gather(1, starts - 1)
    drafted = []
    for step in range(sites.content.shape[2]):
        positions = starts - 1 + step
        mask = rollout_mask(starts - 1, positions, clean.length, decoder.config.window, step + 1)
        rope = rope_table(positions, decoder.config.head_dim, decoder.config.rope_theta)
        attends: list[Attend] = [layer.step(mask) for layer in layers]
        token = decoder.run(decoder.rows(token, None), clean.latent_kv, index, rope, attends).argmax(-1)
        drafted.append(token)
    return torch.stack(drafted, dim=-1)


class Rollout:
    """Holds keys and values of one layer: those of the clean rows, then one row of every block per step.

    Args:
        keys: of the clean rows, [batch, length, heads, head_dim], rotated.
        values: like ``keys``.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._keys, self._values = [keys], [values]

    def step(self, mask: Tensor) -> Attend:
        """Return an ``attend`` for one more row of every block; ``mask`` as `rollout_mask` returns it."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._keys.append(k)
            self._values.append(v)
            return attention(q, torch.cat(self._keys, dim=1), torch.cat(self._values, dim=1), mask)

        return attend


def rollout_mask(
    first: Tensor, positions: Tensor, length: int, window: int | None, steps: int, visible_from: Tensor | None = None
) -> Tensor:
    """Return what the rows of one step see: clean rows before ``first``, and the rows of their own block so far.

    Args:
        first: int64 [batch, blocks], position of the first row of each rollout.
        positions: int64 [batch, blocks], of this step's rows.
        length: clean rows.
        window: of the stack; None: no limit.
        steps: rows of each rollout, this step's included.
        visible_from: int64 [batch, blocks], first clean row of each block's document; None: 0.

    Returns:
        bool [batch, 1, blocks, length + blocks * steps].
    """
    batch, blocks = first.shape
    key = torch.arange(length, device=first.device)
    seen = key < first.unsqueeze(-1)
    if window is not None:
        seen = seen & (key > positions.unsqueeze(-1) - window)
    if visible_from is not None:
        seen = seen & (key >= visible_from.unsqueeze(-1))
    own = torch.eye(blocks, dtype=torch.bool, device=first.device).repeat(1, steps).expand(batch, -1, -1)
    return torch.cat([seen, own], dim=-1).unsqueeze(1)
