"""Runs a model with eager PyTorch: a baseline that latency is compared with, and in fp32 the reference.

It runs the incremental path of `fastblt.models` with preallocated caches under inference mode: no recomputation, no
growing tensors, one call per part, as a compiled backend does.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.models.cache import StackCache
from fastblt.runtime.backends.eager.loading import load_eager
from fastblt.runtime.backends.eager.readback import decoder_rows
from fastblt.runtime.backends.eager.torch_backend import TorchBackend
from fastblt.runtime.backends.graph_error import reporting
from fastblt.runtime.backends.protocol import DRAFT_SLACK, DecoderRows, Drafted, Floats, Ids, Pick


class EagerBackend(TorchBackend):
    """Runs `fastblt.models.blt.Blt` step by step, in the type that its weights have; see `TorchBackend`.

    `load` is the constructor for users. As a baseline it computes in the bundle's dtype, as the backend that it is
    compared with does; as a reference (``exact``) it computes in fp32.
    """

    name = "eager"

    def __init__(self, model: Blt, max_bytes: int, threads: int | None = None) -> None:
        super().__init__(model, max_bytes, threads)
        capacity = max_bytes + 1 + DRAFT_SLACK
        self._caches = {
            part: StackCache(stack, capacity, self._part_dtype(part), self._device)
            for part, stack in self.config.stacks.items()
        }
        decoder = self.config.decoder
        self._states = self._zeros(1, capacity, decoder.dim)
        self._latent_kv = self._zeros(1, capacity, decoder.layers, 2, self.config.cross_attn_k, decoder.dim)
        self._patch_embeddings = self._zeros(1, 1, self.config.patch_dim)

    @classmethod
    def load(
        cls, folder: Path, provider: str, max_bytes: int, threads: int | None, *, exact: bool = False
    ) -> EagerBackend:
        """Load a checkpoint of any layout, or the weights inside a bundle; arguments and errors as in `load_eager`."""
        return cls(load_eager(folder, provider, exact=exact), max_bytes, threads)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def _ids(self, ids: Ids) -> Tensor:
        return torch.from_numpy(ids).to(self._device).unsqueeze(0)

    @reporting("patcher", Exception)
    @torch.inference_mode()
    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        """Implement `Backend.run_patcher`."""
        assert self.model.patcher is not None
        cache, seen = self._caches["patcher"], self._optional(visible_from)
        found: Floats = self.model.patcher.step(self._ids(ids), cache, position, seen)[0].cpu().numpy()
        return found

    def _optional(self, visible_from: Ids | None) -> Tensor | None:
        return None if visible_from is None else torch.from_numpy(visible_from).to(self._device)

    @reporting("encoder", Exception)
    @torch.inference_mode()
    def run_encoder(self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: Ids | None = None) -> None:
        """Implement `Backend.run_encoder`."""
        self._encode(position, self._ids(ids), self._optional(visible_from))
        first = int(starts[0])
        longest = int((ends - starts).max())
        offset = torch.arange(longest, device=self._device)
        begin = torch.from_numpy(starts).to(self._device).view(1, -1, 1)
        length = torch.from_numpy(ends - starts).to(self._device).view(1, -1, 1)
        valid = offset < length
        positions = torch.where(valid, begin - first + offset, 0)
        states = self._states[:, first : int(ends[-1])]
        self._patch_embeddings = self.model.encoder.pool(states, positions, valid)

    @reporting("encoder", Exception)
    def _encode(self, position: int, ids: Tensor, visible_from: Tensor | None) -> None:
        history = self.config.hash.context - 1
        embedded = self.model.encoder.embed(ids[:, history:], ids[:, :history])
        states = self.model.encoder.step(embedded, self._caches["encoder"], position, visible_from)
        self._states[:, position : position + states.shape[1]] = states

    @reporting("global", Exception)
    @torch.inference_mode()
    def run_global(self, first_patch: int, count: int, visible_from: Ids | None = None) -> None:
        """Implement `Backend.run_global`."""
        embeddings = self._patch_embeddings[:, :count]
        seen = self._optional(visible_from)
        latents = self.model.global_transformer.step(embeddings, self._caches["global"], first_patch, seen)
        self._latent_kv[:, first_patch : first_patch + count] = self.model.decoder.latent_kv(latents)

    @reporting("decoder", Exception)
    @torch.inference_mode()
    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        """Implement `Backend.run_decoder`."""
        first = int(latents[0])
        index = self._ids(latents - first)
        known = self._latent_kv[:, first : int(latents[-1]) + 1]
        seen = self._optional(visible_from)
        return decoder_rows(self._decode(position, self._ids(ids), known, index, seen, block)[0].float())

    @reporting("decoder", Exception)
    def _decode(
        self,
        position: int,
        ids: Tensor,
        latent_kv: Tensor,
        index: Tensor,
        visible_from: Tensor | None,
        block: int = 0,
    ) -> Tensor:
        states, cache = self._states[:, position : position + ids.shape[1]], self._caches["decoder"]
        rows = self.model.decoder.rows(ids, states)
        return self.model.decoder.step(rows, latent_kv, index, cache, position, block=block, visible_from=visible_from)

    @torch.inference_mode()
    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None = None, visible_from: int = 0
    ) -> Drafted:
        """Implement `Backend.draft`."""
        known = self._latent_kv[:, latent : latent + 1]
        index = torch.zeros(1, 1, dtype=torch.int64, device=self._device)
        context = self._ids(ids).clone()  # the array is the caller's
        best, tokens, probabilities = context[:, -1:], [], []
        seen = torch.tensor([visible_from], device=self._device) if visible_from else None
        encoder_seconds = 0.0
        for step in range(count):
            if self.config.decoder_input == "encoder":
                began = perf_counter()
                self._encode(position + step, context, seen)
                context = context.roll(-1, dims=1)
                encoder_seconds += perf_counter() - began
            logits = self._decode(position + step, best, known, index, seen)[0].float()
            probability, best = logits.softmax(-1).max(-1, keepdim=True)
            more = True
            if pick is not None:
                token, more = pick(decoder_rows(logits))
                best = torch.full_like(best, token)
            context[:, -1:] = best
            tokens.append(best)
            probabilities.append(probability)
            if not more:
                break
        chosen, sure = (torch.cat(rows).flatten().cpu().numpy() for rows in (tokens, probabilities))
        return Drafted(chosen, sure, encoder_seconds)

    def can_resume_from(self, position: int, open_patch: int) -> bool:
        """Return True: the caches hold every position."""
        return True
