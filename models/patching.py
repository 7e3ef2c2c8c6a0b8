"""Where patches begin and end, for whole sequences.

A patch is closed by byte i when the rule for byte i+1 opens a new one, which depends on bytes up to i only:

    closes(i) = (i == 0) or ends(i) or (the patch has max_patch_length bytes)

ends(i) is, by the mode: H_i > threshold (entropy, arXiv 2412.09871); byte i is space-like and byte i-1 is not, or it is
a special token (space, ibid. section 2.2 and arXiv 2404.14408); never (static).

`fastblt.runtime.sequence.session` applies the same rule one byte at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastblt.models.config import PatchingConfig
from fastblt.models.tokens import BYTE_OFFSET, SPACE_LIKE


def space_ends(ids: Tensor) -> Tensor:
    """Where the mode ``space`` ends a patch: bool, like ``ids`` [batch, length]."""
    like = torch.tensor(SPACE_LIKE, device=ids.device)[ids]
    ends = ids < BYTE_OFFSET
    ends[:, 1:] |= like[:, 1:] & ~like[:, :-1]
    return ends


def closes_patch(ends: Tensor, config: PatchingConfig) -> Tensor:
    """Which positions close their patch.

    Args:
        ends: float [batch, length], entropies in nats of the token after each position; or bool, where another rule
            than the entropy's ends a patch.
        config: threshold (strict >) and longest patch.

    Returns:
        bool [batch, length].
    """
    closes = ends.clone() if ends.dtype == torch.bool else ends > config.threshold
    closes[:, 0] = True
    if config.max_patch_length is None:
        return closes
    position = torch.arange(closes.shape[1], device=closes.device).expand_as(closes)
    starts = torch.zeros_like(position)
    starts[:, 1:] = torch.where(closes[:, :-1], position[:, 1:], 0)
    within = position - starts.cummax(1).values
    return closes | (within % config.max_patch_length == config.max_patch_length - 1)


@dataclass(frozen=True)
class Patches:
    """Patches of a batch of sequences; rows are padded to the largest number of patches."""

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
        """Positions of each patch, int64 [batch, patches, longest], and the bool mask of the real ones."""
        longest = int(self.lengths.max())
        offset = torch.arange(longest, device=self.starts.device)
        valid = offset < self.lengths.unsqueeze(-1)
        positions = (self.starts.unsqueeze(-1) + offset).clamp(max=self.closes.shape[1] - 1)
        return positions, valid


def find_patches(closes: Tensor, pad_to: int = 1) -> Patches:
    """Patches from closing positions (the last one of a sequence may be open).

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
