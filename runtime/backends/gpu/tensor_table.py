"""Lists where each tensor of a graph lives, by the tensor's role. A role that is not listed is an error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.runtime.backends.gpu.cuda import aligned
from fastblt.runtime.bundle.dtypes import numpy_dtype
from fastblt.runtime.bundle.manifest import BundleError, GraphSpec, TensorSpec


class Binding(Enum):
    """Names where a tensor lives."""

    UPLOAD = "written by the host before each call"
    DOWNLOAD = "read by the host after a call"
    CACHE = "keys, values or the encoder's pool, which stay; an update has the address of what it updates"
    APPENDED = "new rows of a cache, copied into it after the call"
    LINK = "passed from graph to graph, copied to and from where all rows are kept"
    UNREAD = "written to memory that nobody reads"


#: Where the tensors of each role live; these are all roles of a bundle's manifest.
BINDINGS = {
    "ids": Binding.UPLOAD,
    "ids_with_history": Binding.UPLOAD,
    "embedding": Binding.UPLOAD,
    "position": Binding.UPLOAD,
    "write_index": Binding.UPLOAD,
    "visible_start": Binding.UPLOAD,
    "visible_end": Binding.UPLOAD,
    "patch_start": Binding.UPLOAD,
    "patch_end": Binding.UPLOAD,
    "pool_index": Binding.UPLOAD,
    "latent_index": Binding.UPLOAD,
    "cache": Binding.CACHE,
    "cache_update": Binding.CACHE,
    "cache_rows": Binding.APPENDED,
    "pool": Binding.CACHE,
    "pool_update": Binding.CACHE,
    "pool_rows": Binding.APPENDED,
    "patch_embeddings": Binding.LINK,
    "states": Binding.LINK,
    "latent_kv": Binding.LINK,
    "latents": Binding.UNREAD,
    "entropy": Binding.DOWNLOAD,
    "best": Binding.DOWNLOAD,
    "probability": Binding.DOWNLOAD,
    "logits": Binding.DOWNLOAD,
}


def binding_of(spec: TensorSpec, graph: GraphSpec) -> Binding:
    """Return where a tensor lives.

    Raises:
        BundleError: its role is unknown, so nothing could be bound to it.
    """
    binding = BINDINGS.get(spec.role)
    if binding is None:
        known = ", ".join(BINDINGS)
        raise BundleError(f"{graph.file}: tensor {spec.name}: found role {spec.role!r}, expected one of {known}")
    return binding


def tensors_bound_as(graph: GraphSpec, *bindings: Binding) -> list[TensorSpec]:
    """Return a graph's tensors that have one of these bindings, inputs first."""
    return [spec for spec in (*graph.inputs, *graph.outputs) if binding_of(spec, graph) in bindings]


def shape_of(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return a tensor's shape, with numbers in place of the names of sizes."""
    return tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape)


@dataclass(frozen=True)
class Field:
    """Describes one tensor in a block."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        """Return the size of the tensor, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Block:
    """Lays out several small tensors that cross the bus in one copy.

    Args:
        specs: the tensors.
        sizes: numbers for the names of sizes in their shapes.

    Attributes:
        fields: offset, shape and type of each tensor, by name.
        bytes: size of the block.
    """

    def __init__(self, specs: Iterable[TensorSpec], sizes: Mapping[str, int]) -> None:
        self.fields: dict[str, Field] = {}
        self.bytes = 0
        for spec in specs:
            field = Field(self.bytes, shape_of(spec, sizes), numpy_dtype(spec.dtype))
            self.fields[spec.name] = field
            self.bytes += aligned(field.bytes)

    def views(self, memory: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return the tensors as views of a block in host memory, uint8 [bytes], by name."""
        return {
            name: memory[field.offset : field.offset + field.bytes].view(field.dtype).reshape(field.shape)
            for name, field in self.fields.items()
        }


def size_names(specs: Sequence[TensorSpec]) -> set[str]:
    """Return the names of the sizes that calls choose."""
    return {size for spec in specs for size in spec.shape if isinstance(size, str)}
