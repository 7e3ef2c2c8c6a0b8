"""Computes the BLT-D objective: next-byte loss on clean rows plus 1/t-weighted loss on masked block bytes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastblt.models.training.batches import IGNORE


def clean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean next-byte cross-entropy in nats; logits [batch, length, vocab], targets [batch, length]."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE)


def masked_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over *all* block cells of weight * cross-entropy, zero where a cell is not masked.

    With weight 1/t the expectation over masks is the mean cross-entropy of a masked byte, in nats.

    Args:
        logits: [batch, cells, vocab].
        targets: int64 [batch, cells], IGNORE where a cell is not masked.
        weights: float [batch, cells], 1/t.
    """
    each = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return (each * weights.flatten()).mean()
