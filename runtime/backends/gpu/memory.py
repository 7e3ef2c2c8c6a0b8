"""Computes the memory that the backend allocates on a GPU, from a model's configuration alone; a test compares the two.

An engine's activations come on top, and only the engine knows their size.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastblt.models.config import BltConfig, StackConfig
from fastblt.runtime.backends.gpu.sliding import cache_slots, pool_slots, position_count
from fastblt.runtime.bundle.dtypes import BUNDLE_TYPES

#: Nothing fixes a number of slots.
NO_SLOTS: Mapping[str, int] = {}


def device_buffers(
    config: BltConfig,
    dtype: str,
    max_bytes: int,
    max_patch_bytes: int | None = None,
    fixed: Mapping[str, int] = NO_SLOTS,
) -> dict[str, int]:
    """Return the bytes on the device, by part, of key/value caches and of what passes from graph to graph.

    Caches that slide have a second buffer of the same size, through which their contents move; the pool's has room for
    the usual patches.

    Args:
        config: the model's.
        dtype: of the bundle: ``fp32``, ``fp16`` or ``bf16``; the patcher's caches are fp32.
        max_bytes: longest prompt plus new bytes.
        max_patch_bytes: longest open patch, if the model sets no limit; None: `DEFAULT_PATCH_BYTES`.
        fixed: slots of each cache, by part, and of the ``pool``, where engines fix them.
    """
    item, positions = BUNDLE_TYPES[dtype].item_bytes, position_count(max_bytes)

    def caches(part: str, stack: StackConfig) -> int:
        slots, size = fixed.get(part, cache_slots(stack, max_bytes)), 4 if part == "patcher" else item
        return 2 * stack.layers * stack.dim * slots * size * (2 if slots < positions else 1)

    found = {part: caches(part, stack) for part, stack in config.stacks.items()}
    rows = pool_slots(config, max_bytes, max_patch_bytes) + pool_slots(config, max_bytes)
    pool = 3 * config.encoder.dim * (2 * fixed["pool"] if "pool" in fixed else rows)
    states = positions * config.decoder.dim if config.decoder_input == "encoder" else 0
    found["encoder"] += item * (pool + states + positions * config.patch_dim)
    found["global"] += item * positions * config.latent_kv_dim
    return found
