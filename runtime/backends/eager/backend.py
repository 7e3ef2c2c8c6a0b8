"""Runs a model with eager PyTorch: the reference, and the baseline that latency is compared with.

It runs the incremental path of `fastblt.models` with preallocated caches under inference mode: no recomputation, no
growing tensors, one call per part, as a compiled backend does.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

from fastblt.models.blt import Blt
from fastblt.models.cache import StackCache
from fastblt.models.checkpoint import load_checkpoint
from fastblt.models.config import BltConfig, StackConfig
from fastblt.models.formats.registry import WEIGHT_FILES
from fastblt.models.machine_memory import host_memory
from fastblt.models.patcher import entropy
from fastblt.runtime.backends.entry import ProviderError
from fastblt.runtime.backends.graph_error import GraphError, graph_error, reporting
from fastblt.runtime.backends.memory import check_fits
from fastblt.runtime.backends.protocol import DRAFT_SLACK, DecoderRows, Drafted, Floats, Ids, Pick
from fastblt.runtime.machine import default_threads


class EagerBackend:
    """Runs `fastblt.models.blt.Blt` step by step; `load` is the constructor for users.

    Args:
        model: in eager mode, on the device that it is to run on.
        max_bytes: longest prompt plus new bytes.
        threads: of one operator, for the whole process; None: as many as suit the model.
    """

    name = "eager"

    def __init__(self, model: Blt, max_bytes: int, threads: int | None = None) -> None:
        self.model = model.eval()
        self.config: BltConfig = model.config
        self.max_bytes = max_bytes
        self.owner: object = None
        weight = model.decoder.output.weight
        self._device, self._dtype = weight.device, weight.dtype
        self.device = self._device.type
        if self.device == "cpu":
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
            needed = partial(buffer_bytes, self.config, self._dtype.itemsize)
            check_fits(weights, needed, max_bytes, host_memory(), "this machine")
        capacity = max_bytes + 1 + DRAFT_SLACK
        self._caches = {
            "encoder": self._cache(self.config.encoder, capacity, self._dtype),
            "global": self._cache(self.config.global_transformer, capacity, self._dtype),
            "decoder": self._cache(self.config.decoder, capacity, self._dtype),
        }
        self._weight_bytes = {
            "encoder": _weight_bytes(model.encoder),
            "global": _weight_bytes(model.global_transformer),
            "decoder": _weight_bytes(model.decoder),
        }
        if model.patcher is not None:
            self._caches["patcher"] = self._cache(model.patcher.config, capacity, torch.float32)
            self._weight_bytes["patcher"] = _weight_bytes(model.patcher)
        # The same rule as every backend's; PyTorch has one setting for the whole process.
        torch.set_num_threads(threads or default_threads(sum(self._weight_bytes.values())))
        decoder = self.config.decoder
        self._states = self._zeros(1, capacity, decoder.dim)
        self._latent_kv = self._zeros(1, capacity, decoder.layers, 2, self.config.cross_attn_k, decoder.dim)
        self._patch_embeddings = self._zeros(1, 1, self.config.patch_dim)

    @classmethod
    def load(cls, folder: Path, provider: str, max_bytes: int, threads: int | None) -> EagerBackend:
        """Load a checkpoint of any layout, or the weights inside a bundle; arguments and errors as in `load_eager`."""
        return cls(load_eager(folder, provider), max_bytes, threads)

    def _cache(self, stack: StackConfig, capacity: int, dtype: torch.dtype) -> StackCache:
        return StackCache(stack, capacity, dtype, self._device)

    def failure(self, part: str, error: Exception) -> Exception:
        """Return what to raise for an exception of PyTorch in the calls of a part; a GPU may be lost."""
        lost = False
        try:
            if self.device == "cuda":
                torch.cuda.synchronize(self._device)
        except RuntimeError:
            lost = True
        return (
            error if isinstance(error, GraphError) else graph_error(f"{part} of {self.config.name}", error, lost=lost)
        )

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
        return _decoder_rows(self._decode(position, self._ids(ids), known, index, seen, block)[0].float())

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
                token, more = pick(_decoder_rows(logits))
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

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        """Implement `Backend.moved_bytes`."""
        stack = self._caches[part]
        live = position + rows if stack.window is None else min(position + rows, stack.window + rows - 1)
        per_slot = 2 * stack.keys.shape[0] * stack.keys[0, 0, 0].numel() * stack.keys.element_size()
        return self._weight_bytes[part] + live * per_slot


def buffer_bytes(config: BltConfig, item: int, max_bytes: int) -> int:
    """Return the bytes of the caches, and of what passes from part to part.

    Args:
        config: the model's.
        item: bytes of an activation; the patcher's are fp32.
        max_bytes: longest prompt plus new bytes.
    """
    capacity = max_bytes + 1 + DRAFT_SLACK
    caches = sum(
        2 * stack.layers * stack.dim * (4 if part == "patcher" else item) for part, stack in config.stacks.items()
    )
    return capacity * (caches + item * (config.decoder.dim + config.latent_kv_dim))


def load_eager(folder: Path, provider: str) -> Blt:
    """Load the eager model of a checkpoint of any layout, or of the weights inside a bundle.

    Args:
        folder: of the checkpoint or bundle.
        provider: ``auto`` (the CPU), ``cpu`` or ``cuda``.

    Raises:
        ProviderError: the provider is unknown, or PyTorch sees no GPU.
        BundleError: the bundle cannot be used.
        CheckpointError: the checkpoint cannot be used.
    """
    device = "cpu" if provider == "auto" else provider
    if device not in ("cpu", "cuda"):
        raise ProviderError(f"provider: found {provider!r}, expected auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ProviderError("provider: found 'cuda', but PyTorch sees no GPU on this machine")
    if any((folder / name).is_file() for name in WEIGHT_FILES):
        return load_checkpoint(folder, device=device)
    from fastblt.runtime.backends.eager.bundle_weights import load_eager_model

    return load_eager_model(folder, device)


def _decoder_rows(logits: Tensor) -> DecoderRows:
    """Return what `Backend.run_decoder` returns, for logits [rows, vocab]."""
    best_logp, best = logits.log_softmax(-1).max(-1)
    return DecoderRows(
        best.cpu().numpy(), best_logp.exp().cpu().numpy(), entropy(logits).cpu().numpy(), logits.cpu().numpy()
    )


def _weight_bytes(module: nn.Module) -> int:
    """Return the bytes of weights that a call reads, embedding tables excluded."""
    return sum(p.numel() * p.element_size() for n, p in module.named_parameters() if "embeddings" not in n)
