"""Computes rows over whole sequences with the eager model, without any cache: what sessions with blocks must equal."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fastblt.models.blt import Blt
from fastblt.models.decoder import BlockRows
from fastblt.models.patcher import entropy

Logits = NDArray[np.float32]
SIZE = 4


def is_tie(model: Blt, tokens: list[int]) -> bool:
    """Whether an entropy is the threshold but for rounding, so that a boundary may be here or not."""
    entropies = entropy(model.patcher(torch.tensor([tokens])))
    return float((entropies - model.config.patching.threshold).abs().min()) < 1e-5


@torch.inference_mode()
def whole(model: Blt, tokens: list[int], block: list[int], latent: str) -> tuple[Logits, Logits]:
    """Rows of the tokens and of a block after them. ``stale``: the last token and the block read what was closed
    before the last token; ``partial``: the block reads the latent of a sequence whose last patch ends here."""
    ids = torch.tensor([tokens])
    patches = model.segment(ids)
    index = patches.latent_index.clone()
    if latent == "stale":
        index[0, -1] = index[0, -2]
    reads = patches.starts.shape[1] - 1 if latent == "partial" else int(index[0, -1])
    rows = BlockRows(torch.tensor([[block]]), torch.tensor([[len(tokens)]]), torch.tensor([[reads]]))
    clean, masked = model(ids, patches, rows, index)
    assert masked is not None
    return clean[0].numpy(), masked[0].numpy()
