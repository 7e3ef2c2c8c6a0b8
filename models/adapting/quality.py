"""Measures drafts on held-out text; every draft follows true text, so that looping text cannot raise the rates."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastblt.models.adapting.frozen import mixed_precision, run_frozen
from fastblt.models.blt import Blt
from fastblt.models.decoder import BlockRows
from fastblt.models.draft_decoder import Anchors
from fastblt.models.tokens import BYTE_OFFSET, MASK_ID
from fastblt.models.training.batches import sample_windows
from fastblt.models.training.corpus import Split
from fastblt.models.training.evaluation import count_accepted, draft_acceptance
from fastblt.models.training.objective import clean_loss

_CONTEXT = 192
_WINDOWS = 96
_PIECE = 16


class HeldOut:
    """Holds the same windows of held-out text for every evaluation of a run.

    Args:
        text: held-out documents.
        window: longest window that the run reads.
        size: bytes of a block.
        device: of the model.
    """

    def __init__(self, text: Split, window: int, size: int, device: torch.device) -> None:
        self._context = min(_CONTEXT, window - size)
        ids, targets = sample_windows(text, _WINDOWS, self._context + size, np.random.default_rng(0))
        self._windows, self._targets = ids.to(device), targets.to(device)
        whole = (ids[:, 1:] >= BYTE_OFFSET).all(1)
        self._whole = ids[whole].to(device)

    @torch.no_grad()
    def original(self, model: Blt) -> dict[str, float]:
        """Return what does not change while a model is adapted: ``bits_per_byte``, ``acceptance_s4`` and ``_s8``."""
        nats = 0.0
        for ids, targets in zip(self._windows.split(_PIECE), self._targets.split(_PIECE), strict=True):
            nats += float(clean_loss(model(ids)[0], targets)) * int((targets >= 0).sum())
        found = {"bits_per_byte": nats / int((self._targets >= 0).sum()) / math.log(2)}
        return found | (draft_acceptance(model, self._whole[:, : self._context], 8) if len(self._whole) else {})

    @torch.no_grad()
    def drafts(self, model: Blt) -> dict[str, float]:
        """Return ``acceptance_dv``, of drafts in one call after an anchor, ``masked_accuracy_t50`` and ``_t100``."""
        if not len(self._whole):  # documents may all be too short for a draft after true text
            return {}
        size, rng = model.config.block_size, np.random.default_rng(1)
        accepted, right, hidden_bytes = 0, [0, 0], [0, 0]
        for ids in self._whole.split(_PIECE):
            prefix, true = ids[:, : self._context], ids[:, self._context :]
            hidden = torch.from_numpy(rng.random(true.shape) < 0.5).to(ids.device)
            every = torch.ones_like(hidden)
            guess = self._guess(model, prefix, torch.full_like(true, MASK_ID))
            # As in one step: the anchor decides the first byte, the block all others.
            draft = torch.cat([guess[:, :1], guess[:, 2:]], dim=1)
            accepted += int(count_accepted(model, torch.cat([prefix, draft], dim=1), self._context).sum())
            half = self._guess(model, prefix, torch.where(hidden, MASK_ID, true))
            for index, (rows, where) in enumerate(((half, hidden), (guess, every))):
                right[index] += int(((rows[:, 1:] == true) & where).sum())
                hidden_bytes[index] += int(where.sum())
        t50, t100 = (a / b for a, b in zip(right, hidden_bytes, strict=True))
        return {
            "acceptance_dv": accepted / (len(self._whole) * size),
            "masked_accuracy_t50": t50,
            "masked_accuracy_t100": t100,
        }

    def _guess(self, model: Blt, prefix: Tensor, block: Tensor) -> Tensor:
        """Return the best bytes of the anchor and of each row of a block after a prefix, int64 [batch, 1 + size]."""
        assert model.draft is not None
        frozen = run_frozen(model, prefix)
        starts = torch.full_like(prefix[:, :1], self._context)
        rows = BlockRows(block.unsqueeze(1), starts, frozen.patches.latent_index[:, -2:-1])
        anchors = Anchors(prefix[:, -1:], torch.ones_like(starts, dtype=torch.bool))
        with mixed_precision(model):
            return model.draft(rows, frozen.clean, anchors).argmax(-1).squeeze(1)
