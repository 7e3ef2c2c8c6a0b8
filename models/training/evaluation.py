"""Measures held-out quality during training: bits per byte, masked accuracy, teacher-forced draft acceptance.

Teacher-forced means that every draft follows true held-out text, so that looping text cannot raise the rates.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.models.decoder import BlockRows
from fastblt.models.tokens import MASK_ID
from fastblt.models.training.batches import IGNORE, sample_windows
from fastblt.models.training.corpus import Split
from fastblt.models.training.objective import clean_loss

_CONTEXT = 192


@torch.no_grad()
def evaluate(model: Blt, text: Split, *, windows: int = 64, length: int = 512, seed: int = 0) -> dict[str, float]:
    """Measure quality on held-out text, on the same windows at every call.

    Returns:
        ``bits_per_byte``, ``masked_accuracy_t50`` and ``_t100`` (B = the trained block), ``acceptance_s4`` and
        ``acceptance_s8`` (BLT-S), ``acceptance_dv`` (one diffusion step, trained block), ``bytes_per_patch``.
    """
    rng = np.random.default_rng(seed)
    ids, targets = sample_windows(text, windows, length, rng)
    nats, patch_count = 0.0, 0
    for part, wanted in zip(ids.split(8), targets.split(8), strict=True):
        patches = model.segment(part)
        patch_count += int(patches.closes.sum())
        nats += float(clean_loss(model(part, patches)[0], wanted)) * int((wanted != IGNORE).sum())
    result = {
        "bits_per_byte": nats / int((targets != IGNORE).sum()) / math.log(2),
        "bytes_per_patch": ids.numel() / patch_count,
    }
    prefix = ids[(ids[:, : _CONTEXT + 32] > 2).sum(1) >= _CONTEXT + 31][:, :_CONTEXT]
    if len(prefix):  # documents may all be too short for a draft after true text
        result |= draft_acceptance(model, prefix, 8)
    if model.config.block_size:
        result |= block_quality(model, ids[:, : _CONTEXT + model.config.block_size], rng)
    return result


def draft_acceptance(model: Blt, prefix: Tensor, k: int) -> dict[str, float]:
    """Return the part of BLT-S drafts that verification accepts, for drafts of ``k`` and ``k // 2`` bytes.

    Args:
        model: the model.
        prefix: int64 [anchors, length], true text.
        k: longest draft.
    """
    length = prefix.shape[1]
    known = model.segment(prefix[:, :-1])
    latents = model.encode(prefix[:, :-1], known)[1]
    last = known.latent_index[:, -1:]
    ids = prefix
    for _ in range(k):
        index = torch.cat([known.latent_index, last.expand(-1, ids.shape[1] - length + 1)], dim=1)
        states = model.encoder(ids, model.segment(ids))[0] if model.config.decoder_reads_states else None
        logits, _ = model.decoder(model.decoder.rows(ids, states), latents, index)
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    accepted = count_accepted(model, ids, length)
    return {
        f"acceptance_s{k // 2}": float(accepted.clamp(max=k // 2).float().mean()) / (k // 2),
        f"acceptance_s{k}": float(accepted.float().mean()) / k,
    }


def count_accepted(model: Blt, ids: Tensor, length: int) -> Tensor:
    """Count the bytes after the first ``length`` that equal the model's own greedy bytes, int64 [anchors]."""
    greedy = model(ids[:, :-1])[0].argmax(-1)[:, length - 1 :]
    return (greedy == ids[:, length:]).long().cumprod(1).sum(1)


def block_quality(model: Blt, ids: Tensor, rng: np.random.Generator) -> dict[str, float]:
    """Return the masked accuracy of the last bytes of ``ids`` at t = 0.5 and 1, and one-step BLT-DV acceptance."""
    size = model.config.block_size
    length = ids.shape[1] - size
    prefix, true = ids[:, :length], ids[:, length:]
    patches = model.segment(prefix)
    starts = torch.full((ids.shape[0], 1), length)
    result = {}
    for rate in (0.5, 1.0):
        hidden = torch.from_numpy(rng.random(true.shape) < rate)
        shown = torch.where(hidden, MASK_ID, true)
        rows = BlockRows(shown.unsqueeze(1), starts, patches.latent_index[:, -1:])
        guess = model(prefix, patches, rows)[1].argmax(-1)
        result[f"masked_accuracy_t{int(rate * 100)}"] = float((guess == true)[hidden].float().mean())
    accepted = count_accepted(model, torch.cat([prefix, guess], dim=1), length)
    return result | {"acceptance_dv": float(accepted.float().mean()) / size}
