"""Reads what is known of a checkpoint or a bundle without loading its weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastblt.commands.graphs import files_of
from fastblt.models.config import BltConfig
from fastblt.models.formats.hub import locate
from fastblt.models.parameters import ParameterCounts, count_parameters
from fastblt.runtime.backends.cpu.buffers import buffer_bytes
from fastblt.runtime.backends.gpu.memory import device_buffers
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.contract import HASH_TABLE
from fastblt.runtime.bundle.dtypes import BUNDLE_TYPES, DTYPES, SAFETENSORS_TYPES, TENSOR_TYPES
from fastblt.runtime.bundle.engines import engine_folders, load_engine_folder
from fastblt.runtime.bundle.manifest import (
    BundleError,
    Manifest,
    is_bundle,
)
from fastblt.runtime.doctor.engine_memory import EngineMemory, engine_memory
from fastblt.runtime.doctor.memory import exported_shapes, graph_of, weight_bytes
from fastblt.runtime.measure.replay.paper import estimates
from fastblt.runtime.measure.tune.profile import Profile, ProfileError, profiles_of

#: A part's name in tables, and its field in `ParameterCounts`.
PARTS = {
    "patcher": "patcher",
    "encoder": "encoder",
    "global": "global_transformer",
    "decoder": "decoder",
    "draft": "draft",
    "byte embeddings": "byte_embeddings",
    "hash embeddings": "hash_embeddings",
}


@dataclass(frozen=True)
class Stored:
    """Describes a part on disk."""

    bytes: int
    dtype: str


@dataclass(frozen=True)
class Memory:
    """Describes the memory that a bundle of one type needs."""

    dtype: str
    weights: dict[str, int]
    """Bytes on the device, by graph."""
    buffers: dict[str, int]
    """Bytes on the device, by graph: caches and what passes from graph to graph."""
    tables: int
    """Bytes of embedding tables, memory-mapped on the host; 0 where they are inside the encoder's graph."""
    sequence_bytes: dict[str, int]
    """Bytes that each sequence takes at most, by device: ``cpu``; and ``cuda``, the sum of ``buffers``.

    What a graph reads and writes in one call comes on top on a GPU, some hundred kB for small models: it depends on the
    graphs, which a checkpoint does not have yet.
    """

    @property
    def device(self) -> int:
        """Return all bytes on the device."""
        return sum(self.weights.values()) + sum(self.buffers.values())


@dataclass(frozen=True)
class ModelFacts:
    """Describes one checkpoint or bundle."""

    kind: str
    """E.g. ``bundle`` or ``transformers BltForCausalLM``."""
    path: str
    config: BltConfig
    counts: ParameterCounts
    stored: dict[str, Stored]
    """By part (keys of `PARTS`)."""
    max_bytes: int
    memory: tuple[Memory, ...]
    """Of the bundle's type; for a checkpoint, of every type that it can be exported to."""
    traffic_gb: dict[str, float]
    """Estimated weight traffic of `POINT_BYTES` bytes, by method."""
    manifest: Manifest | None = None
    engines: tuple[EngineMemory, ...] = ()
    """What each folder of engines of a bundle needs, by capacity."""
    profiles: tuple[Profile, ...] = ()
    """What ``fastblt tune`` found for a bundle on this machine, by backend."""
    refused_profiles: tuple[str, ...] = ()
    """Why other profiles of the bundle are ignored."""


def read_facts(path: str, max_bytes: int, patcher: str | None = None, *, check: bool = False) -> ModelFacts:
    """Read the facts of a bundle, or of a checkpoint of any layout.

    Args:
        path: a folder, a hub id or ``random:PRESET``.
        max_bytes: longest text, prompt included, to report memory for.
        patcher: another patcher for a checkpoint, see `open_checkpoint`.
        check: of a bundle, compare every sha256 and look for values of tables that are not finite, too.

    Raises:
        BundleError: it is a bundle that cannot be used, or a bundle and a patcher.
        CheckpointError: it is neither, or a checkpoint that cannot be used.
        ConfigError: its configuration is invalid.
    """
    if is_bundle(Path(path)):
        if patcher is not None:
            raise BundleError(f"{path}: found a patcher {patcher} for a bundle, expected none: its own is in it")
        return bundle_facts(Path(path), max_bytes, check=check)
    return checkpoint_facts(path, max_bytes, patcher)


