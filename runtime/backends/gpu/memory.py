"""Computes the memory that the backend allocates on a GPU, from a model's configuration alone; a test compares the two.

An engine's activations come on top, and only the engine knows their size.
"""

from __future__ import annotations

from fastblt.models.config import BltConfig, StackConfig
from fastblt.runtime.backends.gpu.sliding import cache_slots, pool_slots, position_count
from fastblt.runtime.bundle.dtypes import BUNDLE_TYPES


def device_buffers(config: BltConfig, dtype: str, max_bytes: int, max_patch_bytes: int | None = None) -> dict[str, int]:
    """Return the bytes on the device, by part, of key/value caches and of what passes from graph to graph.

    Caches that slide have a second buffer of the same size, through which their contents move; the pool's has room for
    the usual patches.

    Args:
        config: the model's.
        dtype: of the bundle: ``fp32``, ``fp16`` or ``bf16``; the patcher's caches are fp32.
        max_bytes: longest prompt plus new bytes.
        max_patch_bytes: longest open patch, if the model sets no limit; None: `DEFAULT_PATCH_BYTES`.
    """
    item, positions = BUNDLE_TYPES[dtype].item_bytes, position_count(max_bytes)

    def caches(stack: StackConfig, size: int) -> int:
        slots = cache_slots(stack, max_bytes)
        return 2 * stack.layers * stack.dim * slots * size * (2 if slots < positions else 1)

    found = {part: caches(stack, 4 if part == "patcher" else item) for part, stack in config.stacks.items()}
    pool = (pool_slots(config, max_bytes, max_patch_bytes) + pool_slots(config, max_bytes)) * 3 * config.encoder.dim
    states = positions * config.decoder.dim if config.decoder_input == "encoder" else 0
    found["encoder"] += item * (pool + states + positions * config.patch_dim)
    found["global"] += item * positions * config.latent_kv_dim
    return found
