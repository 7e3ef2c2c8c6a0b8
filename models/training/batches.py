"""Makes training batches: windows of text, corrupted blocks, stale stretches; a function of (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastblt.models.decoder import BlockRows
from fastblt.models.patching import Patches
from fastblt.models.tokens import BOE_ID, BOS_ID, BYTE_OFFSET, EOS_ID, MASK_ID
from fastblt.models.training.corpus import Split
from fastblt.models.training.recipe import TrainConfig

IGNORE = -100
"""Target of positions that have none."""


Array = NDArray[np.int64]


def sample_windows(text: Split, count: int, length: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Read windows at random places, see `place_windows` and `read_windows`."""
    return read_windows(text, *place_windows(text, count, length, rng), length)


def place_windows(text: Split, count: int, length: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Choose windows that begin at random bytes of random documents, chosen in proportion to their length.

    Args:
        text: documents.
        count: windows.
        length: tokens of a window.
        rng: source of randomness.

    Returns:
        Index of each window's first byte, int64 [count], and its bytes, at most ``length``, int64 [count].
    """
    ends = np.cumsum(text.lengths)
    at = rng.integers(0, ends[-1], size=count)
    document = np.searchsorted(ends, at, side="right")
    lengths = text.lengths[document]
    # A window that would run past the end starts earlier, if the document is long enough.
    within = np.maximum(0, np.minimum(at - (ends[document] - lengths), lengths + 1 - length))
    return text.offsets[document] + within, np.minimum(length, lengths - within)


def read_windows(text: Split, starts: Array, sizes: Array, length: int) -> tuple[Tensor, Tensor]:
    """Read windows: BOS, then bytes; EOS where the document ends.

    Args:
        text: documents.
        starts: from `place_windows`.
        sizes: from `place_windows`.
        length: tokens of a window.

    Returns:
        ids int64 [count, length] and targets int64 [count, length], the token after each position or IGNORE.
    """
    pieces = [text.text[start : start + size] for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)]
    return as_windows(pieces, [len(piece) < length for piece in pieces], length)


def as_windows(pieces: Sequence[NDArray[np.uint8]], ends: Sequence[bool], length: int) -> tuple[Tensor, Tensor]:
    """Return pieces of documents as windows, see `read_windows`.

    Args:
        pieces: bytes, uint8 [n] each, n <= length.
        ends: whether the document ends with each; only shorter ones may.
        length: tokens of a window.
    """
    ids = np.full((len(pieces), length + 1), BOE_ID, dtype=np.int64)
    ids[:, 0] = BOS_ID
    filled = np.array([1 + len(piece) for piece in pieces]) + ends
    for row, piece in enumerate(pieces):
        ids[row, 1 : 1 + len(piece)] = piece.astype(np.int64) + BYTE_OFFSET
        if ends[row]:
            ids[row, 1 + len(piece)] = EOS_ID
    targets = np.where(np.arange(1, length + 1) < filled[:, None], ids[:, 1:], IGNORE)
    return torch.from_numpy(ids[:, :length].copy()), torch.from_numpy(targets)


@dataclass(frozen=True)
class BlockSites:
    """Holds the blocks of a step before anything in them is hidden."""

    starts: Tensor
    """int64 [batch, blocks]: position of each block's first byte."""
    latent_index: Tensor
    """int64 [batch, blocks]: the latent that its rows read, the last one that is closed before it."""
    content: Tensor
    """int64 [batch, blocks, size]: the bytes of the text, IGNORE past the end of the document."""


def place_blocks(
    targets: Tensor, patches: Patches, size: int, config: TrainConfig, rng: np.random.Generator
) -> BlockSites:
    """Choose where blocks begin: at the first byte of a patch, or anywhere (part ``config.mid_patch`` of them).

    Args:
        targets: int64 [batch, length], the token after each position.
        patches: of the windows.
        size: bytes of a block.
        config: number of blocks, and the part that begins anywhere.
        rng: source of randomness.
    """
    batch, length = targets.shape
    count = max(1, config.blocks * length // 256)
    anywhere = torch.from_numpy(rng.integers(1, length - size + 1, size=(batch, count)))
    at_patch = patches.starts.gather(1, patches.latent_index.gather(1, anywhere - 1) + 1).clamp(1, length - size)
    mid = torch.from_numpy(rng.random((batch, count)) < config.mid_patch)
    starts = torch.where(mid, anywhere, at_patch)
    # ids shifted by one are the targets, so byte p of the window is targets[p - 1].
    positions = (starts.unsqueeze(-1) + torch.arange(size)).flatten(1)
    content = targets.gather(1, positions - 1).view(batch, count, size)
    return BlockSites(starts, patches.latent_index.gather(1, starts - 1), content)


def corrupt_blocks(
    sites: BlockSites, config: TrainConfig, rng: np.random.Generator
) -> tuple[BlockRows, Tensor, Tensor]:
    """Hide bytes of blocks.

    Each block has its own mask rate t, stratified over [0.1, 1]; a part of the blocks is masked entirely.

    Returns:
        The rows, their targets int64 [batch, blocks * size] (IGNORE where the byte is not masked), and the
        weights, float [batch, blocks * size]: 1/t, times the weight of the place (``config.position_decay``).
    """
    batch, count, size = sites.content.shape
    rate = _stratified_rates(batch, count, config.fully_masked, rng)
    true = sites.content.flatten(1)
    hidden = torch.from_numpy(rng.random((batch, count * size))) < rate.repeat_interleave(size, 1)
    shown = torch.where(hidden | (true == IGNORE), MASK_ID, true)
    rows = BlockRows(shown.view(batch, count, size), sites.starts, sites.latent_index)
    weights = (1.0 / rate).unsqueeze(-1) * place_weights(size, config.position_decay)
    return rows, torch.where(hidden, true, IGNORE), weights.flatten(1)


def place_weights(size: int, decay: float | None) -> Tensor:
    """Return the weights of the places in a block, float [size], 1 in the mean; see `TrainConfig.position_decay`."""
    if decay is None:
        return torch.ones(size)
    weights = torch.exp(-torch.arange(size) / decay)
    return weights / weights.mean()


def _stratified_rates(batch: int, count: int, fully_masked: float, rng: np.random.Generator) -> Tensor:
    strata = (rng.permuted(np.tile(np.arange(count), (batch, 1)), axis=1) + rng.random((batch, count))) / count
    rate = np.where(rng.random((batch, count)) < fully_masked, 1.0, 0.1 + 0.9 * strata)
    return torch.from_numpy(rate.astype(np.float32))


def stale_latent_index(patches: Patches, config: TrainConfig, rng: np.random.Generator) -> Tensor:
    """Return the latent that each clean row reads; stretches of rows read the latent from before the stretch.

    All bytes of a draft read the last available latent; drafts of a model that was trained on such latents are
    accepted more often.

    Returns:
        int64 [batch, length].
    """
    index = patches.latent_index.clone()
    batch, length = index.shape
    for _ in range(config.stale_segments * length // 256):
        starts = rng.integers(2, max(3, length - 16), size=batch)
        sizes = rng.integers(4, 17, size=batch)
        for row, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            index[row, start : start + size] = patches.latent_index[row, start - 1]
    return index
