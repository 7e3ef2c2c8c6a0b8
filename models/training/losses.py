"""Computes the loss of one training step, of the patcher or of the rest of the model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.models.decoder import BlockRows
from fastblt.models.documents import first_bytes, first_patches
from fastblt.models.patching import Patches, closes_patch, find_patches
from fastblt.models.training.batches import (
    IGNORE,
    corrupt_blocks,
    place_blocks,
    place_windows,
    read_windows,
    sample_windows,
    stale_latent_index,
)
from fastblt.models.training.corpus import Split
from fastblt.models.training.distillation import distill
from fastblt.models.training.objective import clean_loss, masked_loss
from fastblt.models.training.packed import PackedPatches, encode_packed
from fastblt.models.training.patch_ends import PatchEnds
from fastblt.models.training.processes import Processes
from fastblt.models.training.recipe import TrainConfig

#: A loss to minimize, and the figures of a report, in nats.
Loss = tuple[Tensor, dict[str, float]]


@dataclass
class Losses:
    """Samples windows and returns their losses; both are functions of the part of the run that is done and of ``rng``.

    Args:
        config: the recipe.
        model: is trained.
        text: training text.
        device: of the model.
        patch_ends: where the patches of the text end; None: the patcher reads every window.
        processes: this process and those that share its steps; its ``rng`` draws its part of each.
    """

    config: TrainConfig
    model: Blt
    text: Split
    device: torch.device
    patch_ends: PatchEnds | None = None
    processes: Processes = field(default_factory=Processes)

    def patcher(self, done: float, rng: np.random.Generator) -> Loss:
        """Return the patcher's next-byte loss."""
        assert self.model.patcher is not None
        count, length = self._shape(done)
        ids, targets = sample_windows(self.text, count, length, rng)
        loss = self._clean_loss(self.model.patcher(ids.to(self.device)), targets.to(self.device))
        return loss, {"patcher_nats": float(loss.detach())}

    def rest(self, done: float, rng: np.random.Generator) -> Loss:
        """Return the next-byte loss of clean rows plus the weighted loss of masked bytes (see `objective`)."""
        config, model, device = self.config, self.model, self.device
        ids, targets, patches = self.windows(done, rng)
        packed = PackedPatches.of(patches)
        index = (stale_latent_index(patches, config, rng) + packed.first).to(device)
        seen, seen_patches = self._documents(ids, patches)
        masked = wanted = weights = None
        on_device = ids.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            states, latents = encode_packed(model, on_device, move(packed, device), seen, seen_patches)
            decoder = model.decoder
            clean, read = decoder.run_clean(decoder.rows(on_device, states), decoder.latent_kv(latents), index, seen)
            if model.config.block_size:
                sites = place_blocks(targets, patches, model.config.block_size, config, rng)
                sites = dataclasses.replace(sites, latent_index=sites.latent_index + packed.first)
                if config.distilled:
                    sites = distill(decoder, on_device, read, sites, config.distilled, rng)
                rows, wanted, weights = corrupt_blocks(sites, config, rng)
                masked = decoder.run_blocks(move(rows, device), read)
        loss = self._clean_loss(clean, targets.to(device))
        report = {"clean_nats": float(loss.detach())}
        if masked is not None and wanted is not None and weights is not None:
            extra = masked_loss(masked, wanted.to(device), weights.to(device))
            report["masked_nats"] = float(extra.detach())
            loss = loss + config.mask_weight_at(done) * extra
        return loss, report

    def _shape(self, done: float) -> tuple[int, int]:
        """Return the number of windows, and the tokens of each."""
        config = self.config
        length = config.long_window if done >= 1.0 - config.long_fraction else config.window
        return max(1, config.batch * config.window // length) // self.processes.count, length

    def _clean_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over targets of all processes, of which this one's part is weighted to add up to it."""
        loss = clean_loss(logits, targets)
        if self.processes.count == 1:
            return loss
        count = (targets != IGNORE).sum().float()
        return loss * (count / self.processes.mean(count))

    def windows(self, done: float, rng: np.random.Generator) -> tuple[Tensor, Tensor, Patches]:
        """Return tokens, targets (see `read_windows`) and patches of a step's windows, on the CPU."""
        count, length = self._shape(done)
        starts, sizes = place_windows(self.text, count, length, rng)
        ids, targets = read_windows(self.text, starts, sizes, length)
        if self.patch_ends is None:
            return ids, targets, move(self.model.segment(ids.to(self.device)), "cpu")
        ends = self.patch_ends.of_windows(starts, sizes, length)
        return ids, targets, find_patches(closes_patch(ends, self.model.config.patching))

    def _documents(self, ids: Tensor, patches: Patches) -> tuple[Tensor | None, Tensor | None]:
        """Return the first position and the first patch that each may see, where documents are masked."""
        if not self.model.config.document_masks:
            return None, None
        return first_bytes(ids).to(self.device), first_patches(ids, patches).to(self.device)


_Tensors = TypeVar("_Tensors", Patches, BlockRows, PackedPatches)


def move(value: _Tensors, device: torch.device | str) -> _Tensors:
    """Return a copy of a dataclass of tensors on another device; what is no tensor stays."""
    tensors = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    moved: dict[str, Any] = {n: x.to(device) for n, x in tensors.items() if isinstance(x, Tensor)}
    return dataclasses.replace(value, **moved)
