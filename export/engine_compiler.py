"""Compiles every graph of a bundle for one or more capacities into a folder of engines, atomically.

A cache's size is part of an engine. Stacks with a window and the encoder's pool need the same size whatever the
capacity, so their engine is built once and shared; the global transformer's is built for each capacity.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

from fastblt.export.interruptible import run_interruptible
from fastblt.export.tensorrt_build import TensorRtGraph
from fastblt.models.atomic_folder import replacing_folder
from fastblt.models.config import BltConfig
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS, cache_slots, pool_slots, position_count
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.engines import (
    ENGINES_FILE,
    ENGINES_FOLDER,
    EngineFolder,
    EngineSpec,
    ShapeProfile,
    folder_name,
)
from fastblt.runtime.bundle.graph_model import check_graph, load_graph
from fastblt.runtime.bundle.manifest import (
    MANIFEST_FILE,
    GraphSpec,
    Manifest,
    sha256_of,
)
from fastblt.runtime.bundle.tensorrt_library import TensorRtError, TensorRtLibrary
from fastblt.runtime.progress import OnProgress, no_progress

#: Rows of a call, which are also its patches: smallest, usual, largest, by profile. Together they cover every power of
#: two up to `CALL_ROWS`. No profile has a single size: for a single row the compiler would lay out the weights in
#: another way, and store them in the engine a second time.
PROFILES = {
    "byte": (1, 1, 2),
    "verify": (4, 8, 16),
    "prefill": (32, CALL_ROWS, CALL_ROWS),
}


#: First compute capability with products of E4M3 numbers.
FP8_SM = 89


@dataclass(frozen=True)
class CompileRequest:
    """Describes what to compile.

    Raises:
        TensorRtError: there is no GPU or no capacity to compile for.
    """

    sms: tuple[int, ...]
    """Compute capabilities, e.g. 89."""
    capacities: tuple[int, ...]
    """``max_bytes`` of the runtimes that will use the engines, ascending."""
    dtype: str | None = None
    """Type that the bundle must have; None: any."""
    max_patch_bytes: int | None = None
    """Longest patch, if the model sets no limit."""
    timing_cache: Path | None = None
    """File that TensorRT keeps its measurements of kernels in; read if it exists, and written."""

    def __post_init__(self) -> None:
        """Require a compute capability and a capacity."""
        if not self.sms or not self.capacities:
            raise TensorRtError("compile: found no SM or no capacity, expected at least one of each")


def compile_bundle(
    bundle: Path, library: TensorRtLibrary, request: CompileRequest, on_progress: OnProgress = no_progress
) -> EngineFolder:
    """Compile every graph of a bundle.

    Args:
        bundle: folder that ``fastblt export`` wrote; the folder of engines is created in it, or replaced.
        library: the compiler.
        request: what to compile for.
        on_progress: a step is an engine; its name includes the compiler's phase.

    Returns:
        The manifest of the folder of engines.

    Raises:
        BundleError: the bundle is damaged.
        TensorRtError: a graph cannot be compiled, or the request does not fit bundle or library.
    """
    opened = Bundle.open(bundle, check=False)
    _check_request(bundle, opened.manifest, library, request)
    opened.check_files()
    path = bundle / ENGINES_FOLDER / folder_name(library.target, library.version, request.sms)
    path.parent.mkdir(exist_ok=True)
    try:
        with replacing_folder(path) as new:
            compiler = _Compiler(bundle, opened.config, opened.manifest, library, request, new, on_progress)
            folder = run_interruptible(partial(compiler.run, path))
            (new / ENGINES_FILE).write_text(json.dumps(folder.to_dict(), indent=1) + "\n", encoding="utf-8")
    finally:
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    return folder


def _check_request(bundle: Path, manifest: Manifest, library: TensorRtLibrary, request: CompileRequest) -> None:
    if request.dtype is not None and request.dtype != manifest.dtype:
        raise TensorRtError(
            f"dtype: found {request.dtype!r}, expected {manifest.dtype!r}: engines have the types of the graphs, "
            f"export another bundle (fastblt export --dtype {request.dtype})"
        )
    if not library.updates_caches and manifest.operators != "lowered":
        raise TensorRtError(
            f"{bundle}: found standard graphs, but {library.label} has no layers for TensorScatter and Attention; "
            "expected lowered ones (fastblt export --lowered)"
        )
    oldest = min(request.sms, default=FP8_SM)
    if "fp8" in manifest.precisions and oldest < FP8_SM:
        raise TensorRtError(
            f"sm: found {oldest}, expected {FP8_SM} or newer: {bundle} has layers in fp8 (fastblt quantize --scheme "
            "int8 or w8 makes one for older GPUs)"
        )
    if request.timing_cache is not None and library.target == "tensorrt-rtx":
        raise TensorRtError(
            "timing cache: found one, but TensorRT-RTX measures no kernels when it builds, expected target tensorrt"
        )


class _Compiler:
    """Runs one compilation: builds each engine once, and records which capacities share it."""

    def __init__(
        self,
        bundle: Path,
        config: BltConfig,
        manifest: Manifest,
        library: TensorRtLibrary,
        request: CompileRequest,
        folder: Path,
        on_progress: OnProgress,
    ) -> None:
        self.bundle, self.config, self.manifest, self.library = bundle, config, manifest, library
        self.request, self.folder, self.on_progress = request, folder, on_progress
        self.engines: list[EngineSpec] = []

    def run(self, path: Path, cancelled: Event) -> EngineFolder:
        """Build all engines and return their manifest; ``path`` is where they will be.

        Raises:
            TensorRtError: a graph cannot be compiled, or the work was cancelled.
        """
        keys = {c: {part: self._key(part, c) for part in self.manifest.graphs} for c in self.request.capacities}
        distinct = list(dict.fromkeys(key for parts in keys.values() for key in parts.values()))
        total = len(distinct)
        for done, key in enumerate(distinct):
            self.engines.append(self._build(*key, partial(self.on_progress, done, total), cancelled))
        self.on_progress(total, total, "")
        capacities = {c: {part: distinct.index(key) for part, key in parts.items()} for c, parts in keys.items()}
        return EngineFolder(
            path,
            self.library.target,
            self.library.version,
            self.request.sms,
            self.manifest.dtype,
            self.manifest.operators,
            sha256_of(self.bundle / MANIFEST_FILE),
            tuple(self.engines),
            capacities,
        )

    def _key(self, part: str, capacity: int) -> tuple[str, int, int]:
        """Return what an engine depends on: its part, the slots of its caches and those of its pool."""
        slots = cache_slots(self.config.stacks[part], capacity)
        pool = pool_slots(self.config, capacity, self.request.max_patch_bytes) if part == "encoder" else 0
        return part, slots, pool

    def _build(
        self, part: str, slots: int, pool: int, on_phase: Callable[[str], None], cancelled: Event | None = None
    ) -> EngineSpec:
        spec = self.manifest.graphs[part]
        sizes = f"{slots}-{pool}" if pool else f"{slots}"
        name = f"{Path(spec.file).stem}-{sizes}.engine"
        on_phase(f"{name}: parsing {spec.file}")
        began = time.perf_counter()
        check_graph(self.bundle / spec.file, load_graph(self.bundle / spec.file), spec)
        graph = TensorRtGraph(self.library, self.bundle / spec.file, {"slots": slots, "pool_slots": pool})
        aliases = graph.aliases()
        _check_aliases(self.bundle / spec.file, spec, aliases)
        latents = position_count(max(self.request.capacities))
        profiles = _profiles(spec, self.config.hash.context - 1, latents, {"slots": slots, "pool_slots": pool})
        cache = self.request.timing_cache
        data = graph.build(profiles, self.request.sms, cache, lambda phase: on_phase(f"{name}: {phase}"), cancelled)
        (self.folder / name).write_bytes(data)
        seconds = round(time.perf_counter() - began, 2)
        digest = sha256_of(self.folder / name)
        return EngineSpec(part, name, data.nbytes, digest, slots, pool, profiles, aliases, graph.decomposed, seconds)


def _check_aliases(path: Path, spec: GraphSpec, aliases: dict[str, str]) -> None:
    """Raise `TensorRtError` unless every cache update that the graph declares is made in place."""
    expected = {t.name: t.name.removesuffix("_out") for t in spec.outputs if t.role in ("cache_update", "pool_update")}
    if aliases != expected:
        missing = sorted(set(expected) - set(aliases)) or sorted(aliases)
        raise TensorRtError(f"{path}: found {', '.join(missing)} not updated in place, expected every cache to be")


def _profiles(spec: GraphSpec, history: int, latents: int, capacity: dict[str, int]) -> tuple[ShapeProfile, ...]:
    """Return the profiles of a graph: ranges of all inputs whose shapes depend on the call.

    All latents of a sequence, at most ``latents``, are bound in every call; how many they are depends on the runtime.
    """
    found = []
    for name, rows in PROFILES.items():
        ranges: dict[int | str, Sequence[int]] = {"rows": rows, "patches": rows, "latents": (1, latents, latents)}
        ranges["context_rows"] = [size + history for size in rows]
        shapes = {}
        for tensor in spec.inputs:
            if any(size in ranges for size in tensor.shape):
                sizes = [ranges[size] if size in ranges else [_fixed(size, capacity)] * 3 for size in tensor.shape]
                least, usual, most = (tuple(size[bound] for size in sizes) for bound in range(3))
                shapes[tensor.name] = (least, usual, most)
        found.append(ShapeProfile(name, shapes))
    return tuple(found)


def _fixed(size: int | str, capacity: dict[str, int]) -> int:
    """Return a size as a number, given those of the caches."""
    return size if isinstance(size, int) else capacity[size]