def bundle_facts(folder: Path, max_bytes: int, *, check: bool = False) -> ModelFacts:
    """Read the facts of a bundle; PyTorch is not needed."""
    bundle = Bundle.open(folder, check=check)
    bundle.check_sizes()
    if check:
        bundle.check_values()
    manifest, config = bundle.manifest, bundle.config
    sizes = {
        part: sum((folder / name).stat().st_size for name in files_of(graph, manifest))
        for part, graph in manifest.graphs.items()
    }
    stored = {part: Stored(size, _types(manifest, part)) for part, size in sizes.items()}
    tables = 0
    if bundle.embeddings is not None:
        tables = bundle.embeddings.stat().st_size
        stored["hash embeddings"] = Stored(tables, _table_type(bundle))
    memory = _memory(config, manifest.dtype, max_bytes, sizes, tables)
    profiles = list(profiles_of(folder))
    folders = [load_engine_folder(path) for path in engine_folders(folder)]
    return ModelFacts(
        "bundle",
        str(folder),
        config,
        count_parameters(config),
        stored,
        max_bytes,
        (memory,),
        traffic(config),
        manifest,
        tuple(each for engines in folders for each in engine_memory(engines, config, manifest)),
        tuple(each for each in profiles if isinstance(each, Profile)),
        tuple(str(each) for each in profiles if isinstance(each, ProfileError)),
    )


def _types(manifest: Manifest, part: str) -> str:
    """Return the type of a part's weights, or the precisions that its layers were quantized to."""
    layers = manifest.quantization["graphs"].get(part, {}) if manifest.quantization else {}
    return ", ".join(sorted(set(layers.values()))) or ("fp32" if part == "patcher" else manifest.dtype)


def _table_type(bundle: Bundle) -> str:
    """Return the type of the hash tables."""
    table = bundle.tables()[HASH_TABLE]
    return str(TENSOR_TYPES[table.dtype.name].dtype)


def checkpoint_facts(path: str, max_bytes: int, patcher: str | None) -> ModelFacts:
    """Read the facts of a checkpoint, every tensor of which is accounted for."""
    from fastblt.models.formats.open import open_checkpoint

    found = locate(path)
    checkpoint = open_checkpoint(found.folder, patcher=patcher)
    config = checkpoint.config
    shapes = {name: checkpoint.shape(name) for name in checkpoint.pieces}
    kinds = {name: checkpoint.dtype(name) for name in shapes}
    stored = {}
    for part in PARTS:
        names = [name for name in shapes if part_of(name) == part]
        size = sum(math.prod(shapes[name]) * SAFETENSORS_TYPES[kinds[name]].item_bytes for name in names)
        if size:
            stored[part] = Stored(size, "/".join(sorted({kinds[name] for name in names})))
    memory = tuple(_checkpoint_memory(config, shapes, kinds, dtype, max_bytes) for dtype in DTYPES)
    return ModelFacts(
        checkpoint.layout.description,
        found.name,
        config,
        count_parameters(config),
        stored,
        max_bytes,
        memory,
        traffic(config),
    )


def _checkpoint_memory(
    config: BltConfig, shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str], dtype: str, max_bytes: int
) -> Memory:
    """Return the memory that a bundle of this checkpoint would need."""
    weights: Counter[str] = Counter()
    for name, shape in exported_shapes(shapes).items():
        size = weight_bytes(name, shape, dtype)
        if part_of(name) == "hash embeddings" and kinds[name] != "F32":
            size = 2 * math.prod(shape)  # tables stored in 16 bits stay so
        weights[graph_of(name)] += size
    tables = weights.pop("tables", 0)
    ordered = {part: weights[part] for part in config.graph_stacks}
    return _memory(config, dtype, max_bytes, ordered, tables)


def _memory(config: BltConfig, dtype: str, max_bytes: int, weights: dict[str, int], tables: int) -> Memory:
    """Return the memory that weights of these sizes, and a sequence, need."""
    buffers = device_buffers(config, dtype, max_bytes)
    on_cpu = buffer_bytes(config, BUNDLE_TYPES[dtype].item_bytes, max_bytes)
    return Memory(dtype, weights, buffers, tables, {"cpu": on_cpu, "cuda": sum(buffers.values())})


def part_of(tensor: str) -> str:
    """Return the part (a key of `PARTS`) that one of our tensors belongs to."""
    if "hash_embeddings" in tensor:
        return "hash embeddings"
    if "tok_embeddings" in tensor:
        return "byte embeddings"
    module = tensor.partition(".")[0]
    return "global" if module == "global_transformer" else module


def traffic(config: BltConfig) -> dict[str, float]:
    """Return the estimated GB for `POINT_BYTES` bytes, by method; one of each kind that the model can run."""
    return {each.point.method: each.gb for each in estimates(config)}
