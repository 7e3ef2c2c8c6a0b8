"""Fills blocks with the model's own greedy draft, as `fastblt.models.training.distillation` does for BLT-D.

The decoder reads byte states here, so each drafted byte goes through the encoder first: exactly what BLT-S does. All
bytes of a draft read the block's latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastblt.models.adapting.frozen import Frozen
from fastblt.models.blt import Blt
from fastblt.models.config import StackConfig
from fastblt.models.layers import Attend, rope_table
from fastblt.models.training.batches import BlockSites
from fastblt.models.training.distillation import Rollout, rollout_mask


@torch.no_grad()
def own_drafts(model: Blt, frozen: Frozen, sites: BlockSites) -> Tensor:
    """Return the greedy bytes from the first position of every block on, int64 [batch, blocks, size]."""
    encoder, decoder, clean = model.encoder, model.decoder, frozen.clean
    encoder_layers = [Rollout(*each) for each in frozen.encoder_keys_values]
    decoder_layers = [Rollout(*each) for each in clean.keys_values]
    # The row before a block runs again as the first row of its rollout: rollouts see the clean bytes before it.
    first = sites.starts - 1
    seen = None if clean.visible_from is None else clean.visible_from.gather(1, first)
    context = _context(frozen.ids, first, model.config.hash.context)
    drafted = []
    for step in range(sites.content.shape[2]):
        at = _Step(frozen.ids.shape[1], first, first + step, step + 1, seen)
        x = encoder.embed(context[..., -1:].flatten(0, 1), context[..., :-1].flatten(0, 1)).view(*first.shape, -1)
        rope, attends = at.attends(encoder.config, encoder_layers)
        for layer, attend in zip(encoder.layers, attends, strict=True):
            x = layer(x, rope, attend)
        rope, attends = at.attends(decoder.config, decoder_layers)
        token = decoder.run(x, clean.latent_kv, sites.latent_index, rope, attends).argmax(-1)
        drafted.append(token)
        context = torch.cat([context[..., 1:], token.unsqueeze(-1)], dim=-1)
    return torch.stack(drafted, dim=-1)


def _context(ids: Tensor, position: Tensor, count: int) -> Tensor:
    """Return the ``count`` tokens up to each position, 0 before the sequence: int64 [batch, blocks, count]."""
    at = position.unsqueeze(-1) - torch.arange(count - 1, -1, -1, device=ids.device)
    found = ids.gather(1, at.clamp(min=0).flatten(1)).view(at.shape)
    return torch.where(at >= 0, found, 0)


class _Step:
    """Holds where the rows of one step of all drafts are."""

    def __init__(self, length: int, first: Tensor, positions: Tensor, steps: int, seen: Tensor | None) -> None:
        self._length, self._first, self._positions, self._steps, self._seen = length, first, positions, steps, seen

    def attends(self, config: StackConfig, layers: list[Rollout]) -> tuple[Tensor, list[Attend]]:
        """Return the rotations of the rows in a stack, and an ``attend`` for each of its layers."""
        mask = rollout_mask(self._first, self._positions, self._length, config.window, self._steps, self._seen)
        return rope_table(self._positions, config.head_dim, config.rope_theta), [layer.step(mask) for layer in layers]
