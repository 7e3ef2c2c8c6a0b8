"""Computes the memory that the weights of a model need, by graph, from the tensors of its checkpoint.

Caches and buffers come on top: `fastblt.runtime.backends.gpu.memory`, and `fastblt.runtime.backends.cpu.buffers`.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastblt.runtime.bundle.dtypes import BUNDLE_TYPES

#: Weights of the decoder that are in the graph of the global transformer: they make a latent's keys and values.
_LATENT_WEIGHTS = ("decoder.patch_projection.", ".norm_kv.", ".wkv.")
#: Matrices of low rank, whose product a draft decoder adds to a matrix of the decoder.
_LORA_A, _LORA_B = ".lora_a", ".lora_b"


def graph_of(tensor: str) -> str:
    """Return the part whose graph holds a tensor of a checkpoint.

    ``tables`` means the embedding tables, which are on the host unless ``export --hash-tables graph`` is asked for.
    """
    part = tensor.partition(".")[0]
    if part == "encoder" and "embeddings" in tensor:
        return "tables"
    if part == "decoder" and any(piece in tensor for piece in _LATENT_WEIGHTS):
        return "global"
    return "global" if part == "global_transformer" else part


def exported_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the tensors that an export writes, given those of a checkpoint: matrices of low rank are multiplied.

    ``NAME.lora_b`` [out, rank] and ``NAME.lora_a`` [rank, in] become ``NAME.weight`` [out, in].
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if name.endswith(_LORA_B):
            stem = name.removesuffix(_LORA_B)
            found[f"{stem}.weight"] = (shape[0], shapes[f"{stem}{_LORA_A}"][1])
        elif not name.endswith(_LORA_A):
            found[name] = shape
    return found


def weight_bytes(tensor: str, shape: tuple[int, ...], dtype: str) -> int:
    """Return the bytes of a checkpoint's tensor in a bundle's graph; norms and the patcher are fp32."""
    count = 1
    for size in shape:
        count *= size
    return count * (4 if len(shape) == 1 or graph_of(tensor) == "patcher" else BUNDLE_TYPES[dtype].item_bytes)
