"""Computes what adapting a model needs of a device's memory, before anything is allocated there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from fastblt.models.adapting.recipe import AdaptConfig
from fastblt.models.config import BltConfig, ConfigError
from fastblt.models.formats.checkpoint import HASH_TABLE, Checkpoint, expected_shapes
from fastblt.models.formats.names import PATCHER_PREFIX
from fastblt.models.formats.stores import DTYPES
from fastblt.models.machine_memory import host_memory
from fastblt.models.parameters import count_parameters
from fastblt.models.tokens import MASK_ID

CONTEXT_BYTES = 600_000_000
"""What CUDA, its libraries and their workspaces take."""
MARGIN = 1.15
"""Allocators leave gaps."""
_BYTES_PER_PATCH = 3
"""Text with shorter patches than most."""
_LONGEST_PATCH = 32
"""Where a model has no longest patch."""


class MemoryTooSmallError(ValueError):
    """Reports a device with too little memory."""


@dataclass(frozen=True)
class MemoryNeed:
    """Holds bytes by purpose."""

    weights: int
    """Of everything that is not trained."""
    training: int
    """Weights, gradients and optimizer state of the draft decoder."""
    activations: int
    """Of one piece of a step."""

    @property
    def total(self) -> int:
        """Return the sum."""
        return self.weights + self.training + self.activations


def memory_need(config: BltConfig, weights: int, adapt: AdaptConfig, processes: int, item: int) -> MemoryNeed:
    """Return what one process needs.

    Args:
        config: of the model without blocks.
        weights: bytes of the weights that are not trained.
        adapt: how it is adapted.
        processes: that share a step.
        item: bytes of an element where the draft decoder's matrices are applied: 2 with bf16 autocast, 4 without.
    """
    mixed = replace(config, decoder_input="mixed", block_size=adapt.block_size, draft_rank=adapt.rank)
    trained = count_parameters(mixed).draft + (MASK_ID + 1) * config.decoder.dim
    # Weight, gradient, and two moments (AdamW) or one (Muon, most of full matrices); gradients once more in buckets.
    copies = (4 if adapt.rank is not None else 3) + (processes > 1)
    windows = adapt.batch // (processes * adapt.accumulate)
    kept = _clean_rows(config, windows * adapt.window, item)
    passing = max(_frozen_pass(config, windows * adapt.window, item), _draft_pass(config, adapt, windows, item))
    return MemoryNeed(weights, 4 * copies * trained, int(MARGIN * (kept + passing)))


def _clean_rows(config: BltConfig, tokens: int, item: int) -> int:
    """Return the bytes that clean rows leave: keys and values of bytes and latents, byte states, logits."""
    rows = 2 * config.decoder.layers * config.decoder.dim + 3 * config.decoder.dim + config.vocab_size
    return item * tokens * (rows + config.latent_kv_dim // _BYTES_PER_PATCH)


def _frozen_pass(config: BltConfig, tokens: int, item: int) -> int:
    """Return the bytes of the widest moment of the fixed parts: a layer of one of the stacks, or pooling."""
    patches = tokens // _BYTES_PER_PATCH
    longest = config.patching.max_patch_length or _LONGEST_PATCH
    layers = [
        rows * (8 * stack.dim + 3 * stack.ffn_dim) * (4 if name == "patcher" else item)
        for name, stack in config.stacks.items()
        for rows in [patches if name == "global" else tokens]
    ]
    pooling = 4 * patches * longest * config.encoder.dim * item
    hashed = tokens * (2 * config.hash.tables + 2) * config.encoder.dim * item
    return max(*layers, pooling, hashed)


def _draft_pass(config: BltConfig, adapt: AdaptConfig, windows: int, item: int) -> int:
    """Return the bytes that are kept for the backward pass of the draft decoder, and its logits."""
    stack = config.decoder
    of_block = adapt.blocks_per_window * (1 + adapt.block_size)
    rows, keys = windows * of_block, windows * (adapt.window + of_block)
    # The residual stream and norms are in fp32; what matrices read is in the type of `item`.
    streams = rows * stack.dim * (8 * 4 + 9 * item)
    latents = rows * 2 * config.cross_attn_k * stack.dim * item
    inner = rows * 4 * stack.ffn_dim * item
    layer = streams + latents + inner + 2 * keys * stack.dim * item
    inputs = rows * 2 * stack.dim * 4 + latents
    kept = layer + stack.layers * inputs if adapt.checkpoint_activations else stack.layers * layer
    mask = windows * of_block * (adapt.window + of_block) * (1 + item)
    return kept + mask + rows * 4 * 4 * config.vocab_size


def check_plain(base: Checkpoint) -> None:
    """Check that a checkpoint is a BLT without blocks.

    Raises:
        ConfigError: it has blocks already.
    """
    kind = base.config.decoder_input
    if kind != "encoder":
        blocks = f"blocks of {base.config.block_size} bytes" if base.config.block_size else "a table of its own"
        raise ConfigError(f"{base.path}: found decoder_input {kind!r} ({blocks}), expected a BLT without blocks")


def base_bytes(base: Checkpoint, dtype: torch.dtype) -> int:
    """Return the bytes of a checkpoint's weights as `load_model` reads them."""
    total = 0
    for name, shape in expected_shapes(base.config).items():
        kind = torch.float32 if name.startswith(PATCHER_PREFIX) else dtype
        if name == HASH_TABLE and base.dtype(name) != "F32":
            kind = DTYPES[base.dtype(name)]
        total += math.prod(shape) * kind.itemsize
    return total


def check_room(base: Checkpoint, adapt: AdaptConfig, processes: int, device: torch.device) -> None:
    """Check that a device has room for adapting a checkpoint.

    Raises:
        MemoryTooSmallError: it has not; the message contains how much is missing.
    """
    on_gpu = device.type == "cuda"
    kind = torch.bfloat16 if on_gpu else torch.float32
    need = memory_need(base.config, base_bytes(base, kind), adapt, processes, kind.itemsize)
    room = _room(device)
    wanted = need.total + on_gpu * CONTEXT_BYTES
    if room is None or wanted <= room:
        return
    gb = [f"{size / 1e9:,.1f} GB" for size in (room, wanted, wanted - room)]
    parts = ", ".join(
        f"{name} {size / 1e9:,.1f}"
        for name, size in (
            ("weights", need.weights),
            ("draft decoder", need.training),
            ("activations", need.activations),
        )
    )
    raise MemoryTooSmallError(
        f"{device}: found {gb[0]} of memory, expected {gb[1]} for {base.path} ({parts}): {gb[2]} are missing; "
        "activations need less with --accumulate, --checkpoint-activations, --batch or --window"
    )


def _room(device: torch.device) -> int | None:
    """Return the bytes of a device that are free, or of the machine's memory; None where nothing reports them."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else host_memory()
