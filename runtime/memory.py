"""What a model needs in memory when it runs, from its configuration alone: the arithmetic of the buffers.

`fastblt.runtime.backends.onnxruntime` allocates these; a test compares the two.
"""

from __future__ import annotations

from fastblt.models.config import BltConfig, StackConfig
from fastblt.runtime.backend import DRAFT_SLACK, POOL_STEP, ROW_CAPACITY, VIEW_SLOTS

#: Bytes of an element, by the name of a bundle's type.
ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
#: Parts of the decoder that the global graph holds: they make a latent's keys and values.
_LATENT_WEIGHTS = ("decoder.patch_projection.", ".norm_kv.", ".wkv.")


def device_buffers(config: BltConfig, dtype: str, max_bytes: int) -> dict[str, int]:
    """Bytes on the device, by part: key/value caches, and what passes from graph to graph.

    Args:
        config: the model's.
        dtype: of the bundle; the patcher's caches are fp32.
        max_bytes: longest prompt plus new bytes.
    """
    item, capacity = ITEM_BYTES[dtype], max_bytes + 1 + DRAFT_SLACK
    slots = -(-capacity // VIEW_SLOTS) * VIEW_SLOTS

    def caches(stack: StackConfig, size: int) -> int:
        return 2 * stack.layers * stack.dim * slots * size

    found = {part: caches(stack, 4 if part == "patcher" else item) for part, stack in config.stacks.items()}
    states = capacity if config.decoder_input == "encoder" else 1
    pool = (capacity + POOL_STEP) * 3 * config.encoder.dim
    found["encoder"] += item * (pool + states * config.decoder.dim + ROW_CAPACITY * config.patch_dim)
    found["global"] += item * (ROW_CAPACITY * config.global_transformer.dim + capacity * config.latent_kv_dim)
    return found


def graph_of(tensor: str) -> str:
    """The part whose graph holds one of our tensors; ``tables``: the host, unless a bundle is asked to do otherwise."""
    part = tensor.partition(".")[0]
    if part == "encoder" and "embeddings" in tensor:
        return "tables"
    if part == "decoder" and any(piece in tensor for piece in _LATENT_WEIGHTS):
        return "global"
    return "global" if part == "global_transformer" else part


def weight_bytes(tensor: str, shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a tensor in a bundle's graph: norms and the patcher are fp32."""
    count = 1
    for size in shape:
        count *= size
    return count * (4 if len(shape) == 1 or graph_of(tensor) == "patcher" else ITEM_BYTES[dtype])
