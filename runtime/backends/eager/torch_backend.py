"""Provides what the backends on PyTorch share: the model, its device, errors and byte counts."""

from __future__ import annotations

from functools import cached_property, partial
from hashlib import sha256

import torch
from torch import nn

from fastblt.models.blt import Blt
from fastblt.models.config import BltConfig
from fastblt.models.machine_memory import host_memory
from fastblt.runtime.backends.graph_error import GraphError, graph_error
from fastblt.runtime.backends.memory import sequences_that_fit
from fastblt.runtime.backends.protocol import DRAFT_SLACK
from fastblt.runtime.machine import default_threads


class TorchBackend:
    """Holds a model on its device; what runs it, and the caches, are a subclass's.

    Args:
        model: in eager mode, on the device that it is to run on.
        max_bytes: longest prompt plus new bytes.
        threads: of one operator, for the whole process; None: as many as suit the model.
        sequences: most at once; None: as `sequences_that_fit`.

    Raises:
        CapacityError: weights and caches do not fit the machine's memory.
    """

    def __init__(self, model: Blt, max_bytes: int, threads: int | None = None, sequences: int | None = None) -> None:
        self.model = model.eval()
        self.config: BltConfig = model.config
        self.max_bytes = max_bytes
        weight = model.decoder.output.weight
        self.torch_device, self.dtype = weight.device, weight.dtype
        self.device = self.torch_device.type
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        needed = partial(buffer_bytes, self.config, self.dtype.itemsize)
        available, where = host_memory(), "this machine"
        if self.device != "cpu":
            available, where = _free_on(self.torch_device) + weights, "the GPU"
        self.sequence_bytes = needed(max_bytes)
        self.sequences = sequences_that_fit(weights, needed, max_bytes, sequences, available, where)
        self._weight_bytes = {
            "encoder": _weight_bytes(model.encoder),
            "global": _weight_bytes(model.global_transformer),
            "decoder": _weight_bytes(model.decoder),
        }
        if model.patcher is not None:
            self._weight_bytes["patcher"] = _weight_bytes(model.patcher)
        if model.draft is not None:
            self._weight_bytes["draft"] = _weight_bytes(model.draft)
        # The same rule as every backend's; PyTorch has one setting for the whole process.
        torch.set_num_threads(threads or default_threads(sum(self._weight_bytes.values())))

    @cached_property
    def model_digest(self) -> str:
        """Implement `Backend.model_digest`; all weights are read, once."""
        digest = sha256(repr(self.config).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def part_dtype(self, part: str) -> torch.dtype:
        """Return the type of a part's activations and caches; the patcher is fp32 in every bundle."""
        return torch.float32 if part == "patcher" else self.dtype

    def failure(self, part: str, error: Exception) -> Exception:
        """Return what to raise for an exception of PyTorch in the calls of a part; a GPU may be lost."""
        lost = False
        try:
            if self.device == "cuda":
                torch.cuda.synchronize(self.torch_device)
        except RuntimeError:
            lost = True
        return (
            error if isinstance(error, GraphError) else graph_error(f"{part} of {self.config.name}", error, lost=lost)
        )

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        """Implement `BackendSequence.moved_bytes`."""
        stack = self.config.graph_stacks[part]
        live = position + rows if stack.window is None else min(position + rows, stack.window + rows - 1)
        per_slot = 2 * stack.layers * stack.dim * self.part_dtype(part).itemsize
        return self._weight_bytes[part] + live * per_slot


def _free_on(device: torch.device) -> int:
    """Return the free memory of a GPU, in bytes."""
    return torch.cuda.mem_get_info(device)[0]


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


def _weight_bytes(module: nn.Module) -> int:
    """Return the bytes of weights that a call reads, embedding tables excluded."""
    return sum(p.numel() * p.element_size() for n, p in module.named_parameters() if "embeddings" not in n)
