"""Chooses blocks and hides their bytes.

Every window has random numbers of its own, a function of (seed, step, window), which do not depend on the windows
beside it: a step is the same however many processes and pieces share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastblt.models.adapting.recipe import AdaptConfig
from fastblt.models.decoder import BlockRows
from fastblt.models.draft_decoder import Anchors
from fastblt.models.patching import Patches
from fastblt.models.tokens import MASK_ID
from fastblt.models.training.batches import IGNORE, BlockSites, place_weights

FIRST_START = 2
"""First position of a block: an anchor before it, and a token before that, whose latent both read."""


@dataclass(frozen=True)
class Draws:
    """Holds the random choices about the blocks of a batch of windows."""

    anywhere: Tensor
    """int64 [batch, blocks]: a position, from `FIRST_START` on."""
    mid_patch: Tensor
    """bool [batch, blocks]: the block begins there; otherwise with the patch after it."""
    anchored: Tensor
    """bool [batch, blocks]: the block follows a row of the draft decoder, otherwise one of the decoder."""
    distilled: Tensor
    """bool [batch, blocks]: the block contains the model's own draft."""
    rate: Tensor
    """float [batch, blocks]: probability that a byte is hidden."""
    hidden: Tensor
    """bool [batch, blocks, size]."""

    def to(self, device: torch.device) -> Draws:
        """Return them on a device."""
        return Draws(*(getattr(self, field.name).to(device) for field in fields(self)))


def draw(config: AdaptConfig, generators: Sequence[np.random.Generator]) -> Draws:
    """Make the random choices about blocks, one generator for each window."""
    each = [_draw_window(config, rng) for rng in generators]
    return Draws(*(torch.from_numpy(np.stack(values)) for values in zip(*each, strict=True)))


def _draw_window(config: AdaptConfig, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    count, size = config.blocks_per_window, config.block_size
    # Stratified over [0.1, 1]: each window has small and large rates.
    strata = (rng.permutation(count) + rng.random(count)) / count
    rate = np.where(rng.random(count) < config.fully_masked, 1.0, 0.1 + 0.9 * strata).astype(np.float32)
    return (
        rng.integers(FIRST_START, config.window - size + 1, size=count),
        rng.random(count) < config.mid_patch,
        rng.random(count) < config.anchored,
        rng.random(count) < config.distilled,
        rate,
        rng.random((count, size)) < rate[:, None],
    )


def place(draws: Draws, targets: Tensor, patches: Patches, size: int) -> BlockSites:
    """Return where blocks are, what they contain, and which latent they read.

    A block that follows an anchor reads what is known before the anchor is scored: the last latent that is closed one
    position earlier. All tensors are on one device.

    Args:
        draws: random choices.
        targets: int64 [batch, length], the token after each position.
        patches: of the windows.
        size: bytes of a block.
    """
    last = targets.shape[1] - size
    following = patches.latent_index.gather(1, draws.anywhere - 1) + 1
    at_patch = patches.starts.gather(1, following.clamp(max=patches.starts.shape[1] - 1)).clamp(FIRST_START, last)
    starts = torch.where(draws.mid_patch, draws.anywhere, at_patch)
    # ids shifted by one are the targets, so byte p of the window is targets[p - 1].
    positions = (starts.unsqueeze(-1) + torch.arange(size, device=starts.device)).flatten(1)
    content = targets.gather(1, positions - 1).unflatten(1, (-1, size))
    return BlockSites(starts, patches.latent_index.gather(1, starts - 1 - draws.anchored.long()), content)


@dataclass(frozen=True)
class HiddenBlocks:
    """Holds the rows of a step for the draft decoder, and what they should predict.

    Each block has 1 + size rows: an anchor, which is the byte before it, and its own.
    """

    blocks: BlockRows
    anchors: Anchors
    targets: Tensor
    """int64 [batch, blocks, 1 + size], IGNORE where there is none."""
    weights: Tensor
    """float [batch, blocks, 1 + size]."""


def hide(draws: Draws, sites: BlockSites, ids: Tensor, position_decay: float) -> HiddenBlocks:
    """Hide bytes of the blocks.

    An anchor predicts the block's first byte, and weighs as much as that. Without it the weights of a block's hidden
    bytes add up to 1 on average.

    Args:
        draws: random choices.
        sites: where blocks are, and what they contain.
        ids: int64 [batch, length], the windows.
        position_decay: see `AdaptConfig`.
    """
    true = sites.content
    shown = torch.where(draws.hidden | (true == IGNORE), MASK_ID, true)
    first = torch.where(draws.anchored, true[..., 0], IGNORE).unsqueeze(-1)
    targets = torch.cat([first, torch.where(draws.hidden, true, IGNORE)], -1)
    size = true.shape[-1]
    decay = place_weights(size, position_decay).to(ids.device) / size
    weights = torch.cat([decay[:1].expand_as(first), decay / draws.rate.unsqueeze(-1)], -1)
    anchors = Anchors(ids.gather(1, sites.starts - 1), draws.anchored)
    return HiddenBlocks(BlockRows(shown, sites.starts, sites.latent_index), anchors, targets, weights)


def draft_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over blocks of the weighted sum of cross-entropies of a block's hidden bytes, in nats.

    The number of blocks does not depend on the text, so that the loss of a step is the mean of those of its parts.

    Args:
        logits: [batch, blocks, 1 + size, vocab].
        targets: int64 [batch, blocks, 1 + size].
        weights: float [batch, blocks, 1 + size].
    """
    each = F.cross_entropy(logits.flatten(0, 2).float(), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return (each * weights.flatten()).sum() / (targets.shape[0] * targets.shape[1])
