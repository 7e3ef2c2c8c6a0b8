"""Runs a text through eager PyTorch, over caches of its own.

It runs the incremental path of `fastblt.models` with preallocated caches under inference mode: no recomputation, no
growing tensors, one call per part, as a compiled backend does.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fastblt.models.cache import StackCache
from fastblt.runtime.backends.eager.readback import decoder_rows, from_numpy, to_numpy
from fastblt.runtime.backends.graph_error import reporting
from fastblt.runtime.backends.live_rows import cache_ranges, check_state, latent_range, open_patch_range
from fastblt.runtime.backends.protocol import DRAFT_SLACK, DecoderRows, Drafted, Floats, Ids, Pick, Progress, State

if TYPE_CHECKING:
    from fastblt.runtime.backends.eager.backend import EagerBackend


class EagerSequence:
    """Implements `fastblt.runtime.backends.protocol.BackendSequence`.

    Args:
        backend: whose model it runs.
    """

    def __init__(self, backend: EagerBackend) -> None:
        self.backend = backend
        self.model = backend.model
        self.config = backend.config
        self.failure = backend.failure
        self._device, self._dtype = backend.torch_device, backend.dtype
        capacity = backend.max_bytes + 1 + DRAFT_SLACK
        self._caches = {
            part: StackCache(stack, capacity, backend.part_dtype(part), self._device)
            for part, stack in self.config.stacks.items()
        }
        decoder = self.config.decoder
        self._states = self._zeros(1, capacity, decoder.dim)
        self._latent_kv = self._zeros(1, capacity, decoder.layers, 2, self.config.cross_attn_k, decoder.dim)
        self._patch_embeddings = self._zeros(1, 1, self.config.patch_dim)
        self._restored = Progress()
        """Of the text that was restored: what came before the rows that it can read is not here."""

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def _ids(self, ids: Ids) -> Tensor:
        return torch.from_numpy(ids).to(self._device).unsqueeze(0)

    @reporting("patcher", Exception)
    @torch.inference_mode()
    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        """Implement `BackendSequence.run_patcher`."""
        assert self.model.patcher is not None
        cache, seen = self._caches["patcher"], self._optional(visible_from)
        found: Floats = self.model.patcher.step(self._ids(ids), cache, position, seen)[0].cpu().numpy()
        return found

    def _optional(self, visible_from: Ids | None) -> Tensor | None:
        return None if visible_from is None else torch.from_numpy(visible_from).to(self._device)

    @reporting("encoder", Exception)
    @torch.inference_mode()
    def run_encoder(self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: Ids | None = None) -> None:
        """Implement `BackendSequence.run_encoder`."""
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
        """Implement `BackendSequence.run_global`."""
        embeddings = self._patch_embeddings[:, :count]
        seen = self._optional(visible_from)
        latents = self.model.global_transformer.step(embeddings, self._caches["global"], first_patch, seen)
        self._latent_kv[:, first_patch : first_patch + count] = self.model.decoder.latent_kv(latents)

    @reporting("decoder", Exception)
    @torch.inference_mode()
    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        """Implement `BackendSequence.run_decoder`."""
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
        if block and self.model.draft is not None:
            rows = self.model.draft.tok_embeddings(ids)
            return self.model.draft.step(
                rows, latent_kv, index, cache, position, block=block, visible_from=visible_from
            )
        rows = self.model.decoder.rows(ids, states)
        return self.model.decoder.step(rows, latent_kv, index, cache, position, block=block, visible_from=visible_from)

    @torch.inference_mode()
    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None = None, visible_from: int = 0
    ) -> Drafted:
        """Implement `BackendSequence.draft`."""
        known = self._latent_kv[:, latent : latent + 1]
        index = torch.zeros(1, 1, dtype=torch.int64, device=self._device)
        context = self._ids(ids).clone()  # the array is the caller's
        best, tokens, probabilities = context[:, -1:], [], []
        seen = torch.tensor([visible_from], device=self._device) if visible_from else None
        encoder_seconds = 0.0
        for step in range(count):
            if self.config.decoder_reads_states:
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
        """Implement `BackendSequence.can_resume_from`: the caches hold every position since what was restored."""
        return position >= self._restored.tokens and open_patch >= self._restored.open_patch

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        """Implement `BackendSequence.moved_bytes`."""
        return self.backend.moved_bytes(part, position, rows)

    @torch.inference_mode()
    def state(self, progress: Progress) -> dict[str, NDArray[Any]]:
        """Implement `BackendSequence.state`."""
        return {name: to_numpy(place).copy() for name, place in self._places(progress).items()}

    @torch.inference_mode()
    def restore(self, state: State, progress: Progress) -> None:
        """Implement `BackendSequence.restore`."""
        places = self._places(progress)
        check_state(state, {name: to_numpy(place) for name, place in places.items()})
        for name, place in places.items():
            place.copy_(from_numpy(state[name]))
        self._restored = progress

    def _places(self, progress: Progress) -> dict[str, Tensor]:
        """Return views of the rows that the rest of a text can read, by name; the first axis counts rows."""
        places = {}
        for part, rows in cache_ranges(self.config, progress).items():
            cache = self._caches[part]
            for layer in range(self.config.stacks[part].layers):
                for kind, tensor in (("key", cache.keys), ("value", cache.values)):
                    places[f"{part}.{kind}_{layer}"] = tensor[layer, 0, rows]
        places["states"] = self._states[0, open_patch_range(self.config, progress)]
        places["latent_kv"] = self._latent_kv[0, latent_range(progress)]
        return places

    def reset(self) -> None:
        """Implement `BackendSequence.reset`."""
        self._restored = Progress()

    def close(self) -> None:
        """Implement `BackendSequence.close`."""
        self.backend.open_sequences.close(self)
