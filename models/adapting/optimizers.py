"""Optimizes a draft decoder, and trades its memory for time."""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from fastblt.models.adapting.recipe import AdaptConfig
from fastblt.models.draft_decoder import DraftDecoder
from fastblt.models.training.optimizer import build_optimizers


def build_draft_optimizers(draft: DraftDecoder, config: AdaptConfig) -> list[torch.optim.Optimizer]:
    """Return AdamW for low-rank factors, table and norms; with full matrices, Muon for these."""
    if config.rank is None:
        return build_optimizers(draft, config.matrix_lr, config.learning_rate, config.weight_decay)
    adamw = torch.optim.AdamW(
        draft.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=config.weight_decay
    )
    for group in adamw.param_groups:
        group["peak_lr"] = group["lr"]
    return [adamw]


def checkpoint_activations(draft: DraftDecoder) -> None:
    """Let layers keep their inputs only, and compute everything else again in the backward pass."""
    for layer in [*draft.cross_layers, *draft.layers]:
        setattr(layer, "forward", partial(checkpoint, layer.forward, use_reentrant=False))  # noqa: B010
