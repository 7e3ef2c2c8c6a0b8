"""Runs what is not trained, once a step: patcher, encoder, global transformer, and the decoder's clean rows.

Nothing here has gradients, and modules compute as they do in evaluation.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.models.decoder import CleanRows
from fastblt.models.documents import first_bytes, first_patches
from fastblt.models.patching import Patches


@dataclass(frozen=True)
class Frozen:
    """Holds what the fixed parts of a model compute for a batch of windows."""

    ids: Tensor
    """int64 [batch, length]."""
    patches: Patches
    states: Tensor
    """Byte states, [batch, length, dim]."""
    clean: CleanRows
    encoder_keys_values: list[tuple[Tensor, Tensor]]
    """Keys and values of the encoder's rows in each layer, which those of drafted bytes see."""


def mixed_precision(model: Blt) -> AbstractContextManager[None]:
    """Return a context in which the draft decoder's fp32 weights are applied in bf16 if the fixed parts are bf16."""
    weight = model.decoder.output.weight
    return cast(
        "AbstractContextManager[None]",
        torch.autocast(weight.device.type, torch.bfloat16, enabled=weight.dtype == torch.bfloat16),
    )


@torch.no_grad()
def run_frozen(model: Blt, ids: Tensor) -> Frozen:
    """Run the fixed parts on windows ``ids`` int64 [batch, length], each beginning with BOS."""
    patches = model.segment(ids, pad_to=16)
    masked = model.config.document_masks
    visible_from = first_bytes(F.pad(ids, (0, 1))) if masked else None
    seen = None if visible_from is None else visible_from[:, :-1]
    keys_values: list[tuple[Tensor, Tensor]] = []
    states = model.encoder.states(ids, seen, keys_values)
    pooled = model.encoder.pool(states, *patches.members)
    latents = model.global_transformer(pooled, first_patches(ids, patches) if masked else None)
    _, clean = model.decoder.run_clean(states, model.decoder.latent_kv(latents), patches.latent_index, visible_from)
    return Frozen(ids, patches, states, clean, keys_values)


@torch.no_grad()
def mean_states(frozen: Frozen, vocab: int, before: Tensor) -> Tensor:
    """Return what the decoder reads of each byte on average, [vocab, dim]; bytes that do not occur keep ``before``."""
    flat, states = frozen.ids.flatten(), frozen.states.flatten(0, 1).float()
    total = states.new_zeros(vocab, states.shape[1]).index_add_(0, flat, states)
    count = torch.bincount(flat, minlength=vocab).unsqueeze(1)
    return torch.where(count > 0, total / count.clamp(min=1), before.float())
