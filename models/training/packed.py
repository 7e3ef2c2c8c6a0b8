"""Runs the global transformer over the patches of a batch without the padding between its sequences.

Sequences of equally many bytes have different numbers of patches. Padded to the longest, a fifth of the rows of the
largest part of the model would be computed for nothing. Here the patches of all sequences are rows of one sequence;
only attention, which is a small part of the work, sees them padded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.models.layers import Attend, causal_attend, rope_table
from fastblt.models.patching import Patches


@dataclass(frozen=True)
class PackedPatches:
    """Names the patches of a batch by one index: those of the first sequence, then those of the second, ..."""

    positions: Tensor
    """int64 [1, patches, longest]: bytes of each patch in the batch of all bytes, [batch * length] of them."""
    valid: Tensor
    """bool, like ``positions``; False beyond the end of a shorter patch."""
    place: Tensor
    """int64 [patches]: where each patch is in [batch * padded patches]."""
    first: Tensor
    """int64 [batch, 1]: index of the first patch of each sequence."""
    padded: int
    """Patches of a sequence when padded to the longest."""

    @classmethod
    def of(cls, patches: Patches) -> PackedPatches:
        """Pack the patches of a batch."""
        members, valid = patches.members
        batch, padded = patches.starts.shape
        has_bytes = patches.lengths.flatten() > 0
        place = has_bytes.nonzero().squeeze(1)
        offset = torch.arange(batch, device=place.device).view(-1, 1, 1) * patches.closes.shape[1]
        counts = has_bytes.view(batch, padded).sum(1)
        return cls(
            (members + offset).flatten(0, 1)[place].unsqueeze(0),
            valid.flatten(0, 1)[place].unsqueeze(0),
            place,
            (counts.cumsum(0) - counts).unsqueeze(1),
            padded,
        )


def encode_packed(
    model: Blt, ids: Tensor, patches: PackedPatches, visible_from: Tensor | None = None, seen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return byte states [batch, length, dim] and the latents of all patches, [1, patches, global dim].

    Args:
        model: the model.
        ids: int64 [batch, length].
        patches: of these sequences.
        visible_from: int64 [batch, length], first position that each byte may see; None: 0.
        seen: int64 [batch, padded patches], first patch that each patch may see; None: 0.
    """
    states = model.encoder.states(ids, visible_from)
    embeddings = model.encoder.pool(states.flatten(0, 1).unsqueeze(0), patches.positions, patches.valid)
    transformer = model.global_transformer
    config = transformer.config
    rope = rope_table(patches.place % patches.padded, config.head_dim, config.rope_theta)
    attend = _padded_attend(patches, causal_attend(patches.padded, config.window, ids.device, seen), ids.shape[0])
    x = transformer.input_projection(embeddings)
    for layer in transformer.layers:
        x = layer(x, rope, attend)
    return states, x


def _padded_attend(patches: PackedPatches, attend: Attend, batch: int) -> Attend:
    """Return an ``attend`` for packed rows that pads them for another one."""

    def padded(x: Tensor) -> Tensor:
        rows = x.new_zeros(batch * patches.padded, *x.shape[2:])
        return rows.index_copy(0, patches.place, x[0]).view(batch, patches.padded, *x.shape[2:])

    def attend_packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = attend(padded(q), padded(k), padded(v))
        return found.flatten(0, 1).index_select(0, patches.place).unsqueeze(0)

    return attend_packed
