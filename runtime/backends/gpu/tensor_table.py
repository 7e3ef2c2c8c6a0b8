"""What each tensor of a graph is to the runtime: one table, by role. A tensor that it does not list is an error."""

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
    """Where a tensor lives."""

    UPLOAD = "written by the host before each call"
    DOWNLOAD = "read by the host after a call"
    CACHE = "keys or values, or the encoder's pool: they stay; updates have the address of what they update"
    APPENDED = "new rows of a cache, copied into it after the call"
    LINK = "passed from graph to graph, copied from and to where all of them are kept"
    UNREAD = "memory of its own that nobody reads"


#: Every role that a bundle's manifest can give.
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
    """Where a tensor lives.

    Raises:
        BundleError: its role is unknown, so nothing would be bound to it.
    """
    place = BINDINGS.get(spec.role)
    if place is None:
        raise BundleError(f"{graph.file}: tensor {spec.name}: found role {spec.role!r}, expected one that is known")
    return place


def tensors_bound_as(graph: GraphSpec, *places: Binding) -> list[TensorSpec]:
    """A graph's tensors that live in one of these places, inputs first."""
    return [spec for spec in (*graph.inputs, *graph.outputs) if binding_of(spec, graph) in places]


def shape_of(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Shape, with numbers for the names of sizes."""
    return tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape)


@dataclass(frozen=True)
class Field:
    """One tensor in a block."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        """Size."""
        return math.prod(self.shape) * self.dtype.itemsize


class Block:
    """Several small tensors that cross the bus in one copy: where each lies, for one choice of sizes."""

    def __init__(self, specs: Iterable[TensorSpec], sizes: Mapping[str, int]) -> None:
        self.fields: dict[str, Field] = {}
        self.bytes = 0
        for spec in specs:
            field = Field(self.bytes, shape_of(spec, sizes), numpy_dtype(spec.dtype))
            self.fields[spec.name] = field
            self.bytes += aligned(field.bytes)

    def views(self, memory: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The tensors in host memory, by name."""
        return {
            name: memory[field.offset : field.offset + field.bytes].view(field.dtype).reshape(field.shape)
            for name, field in self.fields.items()
        }


def size_names(specs: Sequence[TensorSpec]) -> set[str]:
    """Names of the sizes that calls choose."""
    return {size for spec in specs for size in spec.shape if isinstance(size, str)}
