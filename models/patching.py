"""Finds where patches begin and end in whole sequences, by the rule of `fastblt.models.patch_rule`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastblt.models.config import PatchingConfig
from fastblt.models.patch_rule import closes_by_rule, ends_by_entropy, ends_by_space, is_full
from fastblt.models.tokens import SPACE_LIKE


def space_ends(ids: Tensor) -> Tensor:
    """Return where the mode ``space`` ends a patch: bool, like ``ids`` [batch, length]."""
    like = torch.tensor(SPACE_LIKE, device=ids.device)[ids]
    before = like.roll(1, dims=1)
    before[:, 0] = False
    found: Tensor = ends_by_space(ids, like, before)
    return found


def closes_patch(ends: Tensor, config: PatchingConfig) -> Tensor:
    """Return which positions close their patch.

    Args:
        ends: float [batch, length], entropies in nats of the token after each position; or bool, where another rule
            than that of entropies ends a patch.
        config: threshold (strict >) and longest patch.

    Returns:
        bool [batch, length].
    """
    by_mode = ends if ends.dtype == torch.bool else ends_by_entropy(ends, config)
    position = torch.arange(ends.shape[1], device=ends.device).expand_as(ends)
    by_rule: Tensor = closes_by_rule(position, by_mode)
    # Counted from the last patch that did not close by its length alone.
    starts = torch.zeros_like(position)
    starts[:, 1:] = torch.where(by_rule[:, :-1], position[:, 1:], 0)
    found: Tensor = by_rule | is_full(position + 1 - starts.cummax(1).values, config)
    return found


@dataclass(frozen=True)
class Patches:
    """Holds the patches of a batch of sequences; rows are padded to the largest number of patches."""

    closes: Tensor
    """bool [batch, length]: the position closes its patch."""
    starts: Tensor
    """int64 [batch, patches]: first position of each patch."""
    lengths: Tensor
    """int64 [batch, patches]: bytes of each patch, 0 where a sequence has fewer patches."""
    latent_index: Tensor
    """int64 [batch, length]: the patch whose latent the position reads, i.e. the last closed one."""

    @property
    def members(self) -> tuple[Tensor, Tensor]:
        """Return the positions of each patch, int64 [batch, patches, longest], and the bool mask of the real ones."""
        longest = int(self.lengths.max())
        offset = torch.arange(longest, device=self.starts.device)
        valid = offset < self.lengths.unsqueeze(-1)
        positions = (self.starts.unsqueeze(-1) + offset).clamp(max=self.closes.shape[1] - 1)
        return positions, valid


def find_patches(closes: Tensor, pad_to: int = 1) -> Patches:
    """Return the patches that closing positions mark off (the last one of a sequence may be open).

    Args:
        closes: bool [batch, length].
        pad_to: the number of patches is rounded up to a multiple of this.
    """
    closed = closes.long().cumsum(1)
    patch_of = closed - closes.long()
    count = -(-(int(patch_of.max()) + 1) // pad_to) * pad_to
    lengths = torch.zeros(closes.shape[0], count, dtype=torch.int64, device=closes.device)
    lengths.scatter_add_(1, patch_of, torch.ones_like(patch_of))
    starts = lengths.cumsum(1) - lengths
    return Patches(closes, starts, lengths, closed - 1)
