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

from fastblt.models.decoder import Decoder
from fastblt.models.layers import Attend, attention, causal_attend, rope_table
from fastblt.models.training.batches import IGNORE, BlockSites


def distill(
    decoder: Decoder,
    ids: Tensor,
    latents: Tensor,
    latent_index: Tensor,
    sites: BlockSites,
    part: float,
    rng: np.random.Generator,
) -> BlockSites:
    """Replace the bytes of a random part of the blocks by the model's own draft.

    Args:
        decoder: with an embedding of its own (BLT-D).
        ids: int64 [batch, length], clean text.
        latents: [batch, patches, global dim]; no gradient flows back through them.
        latent_index: int64 [batch, length], the latent that each clean row reads.
        sites: blocks of the text; those that begin past the end of a document are left unchanged.
        part: share of the blocks, in [0, 1].
        rng: source of randomness.
    """
    own = own_drafts(decoder, ids, latents, latent_index.to(ids.device), sites).to(sites.content.device)
    chosen = torch.from_numpy(rng.random(sites.starts.shape) < part) & (sites.content[..., 0] != IGNORE)
    return dataclasses.replace(sites, content=torch.where(chosen.unsqueeze(-1), own, sites.content))


@torch.no_grad()
def own_drafts(decoder: Decoder, ids: Tensor, latents: Tensor, latent_index: Tensor, sites: BlockSites) -> Tensor:
    """Return the greedy bytes from the first position of every block on, int64 [batch, blocks, size]."""
    length, window = ids.shape[1], decoder.config.window
    starts = sites.starts.to(ids.device)
    index = sites.latent_index.to(ids.device)
    latent_kv = decoder.latent_kv(latents)
    layers = [_Rollout(causal_attend(length, window, ids.device)) for _ in decoder.layers]
    clean_rope = rope_table(torch.arange(length, device=ids.device), decoder.config.head_dim, decoder.config.rope_theta)
    decoder.run(decoder.rows(ids, None), latent_kv, latent_index, clean_rope, [layer.clean for layer in layers])
    # The row before a block runs again as the first row of its rollout: rollouts see the clean bytes before it.
    token = ids.gather(1, starts - 1)
    drafted = []
    for step in range(sites.content.shape[2]):
        positions = starts - 1 + step
        mask = _rollout_mask(starts - 1, positions, length, window, step + 1)
        rope = rope_table(positions, decoder.config.head_dim, decoder.config.rope_theta)
        attends: list[Attend] = [layer.step(mask) for layer in layers]
        token = decoder.run(decoder.rows(token, None), latent_kv, index, rope, attends).argmax(-1)
        drafted.append(token)
    return torch.stack(drafted, dim=-1)


class _Rollout:
    """Holds keys and values of one layer: those of the clean rows, then one row of every block per step."""

    def __init__(self, clean: Attend) -> None:
        self._clean = clean
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def clean(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._keys, self._values = [k], [v]
        return self._clean(q, k, v)

    def step(self, mask: Tensor) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._keys.append(k)
            self._values.append(v)
            return attention(q, torch.cat(self._keys, dim=1), torch.cat(self._values, dim=1), mask)

        return attend


def _rollout_mask(first: Tensor, positions: Tensor, length: int, window: int | None, steps: int) -> Tensor:
    """Return bool [batch, 1, blocks, length + blocks * steps]: clean keys before ``first`` and the block's rows."""
    batch, blocks = first.shape
    key = torch.arange(length, device=first.device)
    seen = key < first.unsqueeze(-1)
    if window is not None:
        seen = seen & (key > positions.unsqueeze(-1) - window)
    own = torch.eye(blocks, dtype=torch.bool, device=first.device).repeat(1, steps).expand(batch, -1, -1)
    return torch.cat([seen, own], dim=-1).unsqueeze(1)
